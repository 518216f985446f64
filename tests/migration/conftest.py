"""A database to migrate, in three ways: Alembic's own command line, in process, and by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from migrating import ROOT, Database

Completed = subprocess.CompletedProcess[str]


@pytest.fixture
def db(database_url: str) -> Database:
    """An empty database."""
    return Database(database_url)


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
def alembic(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Completed]:
    """A function that runs Alembic's own command line on ``db`` to its end."""

    def run(*arguments: str, cwd: Path = ROOT, **variables: str) -> Completed:
        process = start("alembic", *arguments, cwd=cwd, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def as_role(db: Database) -> Iterator[Callable[[str], Database]]:
    """A function that makes a role without any privilege and returns ``db`` as that role sees it."""
    names: list[str] = []

    def make(name: str) -> Database:
        db.execute(f"CREATE ROLE {name} LOGIN")
        names.append(name)
        db.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {name}")
        url = sa.engine.make_url(db.url).set(username=name)
        return Database(url.render_as_string(hide_password=False))

    yield make
    for name in names:
        db.execute(f"DROP OWNED BY {name} CASCADE")
        db.execute(f"DROP ROLE {name}")


@pytest.fixture
def adopted(db: Database) -> Database:
    """A database whose application made rag_chunks itself: one namespace, a foreign column, 100 rows."""
    db.execute("""
        CREATE TABLE rag_chunks (
            chunk_id text PRIMARY KEY, document_id integer NOT NULL DEFAULT 7, content text,
            updated_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    db.execute(
        "INSERT INTO rag_chunks (chunk_id, content) SELECT 'chunk-' || n, 'text ' || n FROM generate_series(1, 100) n"
    )
    return db
