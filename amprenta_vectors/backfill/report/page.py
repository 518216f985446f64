"""The content of the page that a person files as a run's report; ``templates/run.html.mako`` has its layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from amprenta_vectors.backfill.progress.charges import to_money
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.states import UNFINISHED, RunState
from amprenta_vectors.backfill.report.plot import WAITS, draw_rate
from amprenta_vectors.backfill.report.timeline import to_duration
from amprenta_vectors.pages import Number, Verdict, render, shorten, to_moment

MOST_EVENTS, MOST_WAITS, EXAMPLES = 10, 4, 4
_ELSEWHERE = {Event.JOINED, Event.LEFT, Event.THROTTLED, Event.UNTHROTTLED, Event.BATCH_CUT}
"""The events that a long run has very many of; other sections have their sums."""


@dataclass(frozen=True)
class _Wait:
    kind: str
    begin: str
    took: str
    reason: str


def render_page(report: Mapping[str, Any]) -> str:
    """Render as HTML a report as `collect_report` makes it, or as it was read from its JSON."""
    events = [event for event in report["events"]["listed"] if event["event"] not in _ELSEWHERE]
    half = MOST_EVENTS // 2
    shown = events if len(events) <= MOST_EVENTS else [*events[:half], *events[-half:]]
    return render(
        "run",
        report,
        title=f"Run {report['run']['id']}: vectors to PostgreSQL",
        moved=report["moved"],
        verdict=to_verdict(report),
        numbers=list(_numbers(report)),
        facts=list(_facts(report)),
        pace=_pace(report),
        plot=draw_rate(report["timeline"], report["run"]["seconds"]),
        waits=list(_waits(report)),
        quarantine=report["quarantined"],
        examples=EXAMPLES,
        cost=list(_cost(report)),
        duration=_took,
        events=shown,
        more_events=len(report["events"]["listed"]) - len(shown) + report["events"]["left_out"],
        said=_said,
    )


def to_verdict(report: Mapping[str, Any]) -> Verdict:
    """Return in one line how a run stands."""
    run, counts = report["run"], report["counts"]
    rolled_back = [event for event in report["events"]["listed"] if event["event"] == Event.ROLLED_BACK]
    done = f"{counts['keys_done']:,} of the {counts['keys_planned']:,} keys listed are done"
    if rolled_back:
        return Verdict("attention", f"Rolled back: {rolled_back[-1]['detail'].get('removed', 0):,} rows were removed.")
    if run["state"] == RunState.FINISHED:
        return _finished(report)
    if run["state"] == RunState.CANCELLED:
        return Verdict("open", f"Cancelled: {done}; the rows that were written stay.")
    if run["state"] == RunState.PLANNED:
        return Verdict("open", "Not begun: a revision queued it, and no process has started it.")
    if run["state"] == RunState.PAUSED:
        return Verdict("open", f"Paused: {done}; amprenta-vectors resume {run['id']} resumes it.")
    if report["processes"]["at_work"]:
        return Verdict("open", f"Running: {done}.")
    if run["last_error"]:
        return Verdict("bad", f"Failed: {shorten(run['last_error'], 200)}; {done}, and backfill --resume resumes it.")
    return Verdict("attention", f"Interrupted: no process is at work; {done}; backfill --resume resumes it.")


def _finished(report: Mapping[str, Any]) -> Verdict:
    verified, quarantined = report["verification"], report["counts"]["quarantined"]
    aside = f"; {_rows(quarantined)} quarantined" if quarantined else ""
    if verified is None:
        return Verdict("attention", f"Not verified yet{aside}: amprenta-vectors verify compares every vector.")
    missing, extra, different = (verified.get(kind, 0) for kind in ("missing", "extra", "different"))
    if verified.get("unexpected"):
        short = verified["unexpected"] - extra - different
        found = {
            f"PostgreSQL lacks {short:,} that the source has": short,
            f"the source lacks {extra:,} that PostgreSQL has": extra,
            f"{different:,} have another value": different,
        }
        return Verdict("bad", "Not equal: " + "; ".join(text for text, number in found.items() if number) + f"{aside}.")
    if report["moved"]["source_kind"] == "rows":
        equal = "no row with a text lacks its vector, and those embedded again agree"
    else:
        equal = f"{verified['compared'] - missing:,} vectors are equal in source and PostgreSQL, bit for bit"
    return Verdict("attention" if quarantined else "good", f"Verified: {equal}{aside}.")


def _numbers(report: Mapping[str, Any]) -> Iterator[Number]:
    counts, run = report["counts"], report["run"]
    yield Number("keys in the source", f"{counts['keys_planned']:,}")
    replaced = f"of them {counts['replaced']:,} replaced" if counts["replaced"] else ""
    yield Number("rows written", f"{counts['written']:,}", replaced)
    yield Number("rows left as they were", f"{counts['skipped']:,}")
    yield Number("rows quarantined", f"{counts['quarantined']:,}")
    yield Number("from begin to end", _took(run["seconds"]), _rate(report))


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run, moved, database = report["run"], report["moved"], report["database"]
    scope = ", ".join(f"{name} {value or '(default)'}" for name, value in moved["scope"].items())
    port = f", port {database['port']}" if database["port"] else ""
    yield "Source", f"{moved['source_kind'] or '–'}: {moved['source'] or 'not known yet'}"
    yield "Into", moved["target"] + (f", {scope}" if scope else "")
    yield "Database", f"{database['name']} at {database['host']}{port}"
    yield "Model", f"{moved['model'] or 'not named'}, {moved['dimension'] or '?'} dimensions"
    yield (
        "Keys",
        f"from {moved['keys_from']}, by {moved['key_map']}"
        + (f", at most {moved['row_limit']:,}" if moved["row_limit"] else ""),
    )
    ended = to_moment(run["finished_at"]) if run["finished_at"] else "not ended"
    yield "When", f"{to_moment(run['started_at'])} to {ended} UTC"
    hosts = sorted({process["owner"].split(":")[0] for process in report["processes"]["first"]})
    on = f" on {shorten(', '.join(hosts), 120)}" if hosts else ""
    yield "Processes", f"{report['processes']['number']:,}{on}"
    if verified := report["verification"]:
        kinds = ("compared", "missing", "extra", "different", "unexpected")
        found = _said({kind: verified.get(kind) for kind in kinds})
        yield "Verified", f"{to_moment(verified['at'])} UTC: {found}"


def _rate(report: Mapping[str, Any]) -> str:
    seconds = report["run"]["working_seconds"]
    return f"{report['counts']['written'] / seconds:,.0f} rows a second" if seconds >= 1 else ""


def _pace(report: Mapping[str, Any]) -> str:
    waited = report["timeline"]["waited_seconds"]
    parts = [f"{WAITS[kind]} {_took(seconds)}" for kind, seconds in waited.items() if seconds]
    rate = f"{_rate(report)} of working time. " if _rate(report) else ""
    return rate + ("; ".join(parts).capitalize() + "." if parts else "Nothing was waited for.")


def _waits(report: Mapping[str, Any]) -> Iterator[_Wait]:
    longest = sorted(report["timeline"]["waits"], key=lambda wait: wait["begin"] - wait["end"])[:MOST_WAITS]
    for wait in sorted(longest, key=lambda wait: wait["begin"]):
        begin = datetime.fromisoformat(report["run"]["started_at"]) + timedelta(seconds=wait["begin"])
        took = _took(wait["end"] - wait["begin"])
        yield _Wait(WAITS[wait["kind"]], to_moment(begin.isoformat()), took, wait["reason"])


def _cost(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    limits = report["limits"]
    yield _charge(report)
    yield "Limits", _said(limits["in_force"]) or "none was set"
    if limits["source_rates"]:
        yield (
            "Source allowed",
            "; ".join(f"{kind} {rate:,.1f} a second" for kind, rate in limits["source_rates"].items()),
        )
    if limits["changes"]:
        yield "Changed", f"{len(limits['changes']):,} times, last {to_moment(limits['changes'][-1]['at'])} UTC"
    if report["run"]["state"] in UNFINISHED and report["run"]["throttle_reason"]:
        yield "Throttled now", report["run"]["throttle_reason"]


def _charge(report: Mapping[str, Any]) -> tuple[str, str]:
    units, tokens = report["read_units"], report["tokens"]
    if tokens is None:
        most = f" of at most {units['limit']:,.0f}" if units["limit"] else ", without a limit"
        return "Read units", f"{units['spent']:,}{most}"
    cost = "" if tokens["cost"] is None else f", which cost {to_money(tokens['cost'])}"
    most = f" of at most {to_money(tokens['max_cost'])}" if tokens["max_cost"] else ", without a limit"
    return "Tokens", f"{tokens['spent']:,}{cost}{most}"


def _said(values: Mapping[str, Any]) -> str:
    """Return names and values in a line, without the empty ones and the moment."""
    named = {name.replace("_", " "): value for name, value in values.items() if value is not None and name != "at"}
    return ", ".join(f"{name} {_value(value)}" for name, value in named.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _took(seconds: float) -> str:
    return to_duration(seconds) if seconds >= 1 else "under 1 s"


def _rows(number: int) -> str:
    return "1 row is" if number == 1 else f"{number:,} rows are"
