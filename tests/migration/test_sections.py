"""Sections share a database: in any order, each downgraded alone, core's tables there as long as one needs them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from fingerprint import fingerprint
from migrating import Database
from systems import SYSTEMS, System

from amprenta_vectors.errors import AmprentaError

Alembic = Callable[..., subprocess.CompletedProcess[str]]
A, B, C = SYSTEMS
MOVES = [((A, B, C), (C, B, A)), ((B, C, A), (B, A, C)), ((C, A, B), (A, C, B))]
"""Orders to come in and to go in: each section is once the first, the second and the last, and before each other."""


@pytest.fixture(params=["documents", "products"])
def system(request: pytest.FixtureRequest) -> System:
    """Each of the systems but the first, of which the other files of this folder tell more."""
    return SYSTEMS[request.param]


def fill_made(db: Database, system: System) -> None:
    """Bring a system to head, with 20 rows and their embeddings."""
    system.upgrade(db)
    system.insert(db)
    system.fill(db)


def fill_adopted(db: Database, system: System) -> None:
    """Do the same to a table that the application made."""
    system.adopt(db)
    system.upgrade(db)
    system.fill(db)


TABLES = [
    # Each way in one section here, the two others in `make torture`.
    pytest.param("documents", fill_adopted, id="documents, adopted"),
    pytest.param("products", fill_made, id="products, made"),
    pytest.param("documents", fill_made, id="documents, made", marks=pytest.mark.torture),
    pytest.param("products", fill_adopted, id="products, adopted", marks=pytest.mark.torture),
]
FILLED = pytest.mark.parametrize(("system", "fill"), TABLES, indirect=["system"])


@pytest.fixture
def table(clone: Callable[..., Database], system: System, fill: Callable[..., None]) -> Database:
    """A system at head with 20 embeddings, its table made here or by its application."""
    return clone(fill, system)


@pytest.mark.parametrize(
    ("up", "down"),
    # A quarter of a minute each: here the first, the others in `make torture`.
    [pytest.param(*move, marks=pytest.mark.torture if move != MOVES[0] else ()) for move in MOVES],
    ids=lambda order: " ".join(order),
)
def test_sections_come_in_any_order_and_go_one_by_one(db: Database, up: tuple[str, ...], down: tuple[str, ...]) -> None:
    for name in up:
        SYSTEMS[name].upgrade(db)
    for system in SYSTEMS.values():
        system.check(db)
        system.insert(db)
        system.fill(db)
    before = {name: system.bits(db) for name, system in SYSTEMS.items()}
    first, *others = (SYSTEMS[name] for name in down)
    first.downgrade(db)
    assert not db.columns(first.table)
    for system in others:
        system.check(db)
        assert system.bits(db) == before[system.section]
    assert db.columns("migration_run")
    for system in others:
        system.downgrade(db)
    assert not db.columns("migration_run")
    for name in up:
        SYSTEMS[name].upgrade(db)
    for name, system in SYSTEMS.items():
        system.check(db)
        assert system.bits(db) == before[name]


def test_each_section_queues_its_own_backfill(db: Database) -> None:
    for system in SYSTEMS.values():
        system.upgrade(db)
    queued = [(f"{system.table}.embedding", system.table, "planned") for system in SYSTEMS.values()]
    runs = "SELECT target, vector_table, state FROM migration_run"
    assert sorted(db.execute(runs)) == sorted(queued)
    SYSTEMS["documents"].downgrade(db)
    assert sorted(state for _, _, state in db.execute(runs)) == ["cancelled", "planned", "planned"]


def test_a_section_alone_leaves_nothing_of_what_it_made_behind(db: Database, system: System) -> None:
    system.upgrade(db)
    system.check(db)
    db.execute("DELETE FROM migration_run")
    system.downgrade(db)
    version = system.version_table
    left = {row[0] for row in fingerprint(db)}
    assert left == {version, f"{version}_pkc", "plpgsql"}


def test_alembic_dash_n_does_what_the_packages_own_command_does(
    db: Database, alembic: Alembic, typed: Alembic, system: System
) -> None:
    for command in (("-x", "dimension=8", "upgrade", "head"), ("check",)):
        done = alembic("-n", system.section, *command)
        assert done.returncode == 0, done.stderr
        if "upgrade" in command:
            assert f"AMPRENTA_TABLE={system.table} python scripts/backfill.py --resume" in done.stderr
    made = fingerprint(db)
    assert db.columns(system.table)["embedding"] == "vector(8)"
    system.downgrade(db)
    done = typed("amprenta_vectors", "db", "upgrade", "--section", system.section, VECTOR_DIMENSION="8")
    assert done.returncode == 0, done.stderr
    assert fingerprint(db) == made


@FILLED
def test_down_and_up_again_brings_back_every_embedding_bit_for_bit(table: Database, system: System) -> None:
    before = system.bits(table)
    for _ in range(2):
        system.downgrade(table)
        assert "embedding" not in table.columns(system.table)
        system.upgrade(table)
        assert system.bits(table) == before
        system.check(table)


@FILLED
def test_rows_changed_meanwhile_are_null_and_the_others_are_not(table: Database, system: System) -> None:
    system.downgrade(table)
    name = system.table if table.columns(system.table) else f"{system.table}_retired"
    (changed,) = table.execute(f"SELECT {system.key} FROM {name} ORDER BY 1 LIMIT 1")[0]
    table.execute(f"UPDATE {name} SET {system.change} WHERE {system.key} = :key", key=changed)
    system.upgrade(table)
    assert table.execute(f"SELECT {system.key} FROM {system.table} WHERE embedding IS NULL") == [(changed,)]
    assert table.scalar(f"SELECT count(*) FROM {system.table} WHERE embedding_hash IS NULL") == 1
    system.check(table)


def test_a_purge_drops_the_embeddings_and_of_an_adopted_table_nothing_else(
    db: Database, system: System, caplog: pytest.LogCaptureFixture
) -> None:
    system.adopt(db)
    columns = db.columns(system.table)
    system.upgrade(db)
    system.fill(db)
    system.downgrade(db, purge=True)
    assert f"{system.table}.embedding: dropping 20 values" in caplog.text
    assert db.columns(system.table) == columns
    assert db.scalar(f"SELECT count(*) FROM {system.table}") == 20


@FILLED
def test_a_view_on_the_embedding_survives_and_is_named_when_it_stands_in_the_way_of_a_purge(
    table: Database, system: System
) -> None:
    table.execute(f"CREATE VIEW theirs AS SELECT {system.key}, embedding FROM {system.table}")
    with pytest.raises(AmprentaError, match="something of yours depends on it"):
        system.downgrade(table, purge=True)
    system.downgrade(table)
    assert table.scalar("SELECT count(embedding) FROM theirs") == 20
    system.upgrade(table)
    assert table.scalar(f"SELECT count(embedding) FROM {system.table}") == 20


def test_an_upgrade_at_every_revision_goes_on_from_there_and_back(db: Database, system: System) -> None:
    system.adopt(db)
    before = fingerprint(db)
    for revision in system.revisions:
        system.upgrade(db, revision)
        system.upgrade(db, revision)
    at_head = fingerprint(db)
    for revision in [*system.revisions[-2::-1], "base"]:
        system.downgrade(db, revision)
        system.downgrade(db, revision)
    ours = (system.version_table, "migration_run", "plpgsql")
    assert [row for row in fingerprint(db) if not row[0].startswith(ours)] == [
        row for row in before if row[0] != "plpgsql"
    ]
    db.execute("DROP TABLE migration_run_retired")
    system.upgrade(db)
    assert fingerprint(db) == at_head


def test_four_upgrades_at_once_all_succeed_and_do_the_work_once(
    db: Database, at_once: Callable[..., list[subprocess.CompletedProcess[str]]], system: System
) -> None:
    system.adopt(db)
    for done in at_once(4, "alembic", "-n", system.section, "-x", "dimension=4", "upgrade", "head"):
        assert done.returncode == 0, done.stderr
    system.check(db)
    assert db.scalar("SELECT count(*) FROM migration_run") == 1
