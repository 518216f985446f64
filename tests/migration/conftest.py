"""A database to migrate, by a command line, in process and by hand; empty, or as migrations left it before."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from databases import janitor
from migrating import ROOT, Database, adopt
from tenacity import RetryCallState
from typed import type_in, type_in_many

from amprenta_vectors.ddl import vector_index
from amprenta_vectors.pg import blockers, sessions
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

Completed = subprocess.CompletedProcess[str]
Prepare = Callable[..., object]
Template = Callable[..., str]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks that only the tests of this folder bear."""
    config.addinivalue_line("markers", "alembic: one of pytest-alembic's own tests")
    config.addinivalue_line("markers", "prepared(function, *arguments): ``db`` is a copy of what function(db, …) made")


@pytest.fixture(scope="session")
def template(postgres_server: EmbeddedPostgres) -> Iterator[Template]:
    """A function that returns the name of a database as a function leaves an empty one, which it does once."""
    names: dict[tuple[object, ...], str] = {}
    with ExitStack() as templates:

        def named(prepare: Prepare, *arguments: object) -> str:
            key = (prepare, *arguments)
            if key not in names:
                name = f"prepared_{len(names)}"
                templates.enter_context(janitor(postgres_server, name, as_template=True))
                prepare(Database(postgres_server.url(name)), *arguments)
                names[key] = name
            return names[key]

        yield named


@pytest.fixture
def clone(postgres_server: EmbeddedPostgres, template: Template) -> Iterator[Callable[..., Database]]:
    """A function that makes a database for this test alone, empty or as ``prepare(db, *arguments)`` leaves one."""
    numbers = itertools.count()
    with ExitStack() as databases:

        def make(prepare: Prepare | None = None, *arguments: object) -> Database:
            like = None if prepare is None else template(prepare, *arguments)
            name = f"clone_{next(numbers)}"
            databases.enter_context(janitor(postgres_server, name, like))
            return Database(postgres_server.url(name))

        yield make


@pytest.fixture
def db(request: pytest.FixtureRequest, clone: Callable[..., Database]) -> Database:
    """An empty database, or the one that the test's mark ``prepared`` describes."""
    mark = request.node.get_closest_marker("prepared")
    return clone(*mark.args) if mark else clone()


@pytest.fixture
def start(db: Database) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a Python module on ``db`` as a user would type it; what still runs is killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(*command: str, cwd: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env={**os.environ, "DATABASE_URL": db.url, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def typed(db: Database) -> Callable[..., Completed]:
    """A function that runs what a user would type as ``python -m …`` on ``db``, in this process."""

    def run(*command: str, cwd: Path = ROOT, **variables: str) -> Completed:
        return type_in(*command, environment={**os.environ, "DATABASE_URL": db.url, **variables}, cwd=cwd)

    return run


@pytest.fixture
def at_once(db: Database) -> Callable[..., list[Completed]]:
    """A function that runs what a user would type in so many processes at once, to their end."""

    def run(number: int, *command: str) -> list[Completed]:
        return type_in_many(number, *command, environment={**os.environ, "DATABASE_URL": db.url})

    return run


@pytest.fixture
def alembic(typed: Callable[..., Completed]) -> Callable[..., Completed]:
    """A function that runs Alembic's own command line on ``db``, in this process."""
    return partial(typed, "alembic")


@pytest.fixture
def as_role(db: Database) -> Iterator[Callable[[str], Database]]:
    """A function that makes a role without any privilege and returns ``db`` as that role sees it."""
    names: list[str] = []

    def make(name: str) -> Database:
        db.execute(f"CREATE ROLE {name} LOGIN")
        names.append(name)
        db.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {name}")
        return Database(db.url, role=name)

    yield make
    for name in names:
        db.execute(f"DROP OWNED BY {name} CASCADE")
        db.execute(f"DROP ROLE {name}")


@pytest.fixture
def adopted(db: Database) -> Database:
    """A database whose application made rag_chunks itself: one namespace, a foreign column, 100 rows."""
    adopt(db)
    return db


@pytest.fixture(autouse=True)
def _stores_look_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store runs that a replaced index would have to wait a minute for."""
    monkeypatch.setattr(vector_index, "STORES_LOOK_SECONDS", 0.05)


@pytest.fixture
def brief_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short DDL tries for three tenths of a second, often, and soon looks who is in its way."""
    monkeypatch.setattr(sessions, "LOCK_SECONDS", 0.3)
    monkeypatch.setattr(sessions, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(blockers, "LOOK_SECONDS", 0.05)


@pytest.fixture
def give_up_when_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Short DDL, which gives up after 300 seconds, does so once it was seen who is in its way, or after a minute."""
    caplog.set_level(logging.INFO)

    def stop_after_delay(seconds: float) -> Callable[[RetryCallState], bool]:
        assert seconds == sessions.GIVE_UP_SECONDS
        return lambda tries: "waiting for pid" in caplog.text or (tries.seconds_since_start or 0) > 60

    monkeypatch.setattr(sessions, "stop_after_delay", stop_after_delay)
