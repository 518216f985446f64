"""A snapshot of a run, read in one round trip; a role that may only read is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run, to_run

RECENT_SECONDS = 30
SHORTEST_BUCKET_SECONDS = 1
LATEST_EVENTS = 200
WAITS = (Event.PAUSED, Event.RESUMED, Event.THROTTLED, Event.UNTHROTTLED, Event.FINISHED, Event.CANCELLED)
"""The events that start or end a wait of a run."""


@dataclass(frozen=True)
class Bucket:
    """The work done in one stretch of time; ``begin`` is in seconds since the run started."""

    begin: float
    batches: int
    keys: int
    rows: int


@dataclass(frozen=True)
class Process:
    """A process that has batches in hand; ``lease_seconds`` is what is left of the lease that expires first."""

    owner: str
    batches: int
    lease_seconds: float


@dataclass(frozen=True)
class Happening:
    """An event of a run; ``at`` is in seconds since the run started."""

    at: float
    event: Event
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class IndexBuild:
    """An index of the run's table that is being built now, as PostgreSQL reports it."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Snapshot:
    """Everything there is to show of a run. ``seconds`` is its age, or how long it took; the buckets cover just that.

    ``source_rates`` has the requests per second by kind, ``events`` the latest of `WAITS` in order, and ``verified``
    the detail of the last verification.
    """

    now: datetime
    run: Run
    counts: Counts
    seconds: float
    recent_keys: int
    bucket_seconds: float
    buckets: Sequence[Bucket]
    processes: Sequence[Process]
    quarantined: Mapping[str, int]
    source_rates: Mapping[str, float]
    indexes: Mapping[str, bool]
    """The deferred indexes of the run's column, and whether they are built by now."""
    builds: Sequence[IndexBuild]
    events: Sequence[Happening]
    verified: Mapping[str, Any] | None


# One scan of the run's batches feeds the sums and the timeline; the others touch a few rows each.
_LOOK = sa.text("""
    WITH run AS (
        SELECT *, clock_timestamp() AS now, coalesce(finished_at, clock_timestamp()) - started_at AS age
        FROM migration_run WHERE id = :run_id
    ), binning AS (
        SELECT started_at, now - make_interval(secs => :recent) AS recent,
               greatest(make_interval(secs => :shortest), age / :buckets) AS width FROM run
    ), cut AS (
        -- OFFSET 0 hides that the times differ, so that PostgreSQL expects few bins and sums them without sorting.
        SELECT date_bin(b.width, p.finished_at, b.started_at) AS begin, p.status, p.keys_done, p.rows_written,
               p.rows_replaced, p.rows_skipped, p.rows_missing, p.rows_quarantined,
               p.finished_at > b.recent AS is_recent
        FROM migration_progress p CROSS JOIN binning b WHERE p.run_id = :run_id OFFSET 0
    ), bins AS (
        SELECT begin, count(*) AS batches,
               count(*) FILTER (WHERE status = 'done') AS done,
               count(*) FILTER (WHERE status = 'running') AS running,
               sum(keys_done)::bigint AS keys, sum(rows_written)::bigint AS written,
               sum(rows_replaced)::bigint AS replaced,
               sum(rows_skipped)::bigint AS skipped, sum(rows_missing)::bigint AS missing,
               sum(rows_quarantined)::bigint AS quarantined,
               coalesce(sum(keys_done) FILTER (WHERE is_recent), 0)::bigint AS recent
        FROM cut GROUP BY begin
    )
    SELECT run.*, extract(epoch FROM run.age)::double precision AS seconds,
           (SELECT extract(epoch FROM width)::double precision FROM binning) AS bucket_seconds,
           (
               SELECT jsonb_agg(
                   to_jsonb(b) || jsonb_build_object('begin', extract(epoch FROM b.begin - run.started_at))
                   ORDER BY b.begin
               ) FROM bins b
           ) AS bins,
           (
               SELECT jsonb_agg(to_jsonb(p) ORDER BY p.owner) FROM (
                   SELECT owner, sum(batches) AS batches,
                          extract(epoch FROM min(lease_expires_at) - clock_timestamp()) AS lease_seconds
                   FROM (
                       SELECT owner, 1 AS batches, lease_expires_at FROM migration_progress
                       WHERE run_id = :run_id AND status = 'running'
                       UNION ALL
                       SELECT run.plan_owner, 0, run.plan_lease_expires_at
                       WHERE run.planned_at IS NULL AND run.plan_owner IS NOT NULL
                   ) l GROUP BY owner
               ) p
           ) AS processes,
           (
               SELECT jsonb_object_agg(e.reason, e.rows) FROM (
                   SELECT reason, count(*) AS rows FROM migration_quarantine
                   WHERE run_id = :run_id AND resolved_at IS NULL GROUP BY reason
               ) e
           ) AS quarantined,
           (SELECT jsonb_object_agg(kind, rate) FROM migration_limit WHERE run_id = :run_id) AS source_rates,
           (
               SELECT jsonb_object_agg(index_name, built_at IS NOT NULL) FROM migration_index WHERE target = run.target
           ) AS indexes,
           (
               SELECT jsonb_agg(jsonb_build_object(
                   'phase', s.phase,
                   'done', CASE WHEN s.tuples_total > 0 THEN s.tuples_done ELSE s.blocks_done END,
                   'total', CASE WHEN s.tuples_total > 0 THEN s.tuples_total ELSE s.blocks_total END
               ) ORDER BY s.pid)
               FROM pg_stat_progress_create_index s
               JOIN pg_class c ON c.oid = s.relid JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE s.datname = current_database() AND (
                   starts_with(run.target, c.relname || '.')
                   OR starts_with(run.target, n.nspname || '.' || c.relname || '.')
               )
           ) AS builds,
           (
               SELECT jsonb_agg(jsonb_build_object(
                   'at', extract(epoch FROM e.at - run.started_at), 'event', e.event, 'detail', e.detail
               ) ORDER BY e.id) FROM (
                   SELECT id, at, event, detail FROM migration_event
                   WHERE run_id = :run_id AND event = ANY(CAST(:kinds AS text[])) ORDER BY id DESC LIMIT :events
               ) e
           ) AS events,
           (
               SELECT detail FROM migration_event WHERE run_id = :run_id AND event = 'verified' ORDER BY id DESC LIMIT 1
           ) AS verified
    FROM run
""")


def look(connection: Connection, run_id: int, *, buckets: int) -> Snapshot | None:
    """Return the run as it is now, its time cut into at most about ``buckets`` stretches of a second or more each.

    Returns None if there is no such run.
    """
    row = connection.execute(
        _LOOK,
        {
            "run_id": run_id,
            "buckets": buckets,
            "recent": RECENT_SECONDS,
            "shortest": SHORTEST_BUCKET_SECONDS,
            "events": LATEST_EVENTS,
            "kinds": list(WAITS),
        },
    ).first()
    return None if row is None else _to_snapshot(row)


def _to_snapshot(row: Any) -> Snapshot:
    bins, processes = row.bins or [], [Process(**process) for process in row.processes or []]
    quarantined = row.quarantined or {}

    def total(name: str) -> int:
        return sum(part[name] for part in bins)

    return Snapshot(
        now=row.now,
        run=to_run(row),
        counts=Counts(
            batches=total("batches"),
            batches_done=total("done"),
            batches_running=total("running"),
            keys_done=total("keys"),
            written=total("written"),
            replaced=total("replaced"),
            skipped=total("skipped"),
            missing=total("missing"),
            quarantined=total("quarantined"),
            in_quarantine=sum(quarantined.values()),
            owners=sum(process.lease_seconds > 0 for process in processes),
        ),
        seconds=row.seconds or 0.0,
        recent_keys=total("recent"),
        bucket_seconds=row.bucket_seconds,
        buckets=[
            Bucket(part["begin"], part["done"], part["keys"], part["written"])
            for part in bins
            if part["begin"] is not None
        ],
        processes=processes,
        quarantined=quarantined,
        source_rates=row.source_rates or {},
        indexes=row.indexes or {},
        builds=[IndexBuild(**build) for build in row.builds or []],
        events=[Happening(part["at"], Event(part["event"]), part["detail"]) for part in row.events or []],
        verified=row.verified,
    )
