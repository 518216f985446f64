"""The report on shadow queries as a page, with its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from amprenta_vectors.compare.shadow_report import CURVE, SHARES
from amprenta_vectors.pages import pairs, paragraph, render, table
from amprenta_vectors.plots import AMBER, BLUE, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_shadow_page(report: Mapping[str, Any]) -> str:
    """The HTML of a report as `collect_shadow_report` makes it, or as it was read from its JSON."""
    compared = report["pairs"]
    title = "Shadow queries: " + ", ".join(f"{pair['primary']} → {pair['secondary']}" for pair in compared)
    sections = (section for pair in compared for section in _sections(pair))
    return render(title, " / ".join(map(verdict, compared)), sections, report)


def verdict(pair: Mapping[str, Any]) -> str:
    """Two stores in a line."""
    failed = sum(pair["errors"].values())
    overlap = "no query compared" if pair["overlap"]["mean"] is None else f"{pair['overlap']['mean']:.4f} of the hits"
    return (
        f"{pair['queries']:,} queries: {overlap} in common; "
        f"{failed:,} failed at the secondary; {pair['dropped']:,} not compared"
    )


def _sections(pair: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    named = f" ({pair['primary']} → {pair['secondary']})"
    plain = ("first_at", "last_at", "queries", "compared", "same_hits", "dropped")
    yield "What was asked" + named, pairs({name: pair[name] for name in plain}) + _errors(pair["errors"])
    yield "Do they find the same?" + named, _agreement(pair) + _draw_overlap(pair["overlap_shares"])
    yield "Over time" + named, _draw_time(pair)
    yield "How fast?" + named, _latencies(pair) + _draw_latencies(pair)
    worst = [
        {**row, "overlap": _four(row["overlap"]), "rank_agreement": _four(row["rank_agreement"])}
        for row in pair["worst"]
    ]
    yield "Where they agree least" + named, table(worst, "every answer is the same in the same order")


def _errors(errors: Mapping[str, int]) -> str:
    rows = [{"error": kind, "queries": number} for kind, number in errors.items()]
    return table(rows, "the secondary failed at no query")


def _agreement(pair: Mapping[str, Any]) -> str:
    rows = [
        {"measure": name.replace("_", " "), **{key: _four(value) for key, value in pair[name].items()}}
        for name in ("overlap", "rank_agreement")
    ]
    drift = {f"score drift, {name}": _four(value) for name, value in pair["score_drift"].items()}
    return table(rows, "") + pairs(drift)


def _latencies(pair: Mapping[str, Any]) -> str:
    rows = [
        {"store": pair[role], **{f"{name} ms": pair[f"{role}_ms"][name] for name in ("p50", "p95", "p99")}}
        for role in ("primary", "secondary")
    ]
    return table(rows, "")


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _draw_overlap(shares: list[int]) -> str:
    def fill(axes: Axes) -> None:
        names = [f"{part / SHARES:g}–" for part in range(SHARES)] + ["1"]
        axes.bar(names, shares, color=BLUE, label="queries")
        axes.set_xlabel("share of hits in common")
        axes.set_ylabel("queries")

    return draw("Queries by the share of hits in common", fill)


def _draw_time(pair: Mapping[str, Any]) -> str:
    def fill(axes: Axes) -> None:
        hours = [bucket["begin"] / 3600 for bucket in pair["buckets"]]
        overlaps = [float("nan") if bucket["overlap"] is None else bucket["overlap"] for bucket in pair["buckets"]]
        failed = [bucket["failed"] / bucket["queries"] for bucket in pair["buckets"]]
        axes.plot(hours, overlaps, color=BLUE, marker=".", label="share of hits in common")
        axes.plot(hours, failed, color=AMBER, marker=".", label="share of queries that failed")
        axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel("hours since the first query")

    return draw("Share of hits in common, and of queries that failed, over time", fill)


def _draw_latencies(pair: Mapping[str, Any]) -> str:
    if not pair["secondary_ms"]["curve"]:
        return paragraph("the secondary answered no query")

    def fill(axes: Axes) -> None:
        for role, color in (("primary", BLUE), ("secondary", AMBER)):
            axes.plot(CURVE, pair[f"{role}_ms"]["curve"], color=color, label=pair[role])
        axes.set_yscale("log")
        axes.set_xlabel("percentile")
        axes.set_ylabel("ms")

    return draw("Latency of both stores by percentile", fill)
