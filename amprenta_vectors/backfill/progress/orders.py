"""The orders that a person gives to a run while it goes on: to pause, to resume, to be cancelled, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.events import Event, record_event
from amprenta_vectors.backfill.progress.runs import lock_run, move
from amprenta_vectors.backfill.progress.states import RunState


@dataclass(frozen=True)
class Orders:
    """The orders of a run, and the state that it is in."""

    state: str
    desired_state: str
    limits: Mapping[str, float]


def read_orders(connection: Connection, run_id: int) -> Orders:
    """Return the orders of a run as they are now."""
    row = connection.execute(
        sa.text("SELECT state, desired_state, limits FROM migration_run WHERE id = :id"), {"id": run_id}
    ).one()
    return Orders(row.state, row.desired_state, row.limits)


def order(connection: Connection, run_id: int, desired_state: RunState) -> None:
    """Record the state that a run is to have; its processes read it about twice a second."""
    connection.execute(
        sa.text("UPDATE migration_run SET desired_state = :desired WHERE id = :id AND desired_state <> :desired"),
        {"id": run_id, "desired": desired_state},
    )


def settle_pause(connection: Connection, run_id: int) -> bool:
    """Record a run that is to be paused as paused, once no process holds a lease of it; return whether it is paused."""
    # Stronger than an UPDATE's own lock: it waits for claims under way, so that none is overlooked.
    connection.execute(sa.text("SELECT 1 FROM migration_run WHERE id = :id FOR UPDATE"), {"id": run_id})
    row = connection.execute(
        sa.text("""
            SELECT r.state, r.desired_state,
                (r.planned_at IS NULL AND r.plan_owner IS NOT NULL AND r.plan_lease_expires_at > clock_timestamp())
                OR EXISTS (
                    SELECT 1 FROM migration_progress p
                    WHERE p.run_id = r.id AND p.status = 'running' AND p.lease_expires_at > clock_timestamp()
                ) AS held
            FROM migration_run r WHERE r.id = :id
        """),
        {"id": run_id},
    ).one()
    if row.state == RunState.PAUSED:
        return True
    if row.desired_state != RunState.PAUSED or row.held or not move(connection, run_id, RunState.PAUSED):
        return False
    note_throttle(connection, run_id, None)
    record_event(connection, run_id, Event.PAUSED)
    return True


def resume(connection: Connection, run_id: int) -> None:
    """Resume a run that is paused or about to be."""
    order(connection, run_id, RunState.RUNNING)
    if move(connection, run_id, RunState.RUNNING):
        record_event(connection, run_id, Event.RESUMED)


def change_limits(
    connection: Connection, run_id: int, changes: Mapping[str, float], *, clear: bool = False
) -> dict[str, float]:
    """Merge ``changes`` into a run's limits, or with ``clear`` replace all limits by them; return those in force."""
    before = lock_run(connection, run_id).limits
    limits = dict(changes) if clear else {**before, **changes}
    connection.execute(
        sa.text("UPDATE migration_run SET limits = CAST(:limits AS jsonb) WHERE id = :id"),
        {"id": run_id, "limits": json.dumps(limits)},
    )
    record_event(connection, run_id, Event.LIMITS_CHANGED, limits)
    return limits


def note_throttle(connection: Connection, run_id: int, reason: str | None) -> bool:
    """Record why claims wait, None if they no longer do; with an event at the first reason and at the end of the last.

    Returns whether it was recorded: a run that is to be paused takes no other reason to wait.
    """
    run = lock_run(connection, run_id)
    if reason is not None and run.desired_state == RunState.PAUSED:
        return False
    before = run.throttle_reason
    if before == reason:
        return True
    connection.execute(
        sa.text("UPDATE migration_run SET throttle_reason = :reason WHERE id = :id"), {"id": run_id, "reason": reason}
    )
    if before is None:
        record_event(connection, run_id, Event.THROTTLED, {"reason": reason})
    elif reason is None:
        record_event(connection, run_id, Event.UNTHROTTLED, {"reason": before})
    return True
