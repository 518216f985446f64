"""``migration_limit`` and ``migration_run.read_units``: the limits that all processes of a run share.

The column counts what the run is charged by, which for texts are tokens.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.limits.token_bucket import Kind, TokenBucket


def open_bucket(connection: Connection, run_id: int, kind: Kind, rate: float) -> None:
    """Create the run's token bucket of that kind if it does not exist."""
    connection.execute(
        sa.text("""
            INSERT INTO migration_limit (run_id, kind, rate, filled_at)
            VALUES (:run_id, :kind, :rate, clock_timestamp()) ON CONFLICT DO NOTHING
        """),
        {"run_id": run_id, "kind": kind, "rate": rate},
    )


def lock_bucket(connection: Connection, run_id: int, kind: Kind) -> tuple[TokenBucket, float] | None:
    """Return the token bucket, locked until the transaction ends, and the time now, in seconds by the database's clock.

    Returns None if there is no limit and nothing was refused.
    """
    row = connection.execute(
        sa.text("""
            SELECT rate, available, extract(epoch FROM filled_at)::float8 AS filled_at,
                   extract(epoch FROM lowered_at)::float8 AS lowered_at,
                   extract(epoch FROM blocked_until)::float8 AS blocked_until,
                   extract(epoch FROM clock_timestamp())::float8 AS now
            FROM migration_limit WHERE run_id = :run_id AND kind = :kind FOR UPDATE
        """),
        {"run_id": run_id, "kind": kind},
    ).first()
    if row is None:
        return None
    return TokenBucket(row.rate, row.available, row.filled_at, row.lowered_at, row.blocked_until), row.now


def store_bucket(connection: Connection, run_id: int, kind: Kind, bucket: TokenBucket) -> None:
    """Write back the changed bucket that `lock_bucket` gave."""
    connection.execute(
        sa.text("""
            UPDATE migration_limit
            SET rate = :rate, available = :available, filled_at = to_timestamp(:filled_at),
                lowered_at = to_timestamp(:lowered_at), blocked_until = to_timestamp(:blocked_until)
            WHERE run_id = :run_id AND kind = :kind
        """),
        {
            "run_id": run_id,
            "kind": kind,
            "rate": bucket.rate,
            "available": bucket.available,
            "filled_at": bucket.filled_at,
            "lowered_at": bucket.lowered_at,
            "blocked_until": bucket.blocked_until,
        },
    )


def drop_bucket(connection: Connection, run_id: int, kind: Kind) -> None:
    """Delete the bucket: there is no limit any more."""
    connection.execute(
        sa.text("DELETE FROM migration_limit WHERE run_id = :run_id AND kind = :kind"),
        {"run_id": run_id, "kind": kind},
    )


SHARE = 10
"""The part, one in so many, of the units left below the limit that a process may reserve ahead of need."""


def reserve_read_units(connection: Connection, run_id: int, *, needed: int, wanted: int, limit: int | None) -> int:
    """Count ``wanted`` units as spent, near the limit fewer, but at least ``needed``; 0 if those would pass it.

    Returns how many. The row is locked first, so that the sum never passes the limit, whatever the number of
    processes.
    """
    values = {"run_id": run_id, "needed": needed, "wanted": max(needed, wanted), "limit": limit, "share": SHARE}
    granted = connection.execute(
        sa.text("""
            WITH held AS MATERIALIZED (
                SELECT read_units FROM migration_run WHERE id = :run_id FOR NO KEY UPDATE
            ), decided AS MATERIALIZED (
                SELECT CASE
                    WHEN CAST(:limit AS bigint) IS NULL THEN CAST(:wanted AS bigint)
                    WHEN read_units + :needed > :limit THEN 0
                    ELSE greatest(:needed, least(:wanted, (:limit - read_units) / :share))
                END AS granted FROM held
            )
            UPDATE migration_run r SET read_units = r.read_units + decided.granted
            FROM decided WHERE r.id = :run_id
            RETURNING decided.granted
        """),
        values,
    ).scalar_one()
    return int(granted)


def give_back_read_units(connection: Connection, run_id: int, units: int) -> None:
    """Subtract reserved units that were not spent from those of the run."""
    connection.execute(
        sa.text("UPDATE migration_run SET read_units = read_units - :units WHERE id = :run_id"),
        {"run_id": run_id, "units": units},
    )
