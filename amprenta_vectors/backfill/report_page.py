"""The report of a run as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from amprenta_vectors.backfill.report_plot import draw_rate
from amprenta_vectors.pages import code, codes, more, pairs, paragraph, render, short_json, table


def render_page(report: Mapping[str, Any]) -> str:
    """The HTML of a report as `collect_report` makes it, or as it was read from its JSON."""
    run, moved = report["run"], report["moved"]
    title = f"Backfill run {run['id']}: {moved['source'] or 'queued'} → {moved['target']}"
    return render(title, _verdict(report), _sections(report), report)


def _verdict(report: Mapping[str, Any]) -> str:
    counts, verified = report["counts"], report["verification"]
    parts = [
        report["run"]["state"],
        f"{counts['written']:,} rows written",
        f"{counts['set_aside']:,} set aside" if counts["set_aside"] else "none set aside",
    ]
    if verified is None:
        parts.append("not verified")
    elif verified.get("unexpected"):
        parts.append(f"{verified['unexpected']:,} differ from the source")
    else:
        parts.append("every vector equal, but for those set aside" if counts["set_aside"] else "every vector equal")
    return "; ".join(parts)


def _sections(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run, set_aside = report["run"], report["set_aside"]
    yield "What moved", pairs({**report["moved"], **report["counts"]})
    yield "When", pairs({**run, **report["timeline"]["waited_seconds"]}) + _processes(report["processes"])
    yield "At what rate", draw_rate(report["timeline"], run["seconds"])
    yield "What was set aside", _set_aside(set_aside) + pairs({"resolved_since": set_aside["resolved_since"]})
    yield "Verification", _verification(report["verification"])
    yield "Index", table(report["indexes"], "no index was put off")
    yield "Read units", pairs(report["read_units"])
    yield "Limits", _limits(report["limits"])
    yield "What happened", _events(report["events"])
    yield "Versions", pairs(report["versions"])
    yield "How to undo it", _undo(report["undo"])


def _processes(processes: Mapping[str, Any]) -> str:
    left_out = processes["number"] - len(processes["first"])
    return table(processes["first"], "no process ended a batch") + more(left_out, "processes")


def _set_aside(set_aside: Mapping[str, Any]) -> str:
    rows = []
    for reason, number in set_aside["by_reason"].items():
        keys = set_aside["first_keys"].get(reason, [])
        rows.append({"reason": reason, "rows": number, "first_keys": codes(keys)})
    return table(rows, "nothing")


def _verification(verification: Mapping[str, Any] | None) -> str:
    return pairs(verification) if verification else paragraph("not made; amprenta-vectors verify makes it")


def _limits(limits: Mapping[str, Any]) -> str:
    if not any(limits.values()):
        return paragraph("none was set")
    rates = {f"{kind} a second, as last allowed": rate for kind, rate in limits["rates"].items()}
    return pairs({**limits["in_force"], **rates}) + table(limits["changes"], "none was changed")


def _events(events: Mapping[str, Any]) -> str:
    rows = [{**event, "detail": short_json(event["detail"])} for event in events["listed"]]
    return table(rows, "nothing was recorded") + more(events["left_out"], "events in between")


def _undo(steps: Iterable[Mapping[str, str]]) -> str:
    rows = [{"to undo": step["undoes"], "type": code(step["command"]), "what stays": step["stays"]} for step in steps]
    return table(rows, "nothing to undo")
