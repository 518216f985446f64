"""The plan of a run: how far its keys are cut into batches; one process of a run plans at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import LeaseLost
from amprenta_vectors.pg.arrays import array_literal


@dataclass(frozen=True)
class Plan:
    """How far the keys of a run are cut into batches: the token of the next page, and how many keys are in batches."""

    token: str | None
    planned_keys: int


def claim_plan(connection: Connection, run_id: int, owner: str, lease_seconds: float) -> Plan | None:
    """Become, or stay, the one planner of a run; return None if another process is, or there is nothing to plan now.

    There is nothing to plan if the plan is complete, or the run is not running, or is to stop.
    """
    row = connection.execute(
        sa.text("""
            UPDATE migration_run
            SET plan_owner = :owner, plan_lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE id = :id AND planned_at IS NULL AND state = 'running' AND desired_state = 'running'
              AND (plan_owner IS NULL OR plan_owner = :owner OR plan_lease_expires_at < clock_timestamp())
            RETURNING plan_token, planned_keys
        """),
        {"id": run_id, "owner": owner, "lease": lease_seconds},
    ).first()
    return None if row is None else Plan(row.plan_token, row.planned_keys)


def extend_plan(
    connection: Connection,
    run_id: int,
    owner: str,
    plan: Plan,
    batches: Sequence[Sequence[str]],
    token: str | None,
    *,
    complete: bool,
) -> Plan:
    """Store batches and the token after them, or that the plan is ``complete``; return the longer plan.

    Raises `LeaseLost` if the run no longer stands at ``plan``: another process plans it, it was cancelled, or this
    very call was committed before and its reply was lost.
    """
    keys = sum(map(len, batches))
    row = connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_token = :token, planned_keys = planned_keys + :keys,
                planned_at = CASE WHEN :complete THEN clock_timestamp() END
            WHERE id = :id AND plan_owner = :owner AND planned_at IS NULL AND state = 'running'
              AND planned_keys = :before
            RETURNING id
        """),
        {
            "id": run_id,
            "owner": owner,
            "token": token,
            "keys": keys,
            "complete": complete,
            "before": plan.planned_keys,
        },
    ).first()
    if row is None:
        raise LeaseLost("the plan of this run is not where this process left it")
    # Not in the statement before: that may have waited for a batch to be cut in two, and does not see the new one.
    _store(connection, run_id, batches)
    return Plan(token, plan.planned_keys + keys)


def plan_given(connection: Connection, run_id: int, keys: Sequence[str], batch_size: int) -> None:
    """Store all batches of a run whose keys are known; a key that is given twice is done once.

    Call it in the transaction that starts the run; its plan is complete afterwards.
    """
    each = list(dict.fromkeys(keys))
    _store(connection, run_id, [each[start : start + batch_size] for start in range(0, len(each), batch_size)])
    connection.execute(
        sa.text("UPDATE migration_run SET planned_keys = :keys, planned_at = clock_timestamp() WHERE id = :id"),
        {"id": run_id, "keys": len(each)},
    )


def _store(connection: Connection, run_id: int, batches: Sequence[Sequence[str]]) -> None:
    if batches:
        last = connection.execute(
            sa.text("SELECT coalesce(max(batch), 0) FROM migration_progress WHERE run_id = :id"), {"id": run_id}
        ).scalar_one()
        connection.execute(
            sa.text("""
                INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys)
                SELECT :run_id, :last + part.number, part.keys[1], part.keys[cardinality(part.keys)], part.keys
                FROM (
                    SELECT number, CAST(keys AS text[]) AS keys
                    FROM unnest(CAST(:parts AS text[])) WITH ORDINALITY AS given(keys, number)
                ) AS part
            """),
            {"run_id": run_id, "last": last, "parts": list(map(array_literal, batches))},
        )


def many_pending(connection: Connection, run_id: int, most: int) -> bool:
    """Return whether at least ``most`` batches wait to be claimed."""
    pending = connection.execute(
        sa.text("""
            SELECT count(*) FROM (
                SELECT 1 FROM migration_progress WHERE run_id = :id AND status = 'pending' LIMIT :most
            ) AS waiting
        """),
        {"id": run_id, "most": most},
    ).scalar_one()
    return bool(pending >= most)


def forget_token(connection: Connection, run_id: int, owner: str) -> None:
    """Start the listing over: the source refused its token.

    Rows of keys that are listed twice are found filled, or as they are to be, the second time; towards the run's row
    limit the keys count twice.
    """
    connection.execute(
        sa.text("UPDATE migration_run SET plan_token = NULL WHERE id = :id AND plan_owner = :owner"),
        {"id": run_id, "owner": owner},
    )


def release_plan(connection: Connection, run_id: int, owner: str) -> None:
    """Release the plan, so that another process can plan at once."""
    connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_owner = NULL, plan_lease_expires_at = NULL
            WHERE id = :run_id AND plan_owner = :owner
        """),
        {"run_id": run_id, "owner": owner},
    )
