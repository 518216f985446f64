"""The report on shadow queries as a page: its contents; ``templates/shadow.html.mako`` lays them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amprenta_vectors.compare.shadow_report import CURVE, SHARES
from amprenta_vectors.pages import Number, Verdict, render, to_moment
from amprenta_vectors.plots import AMBER, BLUE, draw

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

AGREES, DIFFERS = 0.99, 0.95
"""The mean share of hits in common from which the page is green, and the one below which it is red."""
MOST_WORST = 10
PLOT_HEIGHT = 1.8


@dataclass(frozen=True)
class _Pair:
    """Two stores, as the template lays them out."""

    found: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        return to_verdict(self.found)

    @property
    def numbers(self) -> Iterator[Number]:
        found = self.found
        compared, failed = found["compared"], sum(found["errors"].values())
        yield Number("queries", f"{found['queries']:,}", f"{compared:,} answered by both")
        yield Number("hits in common", _share(found["overlap"]["mean"]), "mean of all queries")
        same = f"{_share(found['same_hits'] / compared)} of them" if compared else ""
        yield Number("queries with the same hits", f"{found['same_hits']:,}", same)
        yield Number("queries that failed", f"{failed:,}", f"at {found['secondary']} alone")
        yield Number(
            f"ms at {found['secondary']} (p95)",
            _ms(found["secondary_ms"]["p95"]),
            f"{_ms(found['primary_ms']['p95'])} at {found['primary']}",
        )

    @property
    def facts(self) -> Iterator[tuple[str, str]]:
        found, drift = self.found, self.found["score_drift"]
        yield "When", f"{to_moment(found['first_at'])} to {to_moment(found['last_at'])} UTC"
        yield "Not compared", f"{found['dropped']:,} more, because too many waited for {found['secondary']}"
        if drift["mean"] is not None:
            yield "Score drift", f"{drift['mean']:.4f} in the mean, {drift['p95']:.4f} p95, {drift['most']:.4f} at most"

    @property
    def agreement(self) -> Iterator[list[str]]:
        for name, what in (("overlap", "hits in common"), ("rank_agreement", "rank agreement")):
            yield [what, *(_share(self.found[name][key]) for key in ("mean", "p50", "p5", "p1"))]

    @property
    def latencies(self) -> Iterator[list[str]]:
        for role in ("primary", "secondary"):
            yield [self.found[role], *(_ms(self.found[f"{role}_ms"][key]) for key in ("p50", "p95", "p99"))]

    @property
    def errors(self) -> Iterator[list[str]]:
        for kind, number in self.found["errors"].items():
            yield [kind, f"{number:,}"]

    @property
    def worst(self) -> list[list[str]]:
        return [
            [
                str(row["id"]),
                to_moment(row["at"]),
                _share(row["overlap"]),
                _share(row["rank_agreement"]),
                f"{row['missing']} of {row['hits']}",
                "yes" if row["filtered"] else "no",
            ]
            for row in self.found["worst"][:MOST_WORST]
        ]

    @property
    def overlap_plot(self) -> Markup:
        def fill(axes: Axes) -> None:
            names = [f"{100 * part // SHARES}–{100 * (part + 1) // SHARES}" for part in range(SHARES)] + ["all"]
            axes.bar(names, self.found["overlap_shares"], color=BLUE, label="queries, by % of hits in common")
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_ylabel("queries")

        return draw("Queries by the share of hits in common", fill, height=PLOT_HEIGHT)

    @property
    def time_plot(self) -> Markup:
        def fill(axes: Axes) -> None:
            buckets = self.found["buckets"]
            hours = [bucket["begin"] / 3600 for bucket in buckets]
            overlaps = [float("nan") if bucket["overlap"] is None else 100 * bucket["overlap"] for bucket in buckets]
            failed = [100 * bucket["failed"] / bucket["queries"] for bucket in buckets]
            axes.plot(hours, overlaps, color=BLUE, marker=".", label="% of hits in common")
            axes.plot(hours, failed, color=AMBER, marker=".", label="% of queries that failed")
            axes.set_ylim(-5, 105)
            axes.set_xlabel("hours since the first query")

        return draw("Hits in common, and queries that failed, over time", fill, height=PLOT_HEIGHT)

    @property
    def latency_plot(self) -> Markup | str:
        if not self.found["secondary_ms"]["curve"]:
            return f"{self.found['secondary']} answered no query."

        def fill(axes: Axes) -> None:
            for role, color in (("primary", BLUE), ("secondary", AMBER)):
                axes.plot(CURVE, self.found[f"{role}_ms"]["curve"], color=color, label=self.found[role])
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("percentile")
            axes.set_ylabel("ms")

        return draw("Latency of both stores by percentile", fill, height=PLOT_HEIGHT)


def render_shadow_page(report: Mapping[str, Any]) -> str:
    """Render as HTML a report that `collect_shadow_report` made, or that was read from its JSON."""
    return render(
        "shadow", report, title="Do both stores answer alike?", pairs=[_Pair(pair) for pair in report["pairs"]]
    )


def to_verdict(pair: Mapping[str, Any]) -> Verdict:
    """Return in one line how two stores compare."""
    overlap, failed = pair["overlap"]["mean"], sum(pair["errors"].values())
    errors = f"; {pair['secondary']} failed at {failed:,} of {pair['queries']:,} queries" if failed else ""
    if overlap is None:
        return Verdict("bad", f"No query was answered by both{errors}.")
    found = f"{_share(overlap)} of the hits are in common over {pair['compared']:,} queries{errors}."
    if overlap < DIFFERS:
        return Verdict("bad", f"The answers differ: {found}")
    if overlap < AGREES or failed:
        return Verdict("attention", f"The answers nearly agree: {found}")
    return Verdict("good", f"The answers agree: {found}")


def verdict(pair: Mapping[str, Any]) -> str:
    """Return how two stores compare, as one line of the terminal."""
    failed = sum(pair["errors"].values())
    overlap = "no query compared" if pair["overlap"]["mean"] is None else f"{pair['overlap']['mean']:.4f} of the hits"
    return (
        f"{pair['queries']:,} queries: {overlap} in common; "
        f"{failed:,} failed at the secondary; {pair['dropped']:,} not compared"
    )


def _share(value: float | None) -> str:
    """Return a share in per cent, rounded down, so that only a whole one is 100 %."""
    return "–" if value is None else f"{math.floor(value * 1000 + 1e-6) / 10:.1f} %"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
