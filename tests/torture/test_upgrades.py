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
from databases import janitor
from fingerprint import fingerprint
from migrating import Database
from systems import DIMENSION, PRODUCTS, RAG, SYSTEMS, System

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

SEED_VARIABLE = "AMPRENTA_TORTURE_SEED"
SEED = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("AMPRENTA_TORTURE_UPGRADE_KILLS") or 0)
"""In each upgrade and downgrade of each revision; 0 for the short form: one in each of some of these, at random."""
ROWS = 300

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["amprenta_vectors.ddl", "amprenta_vectors.db", "amprenta_vectors.migrate"])

Clone = Callable[[str | None], AbstractContextManager[Database]]


@pytest.fixture
def clone(postgres_server: EmbeddedPostgres) -> Clone:
    """A function that makes a database, empty or like the one whose name is given, and drops it on leaving."""
    numbers = itertools.count()

    @contextmanager
    def made(template: str | None) -> Iterator[Database]:
        with janitor(postgres_server, f"killed_{next(numbers)}", template) as database:
            yield Database(postgres_server.url(database.dbname))

    return made


def name_of(db: Database) -> str:
    return str(db.scalar("SELECT current_database()"))


def adopt(db: Database, system: System) -> None:
    """The application's own table, with rows."""
    system.adopt(db, ROWS)
    db.execute(f"UPDATE {system.table} SET updated_at = now() - interval '2 days'")


def live_on(db: Database, system: System) -> None:
    """What an application does between two migrations: it fills the column that it has, and changes rows."""
    columns = db.columns(system.table)
    if not columns:
        return
    system.insert(db, 20, first=ROWS + 1)
    if "embedding_text_hash" in columns:
        system.fill(db)
    elif "embedding_retired" in columns:
        changed = f"hashtext(CAST({system.key} AS text)) % 10 = 7"
        db.execute(f"UPDATE {system.table} SET {system.change} WHERE {changed}")


def contents(db: Database, system: System) -> list[Any]:
    """Every row of every table that matters to a user, whatever it is called at the time."""
    rows: list[Any] = []
    for table in (system.table, f"{system.table}_retired"):
        if db.columns(table):
            rows += db.execute(f"SELECT to_jsonb(t) - 'updated_at' - 'created_at' FROM {table} t ORDER BY {system.key}")
    for table in ("migration_run", "migration_run_retired"):
        if db.columns(table):
            rows += db.execute(f"SELECT target, state, desired_state FROM {table} ORDER BY id")
    return rows


def run(url: str, section: str, command: str, revision: str) -> None:
    """In a process of its own: what ``amprenta-vectors db upgrade`` and ``downgrade`` call."""
    settings = Settings.load(database_url=url, vector_dimension=DIMENSION)
    getattr(migrate, command)(settings, section, revision)


def start(db: Database, system: System, command: str, revision: str) -> ForkServerProcess:
    process = PROCESSES.Process(target=run, args=(db.url, system.section, command, revision))
    process.start()
    return process


def finish(db: Database, system: System, command: str, revision: str) -> float:
    """Run to the end; returns the seconds it took."""
    began = time.monotonic()
    process = start(db, system, command, revision)
    process.join(60)
    assert process.exitcode == 0, f"{command} {revision}"
    return time.monotonic() - began


def kill(db: Database, system: System, command: str, revision: str, after: float) -> bool:
    """Start and kill with SIGKILL; returns whether it still ran."""
    process = start(db, system, command, revision)
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
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(adopt, id="adopted"),
        pytest.param(None, id="empty", marks=pytest.mark.skipif(not KILLS, reason="not in the short form")),
    ],
)
def test_killed_at_any_moment_the_same_command_finishes_the_work(
    clone: Clone, begin: Callable[[Database, System], None] | None, system: System
) -> None:
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201 - shown where the test fails, to repeat it
    chance, work = random.Random(SEED), legs(system.section)
    sample = chance.sample(range(len(work)), 10 if system is RAG else 5)
    trials = dict.fromkeys(range(len(work)), KILLS) if KILLS else dict.fromkeys(sample, 1)
    with clone(None) as undisturbed:
        if begin is not None:
            begin(undisturbed, system)
        for number, (command, revision) in enumerate(work):
            with clone(name_of(undisturbed)) as before:
                seconds = finish(undisturbed, system, command, revision)
                expected = fingerprint(undisturbed), contents(undisturbed, system)
                killed = 0
                while killed < trials.get(number, 0):
                    with clone(name_of(before)) as db:
                        if not kill(db, system, command, revision, chance.uniform(0, seconds)):
                            continue
                        killed += 1
                        if chance.random() < 0.5:
                            kill(db, system, command, revision, chance.uniform(0, seconds))
                        finish(db, system, command, revision)
                        assert (fingerprint(db), contents(db, system)) == expected, (command, revision)
            live_on(undisturbed, system)


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_a_whole_upgrade_killed_again_and_again_ends_as_if_never_disturbed(clone: Clone) -> None:
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201
    chance, system = random.Random(SEED), PRODUCTS
    with clone(None) as undisturbed, clone(None) as db:
        adopt(undisturbed, system)
        adopt(db, system)
        seconds = finish(undisturbed, system, "upgrade", "head")
        kills = 0
        while kills < 10 and db.columns(system.table).get("embedding") is None:
            kills += kill(db, system, "upgrade", "head", chance.uniform(0, seconds / 2))
        finish(db, system, "upgrade", "head")
        assert fingerprint(db) == fingerprint(undisturbed)
        assert contents(db, system) == contents(undisturbed, system)
