"""The history of a run beyond its figures, for its report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True)
class Share:
    """A process's share of a run: the batches that it completed, from the start of its first to the end of its last."""

    owner: str
    batches: int
    keys: int
    rows: int
    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True)
class DeferredIndex:
    """A row of ``migration_index``."""

    name: str
    definition: str
    deferred_at: datetime
    built_at: datetime | None


def list_shares(connection: Connection, run_id: int) -> list[Share]:
    """Return each process's share of a run, in the order of their first batches."""
    rows = connection.execute(
        sa.text("""
            SELECT owner, count(*) AS batches, sum(keys_done)::bigint AS keys, sum(rows_written)::bigint AS rows,
                   min(started_at) AS began_at, max(finished_at) AS ended_at
            FROM migration_progress WHERE run_id = :run_id AND status = 'done' AND owner IS NOT NULL
            GROUP BY owner ORDER BY began_at, owner
        """),
        {"run_id": run_id},
    )
    return [Share(**row._mapping) for row in rows]


def first_quarantined(connection: Connection, run_id: int, most: int) -> dict[str, list[str]]:
    """Return at most ``most`` keys of each reason that rows are still quarantined for, in the order of the keys."""
    rows = connection.execute(
        sa.text("""
            SELECT reason, array_agg(key ORDER BY key) AS keys FROM (
                SELECT reason, key, row_number() OVER (PARTITION BY reason ORDER BY key) AS place
                FROM migration_quarantine WHERE run_id = :run_id AND resolved_at IS NULL
            ) e WHERE place <= :most GROUP BY reason ORDER BY reason
        """),
        {"run_id": run_id, "most": most},
    )
    return {row.reason: row.keys for row in rows}


def count_resolved(connection: Connection, run_id: int) -> int:
    """Return how many quarantined rows have been resolved since."""
    statement = sa.text("SELECT count(*) FROM migration_quarantine WHERE run_id = :run_id AND resolved_at IS NOT NULL")
    return int(connection.execute(statement, {"run_id": run_id}).scalar_one())


def list_deferred(connection: Connection, target: str) -> list[DeferredIndex]:
    """Return every index of a column that was ever deferred."""
    rows = connection.execute(
        sa.text("""
            SELECT index_name AS name, definition, deferred_at, built_at FROM migration_index
            WHERE target = :target ORDER BY index_name
        """),
        {"target": target},
    )
    return [DeferredIndex(**row._mapping) for row in rows]
