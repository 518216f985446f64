"""Whether what runs wrote into a slice has been verified since: ``migration_run.verified_at``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.events import Event, RunEvent, list_events, record_event
from amprenta_vectors.backfill.progress.runs import Run, last_finished, to_run
from amprenta_vectors.backfill.progress.states import UNFINISHED


def _of(target: str, scope: Mapping[str, str]) -> dict[str, Any]:
    return {"target": target, "scope": json.dumps(dict(scope))}


FORGET = """
    UPDATE migration_run SET verified_at = NULL
    WHERE target = :target AND scope = CAST(:scope AS jsonb) AND verified_at IS NOT NULL
"""
"""The statement of `forget`."""


def now(connection: Connection) -> datetime:
    """Return the database's time, to be given to `record` after the comparison."""
    moment: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return moment


def record(
    connection: Connection, target: str, scope: Mapping[str, str], began: datetime, detail: Mapping[str, Any]
) -> None:
    """Keep what a whole comparison found that was begun at ``began``, with the last run that finished into the slice.

    Where nothing ``unexpected`` differs, the slice is verified, unless a run has written to it meanwhile or is about
    to. Else it is verified no longer.
    """
    run_id = last_finished(connection, target, scope)
    if run_id is None:
        return
    record_event(connection, run_id, Event.VERIFIED, detail)
    if detail["unexpected"]:
        forget(connection, target, scope)
        return
    connection.execute(
        sa.text("""
            UPDATE migration_run v SET verified_at = :began
            WHERE v.id = :run_id AND NOT EXISTS (
                SELECT 1 FROM migration_run r JOIN migration_progress p ON p.run_id = r.id
                WHERE r.target = v.target AND r.scope = v.scope AND p.rows_written > 0 AND p.finished_at > :began
            ) AND NOT EXISTS (
                SELECT 1 FROM migration_run u
                WHERE u.target = v.target AND u.scope = v.scope AND u.source IS NOT NULL AND u.state = ANY(:unfinished)
            )
        """),
        {"run_id": run_id, "began": began, "unfinished": list(UNFINISHED)},
    )


def forget(connection: Connection, target: str, scope: Mapping[str, str]) -> None:
    """Have a slice verified no longer: a run has written to it, or a comparison found differences."""
    connection.execute(sa.text(FORGET), _of(target, scope))


def last_verified(connection: Connection, target: str, scope: Mapping[str, str]) -> tuple[Run, RunEvent] | None:
    """Return the run that a slice was verified with, and how its comparison ended; None where it is not verified."""
    row = connection.execute(
        sa.text("""
            SELECT * FROM migration_run
            WHERE target = :target AND scope = CAST(:scope AS jsonb) AND verified_at IS NOT NULL
            ORDER BY id DESC LIMIT 1
        """),
        _of(target, scope),
    ).first()
    if row is None:
        return None
    run = to_run(row)
    [*_, event] = [event for event in list_events(connection, run.id) if event.event == Event.VERIFIED]
    return run, event
