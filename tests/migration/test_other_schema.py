"""A table in a schema off the search path: adopted by ``-x schema=``, and found by everything from then on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from application import Application
from migrating import Database, run_script
from systems import SYSTEMS, System

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.sections import adopted_schema
from amprenta_vectors.errors import ConfigError, SchemaMismatch
from amprenta_vectors.pg.connections import search_also
from amprenta_vectors.pg.sessions import settings as session
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.protocol import Record

Typed = Callable[..., CompletedProcess[str]]


def elsewhere(db: Database, system: System, rows: int = 20) -> Database:
    """Make the application's table in schema ``app``; returns the database as the application sees it."""
    db.execute("CREATE SCHEMA app")
    with db.engine.connect() as connection, session(connection, search_path="app"):
        for statement in system.adopted:
            connection.execute(sa.text(statement))
        connection.execute(sa.text(f"INSERT INTO {system.table} {system.rows} FROM generate_series(1, {rows}) n"))
    application = Database(db.url)
    search_also(application.engine, "app")
    return application


def public(db: Database) -> set[str]:
    """The tables of schema public."""
    return set(sa.inspect(db.engine).get_table_names("public"))


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_a_section_goes_up_and_down_in_the_schema_of_the_table(db: Database, system: System) -> None:
    theirs = elsewhere(db, system)
    before = theirs.columns(f"app.{system.table}")
    with pytest.raises(SchemaMismatch, match="is in schema app") as refused:
        system.upgrade(db)
    assert "-x schema=app" in str(refused.value)
    migrate.upgrade(system.settings(db), system.section, schema="app")
    assert system.table not in public(db)
    assert theirs.columns(f"app.{system.table}")["embedding"] == "vector(4)"
    assert db.scalar("SELECT target FROM migration_run") == f"app.{system.table}.embedding"
    # What was given once is found from then on.
    system.check(db)
    system.fill(theirs)
    bits = system.bits(theirs)
    system.downgrade(db)
    assert "embedding_retired" in theirs.columns(f"app.{system.table}")
    system.upgrade(db)
    assert system.bits(theirs) == bits
    system.downgrade(db, purge=True)
    assert theirs.columns(f"app.{system.table}") == before
    assert system.table not in public(db)


def test_every_command_finds_it(db: Database, typed: Typed) -> None:
    theirs = elsewhere(db, SYSTEMS["alembic"])
    refused = typed("amprenta_vectors", "db", "upgrade", VECTOR_DIMENSION="4")
    assert refused.returncode == 2
    assert "amprenta-vectors db upgrade --section alembic --schema app" in refused.stderr
    planned = typed("amprenta_vectors", "db", "plan", "--schema", "app", VECTOR_DIMENSION="4")
    assert "  - rag_chunks exists: adopted as it is" in planned.stdout.splitlines()
    done = typed("amprenta_vectors", "db", "upgrade", "--schema", "app", VECTOR_DIMENSION="4")
    assert done.returncode == 0, done.stderr
    vector = np.arange(1, 5, dtype=np.float32)
    with closing(open_pgvector_store(Settings.load(database_url=db.url))) as store:
        store.upsert([Record("chunk-1", vector)])
        assert [hit.key for hit in store.query(vector, top_k=3)] == ["chunk-1"]
    assert theirs.scalar("SELECT embedding::text FROM rag_chunks WHERE chunk_id = 'chunk-1'") == "[1,2,3,4]"
    for command_line in (("status",), ("doctor",), ("outbox", "status"), ("db", "plan")):
        done = typed("amprenta_vectors", *command_line)
        assert "does not exist" not in done.stdout + done.stderr, command_line
        assert done.returncode in {0, 1}, (command_line, done.stderr)
        assert not done.stderr or "error" not in done.stderr, (command_line, done.stderr)


def test_the_script_of_the_database_at_hand_names_the_schema(db: Database, typed: Typed) -> None:
    theirs = elsewhere(db, SYSTEMS["alembic"])
    printed = typed("amprenta_vectors", "db", "upgrade", "--sql", "--schema", "app", VECTOR_DIMENSION="4")
    assert printed.returncode == 0, printed.stderr
    run_script(db, printed.stdout)
    assert theirs.columns("app.rag_chunks")["embedding"] == "vector(4)"


def test_a_connection_that_is_handed_on_has_its_search_path_back(db: Database, tmp_path: Path) -> None:
    elsewhere(db, SYSTEMS["alembic"])
    config = Application(tmp_path, db.url).mount()
    config.attributes["schema"] = "app"
    with sa.create_engine(db.engine.url, poolclass=sa.NullPool).connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert connection.execute(sa.text("SHOW search_path")).scalar_one() == '"$user", public'


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("nowhere", "there is no table nowhere.rag_chunks", "-x schema=app"),
        ("app", "a table rag_chunks that comes before it", "ALTER TABLE rag_chunks RENAME"),
    ],
)
def test_a_schema_that_is_not_the_tables_is_refused(
    db: Database, alembic: Typed, given: str, message: str, hint: str
) -> None:
    elsewhere(db, SYSTEMS["alembic"])
    if given == "app":
        db.execute("CREATE TABLE public.rag_chunks (chunk_id text PRIMARY KEY)")
    done = alembic("-x", f"schema={given}", "upgrade", "head")
    assert done.returncode == 2
    assert message in done.stderr
    assert hint in done.stderr


def test_a_table_in_a_schema_that_is_closed_to_the_role_is_nobodys(
    db: Database, as_role: Callable[[str], Database]
) -> None:
    elsewhere(db, SYSTEMS["alembic"])
    migrate.upgrade(SYSTEMS["alembic"].settings(db), schema="app")
    outsider = as_role("outsider_of_app")
    with outsider.engine.connect() as connection:
        assert adopted_schema(connection, "rag_chunks") is None


def test_of_two_adopted_tables_none_is_guessed(db: Database) -> None:
    elsewhere(db, SYSTEMS["alembic"])
    migrate.upgrade(SYSTEMS["alembic"].settings(db), schema="app")
    db.execute("CREATE SCHEMA other CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding vector(4))")
    db.execute("COMMENT ON COLUMN other.rag_chunks.embedding IS 'made by amprenta_vectors'")
    with db.engine.connect() as connection, pytest.raises(ConfigError, match=r"several schemas.*: app, other"):
        adopted_schema(connection, "rag_chunks")
