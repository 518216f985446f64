"""The processes that use a table's models, as each notes itself in ``model_process`` while it is in use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

IN_USE_SECONDS = 10.0
"""Seconds after which a process that notes nothing is taken to be idle or gone; one that wakes up looks first."""
KEPT_DAYS = 7
POLL_SECONDS = 0.1

_IN_USE = sa.text("""
    SELECT host, pid, loaded, failed, searched, missed FROM model_process
    WHERE target = :target AND seen_at > clock_timestamp() - make_interval(secs => :seconds) ORDER BY host, pid
""")
_NOT_AGAIN = sa.text("""
    SELECT count(*) FROM model_process
    WHERE target = :target AND seen_at > clock_timestamp() - make_interval(secs => :seconds) AND seen_at <= :moment
""")
_PRUNE = sa.text("DELETE FROM model_process WHERE seen_at < now() - make_interval(days => :days)")


@dataclass(frozen=True)
class Process:
    """A process as it noted itself: the models it has loaded, those it could not load, and the one that it searches.

    ``missed`` counts the texts that it wrote and that another model did not embed.
    """

    host: str
    pid: int
    loaded: tuple[str, ...]
    failed: Mapping[str, str]
    searched: str | None
    missed: int

    @property
    def name(self) -> str:
        """The process as a message names it."""
        return f"pid {self.pid} on {self.host}"


def processes_in_use(connection: Connection, target: str) -> list[Process]:
    """Return the processes that used a table within the last seconds."""
    rows = connection.execute(_IN_USE, {"target": target, "seconds": IN_USE_SECONDS})
    return [Process(row.host, row.pid, tuple(row.loaded), row.failed, row.searched, row.missed) for row in rows]


def wait_until(
    engine: Engine, target: str, ready: Callable[[Process], bool], seconds: float
) -> tuple[list[Process], list[Process]]:
    """Wait until every process in use is ``ready``; return those that are and those that are not, after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        with engine.connect() as connection:
            found = processes_in_use(connection, target)
        left = [process for process in found if not ready(process)]
        if not left or time.monotonic() >= end:
            return [process for process in found if ready(process)], left
        time.sleep(POLL_SECONDS)


def wait_until_seen(engine: Engine, target: str, seconds: float) -> None:
    """Wait until every process in use has looked at the registry once more, ``seconds`` at most."""
    end = time.monotonic() + seconds
    with engine.connect() as connection:
        moment = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    while time.monotonic() < end:
        with engine.connect() as connection:
            values = {"target": target, "seconds": IN_USE_SECONDS, "moment": moment}
            if not connection.execute(_NOT_AGAIN, values).scalar_one():
                return
        time.sleep(POLL_SECONDS)


def prune(connection: Connection) -> None:
    """Forget the processes that have noted nothing for a week."""
    connection.execute(_PRUNE, {"days": KEPT_DAYS})
