"""The figures of a run, summed over its batches."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True)
class Counts:
    """A run's figures, summed over its batches."""

    batches: int
    batches_done: int
    batches_running: int
    keys_done: int
    """Source keys that need no further work; a key map may make several rows of a key, or none."""
    written: int
    replaced: int
    skipped: int
    missing: int
    quarantined: int
    in_quarantine: int
    """Rows listed with a reason that no later run has resolved, including rows left alone and missing ones."""
    owners: int
    """The processes that hold the lease of a batch, or of the plan."""


def count(connection: Connection, run_id: int) -> Counts:
    """Return the run's figures as they are now."""
    row = connection.execute(
        sa.text("""
            SELECT count(*) AS batches, count(*) FILTER (WHERE status = 'done') AS batches_done,
                   count(*) FILTER (WHERE status = 'running') AS batches_running,
                   coalesce(sum(keys_done), 0)::bigint AS keys_done,
                   coalesce(sum(rows_written), 0)::bigint AS written,
                   coalesce(sum(rows_replaced), 0)::bigint AS replaced,
                   coalesce(sum(rows_skipped), 0)::bigint AS skipped,
                   coalesce(sum(rows_missing), 0)::bigint AS missing,
                   coalesce(sum(rows_quarantined), 0)::bigint AS quarantined,
                   (
                       SELECT count(*) FROM (
                           SELECT owner FROM migration_progress
                           WHERE run_id = :run_id AND status = 'running' AND lease_expires_at > clock_timestamp()
                           UNION
                           SELECT plan_owner FROM migration_run
                           WHERE id = :run_id AND planned_at IS NULL AND plan_lease_expires_at > clock_timestamp()
                       ) AS at_work
                   ) AS owners,
                   (
                       SELECT count(*) FROM migration_quarantine e WHERE e.run_id = :run_id AND resolved_at IS NULL
                   ) AS in_quarantine
            FROM migration_progress WHERE run_id = :run_id
        """),
        {"run_id": run_id},
    ).one()
    return Counts(**row._mapping)
