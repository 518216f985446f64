"""What `--sql` prints: plain statements for one state of a database, which fail and change nothing on any other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import alembic
import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from fingerprint import fingerprint
from migrating import ROOT, Database, psql, run_script
from systems import DIMENSION, PRODUCTS, RAG, SYSTEMS, System
from test_products_section import FOREIGN, TOGETHER

from amprenta_vectors import migrate
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.table import _TYPED
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg.names import compose, literal
from amprenta_vectors.sandbox import postgres
from amprenta_vectors.server import parse_version

SQUAWK = str(Path(sys.executable).parent / "squawk")
RUNS = "SELECT target, state, desired_state FROM migration_run ORDER BY id"

Completed = subprocess.CompletedProcess[str]


def printed(system: System, revision: str = "head", way: str = "upgrade", **arguments: str) -> str:
    """What `alembic … --sql` prints, where no database is asked."""
    config = migrate.alembic_config(Settings.load(vector_dimension=DIMENSION), system.section)
    config.output_buffer = StringIO()
    config.cmd_opts = Namespace(x=[f"{name}={value}" for name, value in arguments.items()])
    getattr(command, way)(config, revision, sql=True)
    return config.output_buffer.getvalue()


class Namespace:
    """The arguments of Alembic's own command line."""

    def __init__(self, x: list[str]) -> None:
        self.x = x


def printed_for(db: Database, *arguments: str) -> str:
    """What `amprenta-vectors db … --sql` prints for a database."""
    variables = {"DATABASE_URL": db.url, "VECTOR_DIMENSION": str(DIMENSION)}
    result = CliRunner().invoke(main, ["db", *arguments, "--sql"], env=variables, catch_exceptions=False)
    return result.stdout if result.exit_code == 0 else result.output


def state(db: Database) -> list[Any]:
    """All that a migration can make, and the runs that it queues or cancels."""
    return [*fingerprint(db), db.execute(RUNS) if db.columns("migration_run") else None]


@pytest.fixture
def twin(db: Database, postgres_server: postgres.EmbeddedPostgres) -> Any:
    """A second empty database, for the command to work on."""
    postgres_server.create_database("twin")
    yield Database(postgres_server.url("twin"))
    db.execute("DROP DATABASE twin WITH (FORCE)")


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
@pytest.mark.parametrize("adopted", [False, True], ids=["empty", "adopted"])
def test_the_script_makes_what_the_upgrade_makes(db: Database, twin: Database, system: System, adopted: bool) -> None:
    for each in (db, twin):
        # A script finds the extension or makes it, and marks it in neither case.
        each.execute("CREATE EXTENSION vector")
        if adopted:
            system.adopt(each)
    run_script(db, printed(system, **({"adopted": system.table} if adopted else {})))
    system.upgrade(twin)
    assert state(db) == state(twin)


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_the_script_for_a_database_takes_it_there_and_back_as_the_command_does(
    db: Database, twin: Database, system: System
) -> None:
    section = ("--section", system.section)
    for each in (db, twin):
        each.execute("CREATE EXTENSION vector")
        system.adopt(each)
    run_script(db, printed_for(db, "upgrade", *section))
    system.upgrade(twin)
    assert state(db) == state(twin)
    for each in (db, twin):
        system.fill(each)
    values = system.bits(db)
    run_script(db, printed_for(db, "downgrade", *section))
    system.downgrade(twin)
    assert "embedding_retired" in db.columns(system.table)
    for each in (db, twin):
        each.execute(
            f"UPDATE {system.table} SET {system.change} WHERE CAST({system.key} AS text) = :key", key=str(values[3][0])
        )
    run_script(db, printed_for(db, "upgrade", *section))
    system.upgrade(twin)
    assert [row for row in state(db) if isinstance(row, tuple)] == [
        row for row in state(twin) if isinstance(row, tuple)
    ]
    assert system.bits(db) == system.bits(twin)
    assert [one[0] for one, other in zip(values, system.bits(db), strict=True) if one != other] == [values[3][0]]


@pytest.mark.parametrize("revision", RAG.revisions[:-1])
def test_the_script_for_a_database_goes_on_from_every_revision(db: Database, twin: Database, revision: str) -> None:
    for each in (db, twin):
        RAG.adopt(each)
        RAG.upgrade(each, revision)
    run_script(db, printed_for(db, "upgrade"))
    RAG.upgrade(twin)
    assert state(db) == state(twin)


OTHERS: dict[str, Callable[[Database], object]] = {
    "its table is there": RAG.adopt,
    "a downgrade left columns": lambda db: (RAG.adopt(db), RAG.upgrade(db), RAG.fill(db), RAG.downgrade(db)),
    "a downgrade left a table": lambda db: (RAG.upgrade(db), RAG.insert(db), RAG.downgrade(db)),
    "at head": RAG.upgrade,
    "halfway": lambda db: RAG.upgrade(db, "rag_0002"),
    "the record of another section": PRODUCTS.upgrade,
}


@pytest.mark.parametrize("begin", OTHERS.values(), ids=OTHERS.keys())
def test_on_another_state_it_fails_and_changes_nothing(db: Database, begin: Callable[[Database], object]) -> None:
    begin(db)
    before = state(db)
    assert psql(db, printed(RAG)).returncode == 3
    assert state(db) == before


MISSING = {
    "no such table": [],
    "no unique index": ["CREATE TABLE rag_chunks (chunk_id text, content text)"],
    "no key": ["CREATE TABLE rag_chunks (id text PRIMARY KEY)"],
}


@pytest.mark.parametrize("statements", MISSING.values(), ids=MISSING.keys())
def test_a_table_that_is_not_what_was_said_stops_the_script_before_it_is_touched(
    db: Database, statements: list[str]
) -> None:
    for statement in statements:
        db.execute(statement)
    done = psql(db, printed(RAG, adopted="rag_chunks"))
    assert done.returncode == 3
    assert "embedding" not in db.columns("rag_chunks")
    assert not db.columns("amprenta_version_rag")


def test_a_script_that_begins_elsewhere_says_for_which_database_it_is(db: Database) -> None:
    RAG.upgrade(db, "core_0001")
    done = psql(db, printed(RAG, "rag_0002:head"))
    assert done.returncode == 3
    assert "this script is for a database in which amprenta_version_rag says rag_0002" in done.stderr
    assert "amprenta-vectors db upgrade --sql" in done.stderr
    run_script(db, printed_for(db, "upgrade"))
    assert db.execute("SELECT version_num FROM amprenta_version_rag") == [("rag_0004",)]


def test_the_downgrade_without_a_database_keeps_what_it_cannot_see(db: Database) -> None:
    RAG.adopt(db)
    RAG.upgrade(db)
    run_script(db, printed(RAG, "head:base", "downgrade", adopted="rag_chunks"))
    assert "embedding_retired" in db.columns("rag_chunks")
    assert "migration_run_retired" in {row[0] for row in db.execute("SELECT relname FROM pg_class WHERE relkind = 'r'")}
    RAG.upgrade(db)
    assert "embedding" in db.columns("rag_chunks")


def test_nothing_in_it_decides_by_what_was_empty_when_it_was_printed(db: Database) -> None:
    RAG.adopt(db)
    RAG.upgrade(db)
    script = printed_for(db, "downgrade")
    RAG.fill(db)
    values = RAG.bits(db)
    run_script(db, script)
    RAG.upgrade(db)
    assert RAG.bits(db) == values


def test_a_database_that_cannot_be_brought_there_is_said_and_nothing_printed(db: Database) -> None:
    db.execute("CREATE TABLE rag_chunks (id text)")
    said = printed_for(db, "upgrade")
    assert "error: table rag_chunks exists without the columns relied on: chunk_id" in said
    assert "CREATE" not in said


def test_what_is_printed_for_a_downgrade_from_base_is_an_error(db: Database) -> None:
    assert "there is nothing to downgrade" in printed_for(db, "downgrade")


DOWNGRADE = {
    "renaming-table": "what a table holds is kept under a retired name instead of dropped",
    "renaming-column": "what a column holds is kept under a retired name instead of dropped",
    "ban-drop-not-null": "so that the old application, which leaves the column out, can insert",
    "ban-drop-function": "the section's own, and nothing uses it: RESTRICT",
    "ban-drop-view": "the section's own, and nothing uses it: RESTRICT",
    "require-concurrent-index-deletion": "in the revision's transaction, so that both or neither happen",
}
"""Rules that a downgrade breaks by what it is for."""
if parse_version(alembic.__version__) < (1, 20):
    DOWNGRADE["ban-drop-table"] = "Alembic's own table of revisions, which is empty by then"


def broken_rules(script: str) -> set[str]:
    done = subprocess.run(
        [SQUAWK, "-c", ".squawk.toml", "--reporter", "json", "--stdin-filepath", "script.sql"],
        input=script,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode in {0, 1}, done.stderr
    return {problem["rule_name"] for problem in json.loads(done.stdout)}


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_squawk_has_nothing_to_say(db: Database, system: System) -> None:
    assert broken_rules(printed(system)) == set()
    assert broken_rules(printed(system, adopted=system.table)) == set()
    assert broken_rules(printed(system, "head:base", "downgrade")) <= DOWNGRADE.keys()
    assert broken_rules("ALTER TABLE t ALTER COLUMN c TYPE bigint;") != set(), "it is asked nothing"


def test_an_applications_own_environment_prints_the_same_steps(db: Database) -> None:
    text = StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, opts={"as_sql": True, "output_buffer": text}
    )
    with context.begin_transaction():
        op: Any = Operations(context)
        op.add_vector_column("docs", "embedding", 3)
        op.create_vector_index("ix_docs", "docs", "embedding", where="'a:b' <> '%'")
    db.execute("CREATE EXTENSION vector")
    db.execute("CREATE TABLE docs (id int PRIMARY KEY)")
    run_script(db, text.getvalue())
    assert db.columns("docs")["embedding"] == "vector(3)"
    assert db.index_is_valid("ix_docs")
    before = fingerprint(db)
    assert psql(db, text.getvalue()).returncode == 3
    assert fingerprint(db) == before


REFUSALS = {
    "type of the key": ("documents", "ALTER TABLE vector_documents ALTER id TYPE text"),
    "no column": ("documents", "ALTER TABLE vector_documents DROP metadata"),
    "no unique index": ("documents", "ALTER TABLE vector_documents DROP CONSTRAINT vector_documents_pkey"),
    "no function for a trigger": (
        "documents",
        "CREATE FUNCTION update_updated_at_column() RETURNS int LANGUAGE sql RETURN 1",
    ),
    "no view": ("products", "CREATE TABLE product_embedding_stats (n int)"),
}


@pytest.mark.parametrize(("section", "statement"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_upgrade_refuses_no_script_does(db: Database, section: str, statement: str) -> None:
    system = SYSTEMS[section]
    system.adopt(db)
    db.execute(statement)
    before = state(db)
    assert psql(db, printed(system, adopted=system.table)).returncode == 3
    assert state(db) == before
    said = printed_for(db, "upgrade", "--section", section)
    with pytest.raises(AmprentaError) as caught:
        system.upgrade(db)
    assert f"error: {caught.value}" in said


@TOGETHER
def test_the_script_for_a_database_uses_what_an_application_has(db: Database, twin: Database, names: list[str]) -> None:
    for each in (db, twin):
        each.execute("CREATE EXTENSION vector")
        PRODUCTS.adopt(each)
        for name in names:
            each.execute(FOREIGN[name][0])
    run_script(db, printed_for(db, "upgrade", "--section", "products"))
    PRODUCTS.upgrade(twin)
    assert state(db) == state(twin)


@pytest.mark.parametrize(("type_", "serves"), [("uuid", True), ("identity", True), ("text", False)])
def test_a_script_takes_a_domain_for_what_it_is_based_on(db: Database, type_: str, serves: bool) -> None:
    db.execute("CREATE DOMAIN unique_id AS uuid")
    db.execute("CREATE DOMAIN identity AS unique_id NOT NULL")
    db.execute("CREATE TABLE t (id identity)")
    assert db.scalar(compose(_TYPED, column="id", table="t", type=literal(type_))) is serves
