"""The facts of a run's report, as JSON for the change request; docs/report.md says what each field means.

Counts, keys, reasons and times only: no vector, no text, no secret, and only the first line of an error, which holds no
row.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress import history
from amprenta_vectors.backfill.progress.charges import charge_of
from amprenta_vectors.backfill.progress.events import Event, RunEvent, list_events
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.snapshot import Happening, Snapshot, look
from amprenta_vectors.backfill.report.timeline import Span, to_spans, waited_seconds
from amprenta_vectors.backfill.report.undo import undo_steps
from amprenta_vectors.db import name_database
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.server import server_versions

SCHEMA = 1
"""The version of the format: it rises if a field changes its meaning or goes; new fields may come at any time."""
MOST_BUCKETS = 240
MOST_SHARES, MOST_SPANS, MOST_EVENTS, MOST_CHANGES, FIRST_KEYS = 100, 200, 200, 100, 20


def collect_report(connection: Connection, run_id: int) -> dict[str, Any]:
    """Return the report of a run, ended or not, as JSON values; a few hundred entries however long the run was.

    Raises `ConfigError` if there is no such run.
    """
    snapshot = look(connection, run_id, buckets=MOST_BUCKETS)
    if snapshot is None:
        raise ConfigError(f"there is no run {run_id}", hint="amprenta-vectors status lists them")
    run, events = snapshot.run, list_events(connection, run_id)
    spans = to_spans(snapshot, _since_start(run, events))
    return {
        "schema": SCHEMA,
        "made_at": snapshot.now.isoformat(),
        "database": name_database(connection),
        "run": _run(snapshot, spans),
        "moved": {
            "source_kind": run.source_kind,
            "source": run.source,
            "vector_table": run.vector_table,
            "target": run.target,
            "scope": run.scope,
            "model": run.model,
            "dimension": run.dimension,
            "keys_from": run.keys_from,
            "key_map": run.key_map,
            "row_limit": run.row_limit,
        },
        "counts": {"keys_planned": run.planned_keys, **_counts(snapshot)},
        "processes": _processes(connection, snapshot),
        "timeline": _timeline(snapshot, spans),
        "quarantined": {
            "by_reason": dict(snapshot.quarantined),
            "first_keys": history.first_quarantined(connection, run_id, FIRST_KEYS),
            "resolved_since": history.count_resolved(connection, run_id),
        },
        **charge_of(run).to_json(),
        "verification": _last(events, Event.VERIFIED),
        "indexes": _indexes(connection, run, events),
        "limits": {
            "in_force": run.limits,
            "source_rates": dict(snapshot.source_rates),
            "changes": _limit_changes(events),
        },
        "events": _events(events),
        "versions": _versions(connection),
        "undo": [asdict(step) for step in undo_steps(run)],
    }


def _run(snapshot: Snapshot, spans: Sequence[Span]) -> dict[str, Any]:
    run = snapshot.run
    waited = waited_seconds(spans, 0.0, snapshot.seconds)
    return {
        "id": run.id,
        "state": run.state,
        "desired_state": run.desired_state,
        "created_at": _moment(run.created_at),
        "started_at": _moment(run.started_at),
        "finished_at": _moment(run.finished_at),
        "seconds": snapshot.seconds,
        "working_seconds": snapshot.seconds - waited,
        "throttle_reason": run.throttle_reason,
        "last_error": _first_line(run.last_error),
    }


def _counts(snapshot: Snapshot) -> dict[str, int]:
    counts = asdict(snapshot.counts)
    del counts["owners"], counts["batches_running"]
    return counts


def _processes(connection: Connection, snapshot: Snapshot) -> dict[str, Any]:
    shares = history.list_shares(connection, snapshot.run.id)
    listed = [
        {**asdict(share), "began_at": _moment(share.began_at), "ended_at": _moment(share.ended_at)}
        for share in shares[:MOST_SHARES]
    ]
    return {"number": len(shares), "at_work": snapshot.counts.owners, "first": listed}


def _timeline(snapshot: Snapshot, spans: Sequence[Span]) -> dict[str, Any]:
    """Return the timeline; of very many spans only the longest are listed, but the sums are of all."""
    longest = sorted(spans, key=lambda span: -span.seconds)[:MOST_SPANS]
    kinds = ("paused", "throttled", "silent")
    return {
        "bucket_seconds": snapshot.bucket_seconds,
        "buckets": [asdict(bucket) for bucket in snapshot.buckets],
        "waits": [asdict(span) for span in sorted(longest, key=lambda span: span.begin)],
        "waits_left_out": len(spans) - len(longest),
        "waited_seconds": {kind: sum((span.seconds for span in spans if span.kind == kind), 0.0) for kind in kinds},
    }


def _indexes(connection: Connection, run: Run, events: Sequence[RunEvent]) -> list[dict[str, Any]]:
    """Return the indexes of the run's column that a load deferred, with the build's length if this run built them."""
    seconds = _build_seconds(events)
    return [
        {
            "name": index.name,
            "definition": index.definition,
            "deferred_at": _moment(index.deferred_at),
            "built_at": _moment(index.built_at),
            "build_seconds": seconds if index.built_at is not None else None,
        }
        for index in history.list_deferred(connection, run.target)
    ]


def _build_seconds(events: Sequence[RunEvent]) -> float | None:
    begun: datetime | None = None
    taken: timedelta | None = None
    for event in events:
        if event.event == Event.INDEX_BUILDING:
            begun = event.at
        elif event.event == Event.INDEX_BUILT and begun is not None:
            taken = event.at - begun
    return None if taken is None else taken.total_seconds()


def _events(events: Sequence[RunEvent]) -> dict[str, Any]:
    """Return the events; of very many only the first and the last."""
    half = MOST_EVENTS // 2
    kept = events if len(events) <= MOST_EVENTS else [*events[:half], *events[-half:]]
    listed = [
        {
            "at": _moment(event.at),
            "event": event.event,
            "detail": {name: _first_line(value) for name, value in event.detail.items()},
        }
        for event in kept
    ]
    return {"left_out": len(events) - len(kept), "listed": listed}


def _limit_changes(events: Sequence[RunEvent]) -> list[dict[str, Any]]:
    changes = [event for event in events if event.event == Event.LIMITS_CHANGED]
    return [{"at": _moment(event.at), "limits": event.detail} for event in changes[-MOST_CHANGES:]]


def _versions(connection: Connection) -> dict[str, str | None]:
    server, pgvector = server_versions(connection)
    return {
        "amprenta_vectors": version("amprenta_vectors"),
        "python": platform.python_version(),
        "postgresql": f"{server // 10000}.{server % 10000}",
        "pgvector": pgvector,
    }


def _last(events: Sequence[RunEvent], kind: Event) -> dict[str, Any] | None:
    found = [event for event in events if event.event == kind]
    return {"at": _moment(found[-1].at), **found[-1].detail} if found else None


def _since_start(run: Run, events: Sequence[RunEvent]) -> list[Happening]:
    if run.started_at is None:
        return []
    return [Happening((event.at - run.started_at).total_seconds(), event.event, event.detail) for event in events]


def _first_line(value: Any) -> Any:
    """Return the first line of a text, which ends as it is or escaped: what PostgreSQL adds may quote the row."""
    return value.partition("\n")[0].partition("\\n")[0] if isinstance(value, str) else value


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
