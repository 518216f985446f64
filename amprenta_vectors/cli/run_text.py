"""A run in words and in JSON, for `status` and the lines of a run in progress."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from amprenta_vectors.backfill.progress.charges import charge_of
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.snapshot import Snapshot
from amprenta_vectors.backfill.progress.states import UNFINISHED, RunState
from amprenta_vectors.backfill.report.timeline import Outlook, Remaining, to_duration


def to_remaining(remaining: Remaining | None) -> str:
    """Return how long is left, as a range."""
    if remaining is None:
        return "time left not known yet"
    least = to_duration(remaining.least)
    if remaining.most is None:
        return f"at least {least} left"
    most = to_duration(remaining.most)
    return f"{least} left" if most == least else f"{least} to {most} left"


def held_by(run: Run) -> str | None:
    """Return why an unfinished run does not move, if somebody or something holds it; else None."""
    if run.state == RunState.PAUSED:
        return f"paused; resume with: amprenta-vectors resume {run.id}"
    if run.state in UNFINISHED and run.desired_state != RunState.RUNNING:
        return "pausing" if run.desired_state == RunState.PAUSED else "being cancelled"
    return f"throttled: {run.throttle_reason}" if run.state == RunState.RUNNING and run.throttle_reason else None


def to_state(run: Run, counts: Counts) -> str:
    """Return the state of a run, and how many processes are at work on it."""
    if run.state in UNFINISHED and run.source is not None:
        return f"{run.state}, {counts.owners} process(es) at work" if counts.owners else f"{run.state}, nobody at work"
    return run.state


def to_scope(run: Run) -> str:
    """Return the scope of a run as it is listed."""
    return "".join(f" {name}={value or '(default)'}" for name, value in run.scope.items())


def to_pace(outlook: Outlook) -> str:
    """Return the rates of a run in progress, and the time left."""
    return f"{outlook.recent:,.0f}/s now, {outlook.mean:,.0f}/s on average, {to_remaining(outlook.remaining)}"


def to_charge(run: Run) -> str | None:
    """Return what a run was charged, and its limit; None if there is neither."""
    charge = charge_of(run)
    return None if not charge.spent and charge.limit is None else charge.describe()


def to_json(snapshot: Snapshot, outlook: Outlook) -> dict[str, Any]:
    """Return a run as JSON; docs/control.md says what each field means."""
    run, counts = snapshot.run, snapshot.counts
    return {
        "run": run.id,
        "state": run.state,
        "desired_state": run.desired_state,
        "at": snapshot.now.isoformat(),
        "seconds": snapshot.seconds,
        "source": run.source,
        "target": run.target,
        "scope": run.scope,
        "keys": {"done": counts.keys_done, "expected": outlook.keys_expected, "listed": run.planned_at is not None},
        "batches": {"done": counts.batches_done, "running": counts.batches_running, "planned": counts.batches},
        "rows": {name: getattr(counts, name) for name in ("written", "skipped", "missing", "quarantined")},
        "quarantined": dict(snapshot.quarantined),
        "keys_per_second": {"recent": outlook.recent, "mean": outlook.mean},
        "remaining_seconds": None if outlook.remaining is None else asdict(outlook.remaining),
        "processes": [asdict(process) for process in snapshot.processes],
        "throttle_reason": run.throttle_reason,
        **charge_of(run).to_json(),
        "source_rates": dict(snapshot.source_rates),
        "indexes": dict(snapshot.indexes),
        "builds": [asdict(build) for build in snapshot.builds],
        "verification": snapshot.verified,
        "last_error": run.last_error,
    }
