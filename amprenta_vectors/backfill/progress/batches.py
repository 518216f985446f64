"""``migration_progress``: claiming a batch under a lease, fencing it, completing it and giving it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress import proof
from amprenta_vectors.backfill.progress.quarantine import RESOLVE, settle
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.errors import LeaseLost, RowError


@dataclass(frozen=True)
class Batch:
    """A claimed batch; ``attempt`` and the owner fence it: only they may complete it.

    ``claimed_at`` is the database's time of the claim; the batch is fetched later.
    """

    number: int
    keys: Sequence[str]
    attempt: int
    claimed_at: datetime


@dataclass(frozen=True)
class Outcome:
    """The outcome of a batch, counted in keys and rows."""

    written: int = 0
    replaced: int = 0
    """Rows among those written that held an older value of the source's."""
    skipped: int = 0
    missing: int = 0
    quarantined: int = 0
    checksum: int = 0


_COMPLETE = sa.text(
    "WITH resolved AS ("  # noqa: S608
    + RESOLVE
    + "), forgotten AS ("
    + proof.FORGET
    + """ AND :written > 0)
    UPDATE migration_progress
    SET status = 'done', keys_done = cardinality(keys), keys = CAST(:keep AS text[]),
        lease_expires_at = NULL, finished_at = clock_timestamp(), rows_written = :written,
        rows_replaced = :replaced, rows_skipped = :skipped, rows_missing = :missing,
        rows_quarantined = :quarantined, checksum = :checksum, last_error = NULL
    WHERE run_id = :run_id AND batch = :batch
    """
)


def session_tag(owner: str, batch: int) -> str:
    """Return the application_name of the transaction that writes a batch.

    Whoever takes over an expired lease ends the session by it.
    """
    return f"amprenta {owner} {batch}"


def end_expired_sessions(connection: Connection, run_id: int) -> None:
    """End the database sessions that still write batches whose lease has run out.

    A stopped process would otherwise hold its row locks for ever.
    """
    expired = connection.execute(
        sa.text("""
            SELECT owner, batch FROM migration_progress
            WHERE run_id = :run_id AND status = 'running' AND lease_expires_at < clock_timestamp()
        """),
        {"run_id": run_id},
    )
    _end_sessions(connection, [session_tag(row.owner, row.batch) for row in expired])


def _end_sessions(connection: Connection, tags: Sequence[str]) -> None:
    if tags:
        connection.execute(
            sa.text("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = ANY(CAST(:tags AS text[])) AND datname = current_database()
                  AND usename = current_user AND pid <> pg_backend_pid()
            """),
            {"tags": list(tags)},
        )


def end_session(connection: Connection, owner: str, batch: Batch) -> None:
    """End the database session in which ``owner`` still writes a batch that was given back."""
    _end_sessions(connection, [session_tag(owner, batch.number)])


def claim(connection: Connection, run_id: int, owner: str, lease_seconds: float) -> Batch | None:
    """Claim the first batch that is pending, or whose lease has run out; return None if there is none now.

    The session of the former owner is ended before the claim is committed. If there is nothing to claim, the sessions
    of expired leases are ended: one may have locked its batch already, and the next claim is to find that free.
    """
    row = connection.execute(
        sa.text("""
            WITH next AS (
                SELECT p.batch, p.owner AS former FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
                WHERE p.run_id = :run_id AND r.state = 'running' AND r.desired_state = 'running'
                  AND (p.status = 'pending' OR (p.status = 'running' AND p.lease_expires_at < clock_timestamp()))
                ORDER BY p.batch LIMIT 1 FOR UPDATE OF p SKIP LOCKED FOR KEY SHARE OF r
            )
            UPDATE migration_progress p
            SET status = 'running', owner = :owner, attempt = attempt + 1,
                lease_expires_at = clock_timestamp() + make_interval(secs => :lease),
                started_at = coalesce(started_at, clock_timestamp())
            FROM next WHERE p.run_id = :run_id AND p.batch = next.batch
            RETURNING p.batch, p.keys, p.attempt, clock_timestamp() AS claimed_at, next.former
        """),
        {"run_id": run_id, "owner": owner, "lease": lease_seconds},
    ).first()
    if row is None:
        end_expired_sessions(connection, run_id)
        return None
    if row.former is not None:
        _end_sessions(connection, [session_tag(row.former, row.batch)])
    return Batch(row.batch, row.keys, row.attempt, row.claimed_at)


def renew(connection: Connection, run_id: int, owner: str, batches: Sequence[int], lease_seconds: float) -> None:
    """Renew the leases of those ``batches`` that are still this owner's, and its lease as planner.

    Give only batches that the caller knows to have in hand: one whose claim was committed but whose reply was lost
    is to expire. A row that is locked is about to be done, and is not waited for.
    """
    values = {"run_id": run_id, "owner": owner, "batches": list(batches), "lease": lease_seconds}
    connection.execute(
        sa.text("""
            UPDATE migration_progress SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE run_id = :run_id AND batch IN (
                SELECT batch FROM migration_progress
                WHERE run_id = :run_id AND batch = ANY(CAST(:batches AS bigint[])) AND owner = :owner
                  AND status = 'running'
                FOR UPDATE SKIP LOCKED
            )
        """),
        values,
    )
    connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE id = :run_id AND plan_owner = :owner AND planned_at IS NULL
        """),
        values,
    )


def lock_batch(connection: Connection, run_id: int, owner: str, batch: Batch) -> Outcome | None:
    """Lock a batch that is still this owner's and attempt's, in the transaction that writes its rows: the fence.

    Call it after the rows are written and before `complete`: while they are written, the lease can still be renewed.
    Returns the outcome if this very attempt has committed already and its reply was lost with the connection. Raises
    `LeaseLost` if the batch is somebody else's, or the run was cancelled.
    """
    row = connection.execute(
        sa.text("""
            SELECT p.status, p.rows_written, p.rows_replaced, p.rows_skipped, p.rows_missing,
                   p.rows_quarantined, p.checksum
            FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
            WHERE p.run_id = :run_id AND p.batch = :batch AND p.owner = :owner AND p.attempt = :attempt
              AND (p.status = 'done' OR (p.status = 'running' AND r.state IN ('running', 'paused')))
            FOR UPDATE OF p FOR KEY SHARE OF r
        """),
        {"run_id": run_id, "batch": batch.number, "owner": owner, "attempt": batch.attempt},
    ).first()
    if row is None:
        raise LeaseLost(f"batch {batch.number} belongs to another worker now")
    if row.status == "running":
        return None
    return Outcome(
        row.rows_written, row.rows_replaced, row.rows_skipped, row.rows_missing, row.rows_quarantined, row.checksum
    )


def complete(
    connection: Connection,
    run: Run,
    batch: Batch,
    outcome: Outcome,
    errors: Sequence[RowError],
    keep: Sequence[str] = (),
) -> None:
    """Record a batch as done, and what became of its keys, after `lock_batch` and in the transaction of its rows.

    ``keep`` replaces its source keys: the target keys that it saw, if the run is to know them at its end.
    """
    values = settle(connection, run, batch.number, errors)
    connection.execute(_COMPLETE, {**values, **asdict(outcome), "keep": list(keep)})


def release(connection: Connection, run_id: int, owner: str, batch: Batch, error: str | None = None) -> None:
    """Give a batch back unfinished, so that no process has to wait for its lease to run out."""
    connection.execute(
        sa.text("""
            UPDATE migration_progress SET status = 'pending', owner = NULL, lease_expires_at = NULL, last_error = :error
            WHERE run_id = :run_id AND batch = :batch AND owner = :owner AND attempt = :attempt AND status = 'running'
        """),
        {"run_id": run_id, "batch": batch.number, "owner": owner, "attempt": batch.attempt, "error": error},
    )
