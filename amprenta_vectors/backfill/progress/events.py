"""``migration_event``: the events of a run and their times, for its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


class Event(StrEnum):
    """The events of a run. ``joined`` and ``left`` name a process by its owner."""

    BEGUN = "begun"
    JOINED = "joined"
    LEFT = "left"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    STOPPED = "stopped"
    FINISHED = "finished"
    THROTTLED = "throttled"
    UNTHROTTLED = "unthrottled"
    LIMITS_CHANGED = "limits_changed"
    INDEX_DEFERRED = "index_deferred"
    INDEX_BUILDING = "index_building"
    INDEX_BUILT = "index_built"
    VERIFIED = "verified"
    BATCH_CUT = "batch_cut"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class RunEvent:
    """A row of ``migration_event``."""

    at: datetime
    event: Event
    detail: dict[str, Any]


def record_event(connection: Connection, run_id: int, event: Event, detail: Mapping[str, Any] | None = None) -> None:
    """Record that ``event`` happened now; ``detail`` is JSON without vectors, texts or secrets."""
    connection.execute(
        sa.text("INSERT INTO migration_event (run_id, event, detail) VALUES (:run_id, :event, CAST(:detail AS jsonb))"),
        {"run_id": run_id, "event": event, "detail": json.dumps(dict(detail or {}))},
    )


def list_events(connection: Connection, run_id: int) -> list[RunEvent]:
    """Return the events of a run, in order."""
    rows = connection.execute(
        sa.text("SELECT at, event, detail FROM migration_event WHERE run_id = :run_id ORDER BY id"), {"run_id": run_id}
    )
    return [RunEvent(row.at, Event(row.event), row.detail) for row in rows]
