"""``migration_progress``: how long batches took, and cutting a batch that timed out in two."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.batches import Batch
from amprenta_vectors.backfill.progress.events import Event, record_event


@dataclass(frozen=True)
class Timing:
    """The time that a batch done at its first attempt took, from its claim to its commit."""

    batch: int
    keys: int
    seconds: float


@dataclass(frozen=True)
class Cut:
    """A batch of ``keys`` keys timed out and was cut in two."""

    event_id: int
    keys: int


def list_timings(connection: Connection, run_id: int, most: int) -> list[Timing]:
    """Return the timings of the last ``most`` batches done, the last in planned order first.

    Batches are done in about the order in which they were planned. One that was claimed again waited in between, and
    does not count.
    """
    rows = connection.execute(
        sa.text("""
            SELECT batch, keys_done, extract(epoch FROM finished_at - started_at)::double precision AS seconds
            FROM migration_progress WHERE run_id = :run_id AND status = 'done' AND attempt = 1
            ORDER BY batch DESC LIMIT :most
        """),
        {"run_id": run_id, "most": most},
    )
    return [Timing(row.batch, row.keys_done, row.seconds) for row in rows]


def last_cut(connection: Connection, run_id: int) -> Cut | None:
    """Return the last batch of a run that was cut in two."""
    row = connection.execute(
        sa.text("""
            SELECT id, CAST(detail ->> 'keys' AS bigint) AS keys FROM migration_event
            WHERE run_id = :run_id AND event = :event ORDER BY id DESC LIMIT 1
        """),
        {"run_id": run_id, "event": Event.BATCH_CUT},
    ).first()
    return None if row is None else Cut(row.id, row.keys)


def cut_batch(connection: Connection, run_id: int, owner: str, batch: Batch, error: str) -> None:
    """Give a batch back as two of half its keys each; do nothing if it is not this owner's any more."""
    # One at a time, and none beside the planner, so that every batch gets a number of its own.
    connection.execute(sa.text("SELECT 1 FROM migration_run WHERE id = :id FOR NO KEY UPDATE"), {"id": run_id})
    middle = len(batch.keys) // 2
    first, second = list(batch.keys[:middle]), list(batch.keys[middle:])
    values = {"run_id": run_id, "batch": batch.number, "owner": owner, "attempt": batch.attempt, "error": error}
    given_back = connection.execute(
        sa.text("""
            UPDATE migration_progress
            SET status = 'pending', owner = NULL, lease_expires_at = NULL, last_error = :error, keys = :keys,
                last_key = :last_key
            WHERE run_id = :run_id AND batch = :batch AND owner = :owner AND attempt = :attempt AND status = 'running'
        """),
        {**values, "keys": first, "last_key": first[-1]},
    )
    if given_back.rowcount == 0:
        return
    connection.execute(
        sa.text("""
            INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, last_error)
            SELECT :run_id, max(batch) + 1, :first_key, :last_key, CAST(:keys AS text[]), :error
            FROM migration_progress WHERE run_id = :run_id
        """),
        {"run_id": run_id, "first_key": second[0], "last_key": second[-1], "keys": second, "error": error},
    )
    record_event(connection, run_id, Event.BATCH_CUT, {"batch": batch.number, "keys": len(batch.keys)})
