"""Upgrades and downgrades killed at random moments, then finished by the same command: nobody can tell afterwards."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from fingerprint import fingerprint
from migrating import Database
from pytest_postgresql.janitor import DatabaseJanitor

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

SEED_VARIABLE = "AMPRENTA_TORTURE_SEED"
SEED = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("AMPRENTA_TORTURE_UPGRADE_KILLS") or 0)
"""In each upgrade and downgrade of each revision; 0 for the short form: one in each of ten of these, at random."""
ROWS, DIMENSION = 300, 8

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["amprenta_vectors.ddl", "amprenta_vectors.db", "amprenta_vectors.migrate"])

Clone = Callable[[str | None], AbstractContextManager[Database]]


@pytest.fixture
def clone(postgres_server: EmbeddedPostgres) -> Clone:
    """A function that makes a database, empty or like the one whose name is given, and drops it on leaving."""
    numbers = itertools.count()

    @contextmanager
    def made(template: str | None) -> Iterator[Database]:
        janitor = DatabaseJanitor(
            user="postgres",
            host=str(postgres_server.socket_folder),
            port=postgres_server.port,
            dbname=f"killed_{next(numbers)}",
            template_dbname=template,
        )
        with janitor as database:
            yield Database(postgres_server.url(database.dbname))

    return made


def name_of(db: Database) -> str:
    return str(db.scalar("SELECT current_database()"))


def adopt(db: Database) -> None:
    """The application's own table, with rows."""
    db.execute(
        "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, content text, updated_at timestamptz DEFAULT now())"
    )
    db.execute(
        "INSERT INTO rag_chunks SELECT 'chunk-' || n, 'text ' || n, now() - interval '2 days' "
        f"FROM generate_series(1, {ROWS}) n"
    )


def live_on(db: Database) -> None:
    """What an application does between two migrations: it fills the column that it has, and changes rows."""
    if "chunk_id" not in db.columns("rag_chunks"):
        return
    db.execute(
        "INSERT INTO rag_chunks (chunk_id) SELECT 'made-' || n FROM generate_series(1, 20) n ON CONFLICT DO NOTHING"
    )
    if {"embedding", "embedding_model"} <= db.columns("rag_chunks").keys():
        db.execute(
            "UPDATE rag_chunks SET embedding_model = 'm', updated_at = now() - interval '1 day', embedding = (SELECT "
            f"array_agg(sin(ascii(chunk_id) + hashtext(chunk_id) + n)) FROM generate_series(1, {DIMENSION}) n)::vector"
        )
    elif "embedding_retired" in db.columns("rag_chunks"):
        db.execute("UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id LIKE '%7'")


def contents(db: Database) -> list[Any]:
    """Every row of every table that matters to a user, whatever it is called at the time."""
    rows: list[Any] = []
    for table in ("rag_chunks", "rag_chunks_retired"):
        if db.columns(table):
            rows += db.execute(f"SELECT to_jsonb(t) - 'updated_at' - 'created_at' FROM {table} t ORDER BY chunk_id")
    for table in ("migration_run", "migration_run_retired"):
        if db.columns(table):
            rows += db.execute(f"SELECT target, state, desired_state FROM {table} ORDER BY id")
    return rows


def run(url: str, command: str, revision: str) -> None:
    """In a process of its own: what ``amprenta-vectors db upgrade`` and ``downgrade`` call."""
    settings = Settings.load(database_url=url, vector_dimension=DIMENSION)
    getattr(migrate, command)(settings, revision=revision)


def start(db: Database, command: str, revision: str) -> ForkServerProcess:
    process = PROCESSES.Process(target=run, args=(db.url, command, revision))
    process.start()
    return process


def finish(db: Database, command: str, revision: str) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    process = start(db, command, revision)
    process.join(60)
    assert process.exitcode == 0, f"{command} {revision}"
    return time.monotonic() - began


def kill(db: Database, command: str, revision: str, after: float) -> bool:
    """Start and kill with SIGKILL; returns whether it still ran."""
    process = start(db, command, revision)
    process.join(after)
    ran = process.exitcode is None
    process.kill()
    process.join()
    return ran and process.exitcode == -9


def legs(section: str) -> list[tuple[str, str]]:
    """Up, down, up for every revision, from the first one on."""
    script = ScriptDirectory.from_config(migrate.alembic_config(Settings.load(database_url="postgresql://"), section))
    chain = [revision.revision for revision in script.walk_revisions()][::-1]
    lower = ["base", *chain]
    return [
        leg
        for revision, before in zip(chain, lower, strict=False)
        for leg in (("upgrade", revision), ("downgrade", before), ("upgrade", revision))
    ]


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(adopt, id="adopted"),
        pytest.param(None, id="empty", marks=pytest.mark.skipif(not KILLS, reason="not in the short form")),
    ],
)
def test_killed_at_any_moment_the_same_command_finishes_the_work(
    clone: Clone, begin: Callable[[Database], None] | None
) -> None:
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201 - shown where the test fails, to repeat it
    chance, work = random.Random(SEED), legs("alembic")
    trials = dict.fromkeys(range(len(work)), KILLS) if KILLS else dict.fromkeys(chance.sample(range(len(work)), 10), 1)
    with clone(None) as undisturbed:
        if begin is not None:
            begin(undisturbed)
        for number, (command, revision) in enumerate(work):
            with clone(name_of(undisturbed)) as before:
                seconds = finish(undisturbed, command, revision)
                expected = fingerprint(undisturbed), contents(undisturbed)
                killed = 0
                while killed < trials.get(number, 0):
                    with clone(name_of(before)) as db:
                        if not kill(db, command, revision, chance.uniform(0, seconds)):
                            continue
                        killed += 1
                        if chance.random() < 0.5:
                            kill(db, command, revision, chance.uniform(0, seconds))
                        finish(db, command, revision)
                        assert (fingerprint(db), contents(db)) == expected, (command, revision)
            live_on(undisturbed)


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_a_whole_upgrade_killed_again_and_again_ends_as_if_never_disturbed(clone: Clone) -> None:
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201
    chance = random.Random(SEED)
    with clone(None) as undisturbed, clone(None) as db:
        adopt(undisturbed)
        adopt(db)
        seconds = finish(undisturbed, "upgrade", "head")
        kills = 0
        while kills < 10 and db.columns("rag_chunks").get("embedding") is None:
            kills += kill(db, "upgrade", "head", chance.uniform(0, seconds / 2))
        finish(db, "upgrade", "head")
        assert (fingerprint(db), contents(db)) == (fingerprint(undisturbed), contents(undisturbed))
