"""Deletes what nobody asks for any more: runs that another stands for, and routine events of runs that ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.forgetting import delete_runs

ROUTINE = (
    Event.JOINED,
    Event.LEFT,
    Event.PAUSED,
    Event.RESUMED,
    Event.THROTTLED,
    Event.UNTHROTTLED,
    Event.LIMITS_CHANGED,
    Event.BATCH_CUT,
)
"""Events that only a run's own report tells of."""

# Of runs alike, which read and did the same with the same end, the last stands for the others: what asks for earlier
# runs (gate, models, resume, report of a verification) finds the same answer.
_SUPERSEDED = sa.text("""
    WITH ended AS (
        SELECT r.id, r.finished_at, r.verified_at,
               max(r.id) FILTER (WHERE r.verified_at IS NOT NULL) OVER (PARTITION BY r.target, r.scope) AS proof,
               max(r.id) FILTER (WHERE r.state = 'finished') OVER (PARTITION BY r.target, r.scope) AS last_finished,
               max(r.id) OVER (
                   PARTITION BY r.target, r.scope, r.namespace, r.source, r.model, r.fingerprint, r.keys_from, r.state,
                                w.wrote
               ) AS last_alike
        FROM migration_run r CROSS JOIN LATERAL (
            SELECT EXISTS (SELECT 1 FROM migration_progress p WHERE p.run_id = r.id AND p.rows_written > 0) AS wrote
        ) w
        WHERE r.state IN ('finished', 'failed', 'cancelled')
    )
    SELECT id FROM ended
    WHERE finished_at < :moment AND id NOT IN (coalesce(proof, 0), coalesce(last_finished, 0), last_alike)
      AND NOT EXISTS (SELECT 1 FROM migration_quarantine q WHERE q.run_id = ended.id AND q.resolved_at IS NULL)
      AND NOT EXISTS (SELECT 1 FROM migration_insert i WHERE i.run_id = ended.id)
      AND NOT EXISTS (
          SELECT 1 FROM migration_event e WHERE e.run_id = ended.id AND (e.at >= :moment OR e.event = :rolled_back)
      )
    ORDER BY id
""")

_EVENTS = sa.text("""
    DELETE FROM migration_event e USING migration_run r
    WHERE r.id = e.run_id AND r.finished_at < :moment AND e.at < :moment AND (
        e.event = ANY(CAST(:routine AS text[])) OR e.event = :verified AND EXISTS (
            SELECT 1 FROM migration_event later
            WHERE later.run_id = e.run_id AND later.event = e.event AND later.id > e.id
        )
    )
""")


def superseded_runs(connection: Connection, moment: datetime) -> Sequence[int]:
    """Return the runs that ended before ``moment`` and that nothing rests on.

    What stays: of each slice the run that was verified last, with its proof, and the one that finished last; of runs
    alike the last; runs with rows still in quarantine, or with inserted rows on record, and runs that were rolled back.
    """
    values = {"moment": moment, "rolled_back": Event.ROLLED_BACK}
    return list(connection.execute(_SUPERSEDED, values).scalars())


def prune_runs(connection: Connection, moment: datetime) -> dict[str, int]:
    """Delete superseded runs, and the routine events of the others that ended; return how many rows, by table."""
    numbers = superseded_runs(connection, moment)
    deleted = delete_runs(connection, numbers) if numbers else {}
    values = {"moment": moment, "routine": [str(event) for event in ROUTINE], "verified": Event.VERIFIED}
    deleted["migration_event"] = deleted.get("migration_event", 0) + connection.execute(_EVENTS, values).rowcount
    return deleted
