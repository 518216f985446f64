"""Upgrades and downgrades in processes of their own, which are killed, and what a database comes to all the same."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkServerProcess

import pytest
import sqlalchemy as sa
from databases import janitor
from migrating import Database
from systems import System

from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

ROWS = 300
WAIT_SECONDS = 180.0

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["amprenta_vectors.ddl", "amprenta_vectors.db", "amprenta_vectors.migrate"])

Copies = Callable[[str | None], AbstractContextManager[Database]]


@pytest.fixture
def copies(postgres_server: EmbeddedPostgres) -> Copies:
    """A function that makes a database, empty or like the one whose name is given, and drops it on leaving."""
    numbers = itertools.count()

    @contextmanager
    def made(template: str | None) -> Iterator[Database]:
        with janitor(postgres_server, f"killed_{next(numbers)}", template) as database:
            yield Database(postgres_server.url(database.dbname))

    return made


def name_of(db: Database) -> str:
    """The name of the database itself."""
    return str(db.scalar("SELECT current_database()"))


def adopt(db: Database, system: System) -> None:
    """The application's own table, with rows."""
    system.adopt(db, ROWS)
    db.execute(f"UPDATE {system.table} SET updated_at = now() - interval '2 days'")


def run(url: str, system: System, command: str, revision: str, commits: int | None) -> None:
    """In a process of its own: what ``amprenta-vectors db upgrade`` and ``downgrade`` call, or Alembic.

    With ``commits``, it ends as by SIGKILL when it is about to commit for that many-th time.
    """
    left = commits or 0

    def count(_: sa.Connection) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "commit", count)
    getattr(system, command)(Database(url), revision)


def start(
    db: Database, system: System, command: str, revision: str, *, commits: int | None = None
) -> ForkServerProcess:
    """Start ``command``, which is to end at so many ``commits`` where they are given."""
    process = PROCESSES.Process(target=run, args=(db.url, system, command, revision, commits))
    process.start()
    return process


def wait_for(process: ForkServerProcess) -> int | None:
    """The exit code; None of a process that had to be killed because it took too long."""
    process.join(WAIT_SECONDS)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def finish(db: Database, system: System, command: str, revision: str) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    assert wait_for(start(db, system, command, revision)) == 0, f"{command} {revision}"
    return time.monotonic() - began


def kill(db: Database, system: System, command: str, revision: str, after: float) -> bool:
    """Start and kill with SIGKILL; returns whether it still ran."""
    process = start(db, system, command, revision)
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
