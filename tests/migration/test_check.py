"""`alembic check` on our own section: nothing to say after an upgrade, whatever else the database holds."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from migrating import Database, at, prepared

from amprenta_vectors.backfill.database.index import build_deferred, defer_indexes
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.ddl.own_model import comparison
from amprenta_vectors.ddl.programs import operations_of
from amprenta_vectors.migrate import alembic_config
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS

Alembic = Callable[..., subprocess.CompletedProcess[str]]
CLEAN = "No new upgrade operations detected."
AT_HEAD = prepared(at, "head", 8)


@pytest.fixture
def check(alembic: Alembic) -> Callable[[], str]:
    """A function that runs ``alembic check`` and returns what it said."""

    def run() -> str:
        done = alembic("check")
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) is (CLEAN in done.stdout)
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("dimension", [8, 1536, 3072])
def test_after_an_upgrade_nothing_is_left_to_do(db: Database, check: Callable[[], str], dimension: int) -> None:
    db.upgrade(vector_dimension=dimension)
    assert CLEAN in check()
    db.downgrade()
    db.upgrade(vector_dimension=dimension)
    assert CLEAN in check()


@AT_HEAD
def test_foreign_tables_columns_indexes_and_extensions_are_not_ours_to_compare(
    db: Database, check: Callable[[], str]
) -> None:
    db.execute("CREATE TABLE invoices (id serial PRIMARY KEY, total numeric, place point, seen vector(3))")
    db.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    db.execute("CREATE TABLE amprenta_version_products (version_num varchar(32) PRIMARY KEY)")
    db.execute("CREATE SCHEMA other CREATE TABLE migration_run (n int)")
    db.execute("CREATE EXTENSION IF NOT EXISTS plpgsql")
    db.execute("ALTER TABLE rag_chunks ADD COLUMN tenant int UNIQUE REFERENCES invoices, ADD COLUMN place point")
    db.execute("CREATE INDEX theirs ON rag_chunks (content)")
    db.execute("CREATE INDEX theirs_too ON rag_chunks USING ivfflat (embedding vector_l2_ops) WITH (lists = 2)")
    assert CLEAN in check()


@pytest.mark.parametrize(
    "before",
    [
        "CREATE TABLE rag_chunks (chunk_id uuid PRIMARY KEY, owner int NOT NULL DEFAULT 1, content varchar(9))",
        "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding halfvec(4) NOT NULL DEFAULT '[1,2,3,4]')",
        "CREATE TABLE rag_chunks (id int PRIMARY KEY, chunk_id text UNIQUE, embedding_model varchar(9) NOT NULL)",
    ],
    ids=["columns of its own", "embedding of its own", "key and model of its own"],
)
def test_an_adopted_table_is_compared_by_what_was_added_to_it(
    db: Database, check: Callable[[], str], before: str
) -> None:
    db.execute("CREATE EXTENSION vector")
    db.execute(before)
    db.execute("COMMENT ON TABLE rag_chunks IS 'ours since 2021'")
    db.upgrade()
    assert CLEAN in check()


def test_an_index_that_was_there_under_another_name_serves(db: Database, check: Callable[[], str]) -> None:
    db.upgrade("rag_0002", vector_dimension=8)
    db.execute("CREATE INDEX theirs ON rag_chunks USING hnsw (embedding vector_cosine_ops) WITH (m = 24)")
    db.upgrade()
    assert CLEAN in check()


@AT_HEAD
def test_an_index_is_not_missing_while_a_backfill_defers_it(db: Database, check: Callable[[], str]) -> None:
    engine = create_engine(Settings.load(database_url=db.url))
    with engine.connect() as connection:
        table = resolve_table(connection, RAG_CHUNKS)
    assert defer_indexes(engine, table)
    assert CLEAN in check()
    build_deferred(engine, table, threading.Event())
    assert CLEAN in check()
    engine.dispose()


@AT_HEAD
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP INDEX idx_rag_chunks_embedding", "create_vector_index"),
        ("ALTER TABLE rag_chunks DROP COLUMN embedding_model", "embedding_model"),
        ("ALTER TABLE rag_chunks DROP COLUMN content", "content"),
        ("ALTER TABLE migration_run ALTER COLUMN target DROP NOT NULL", "modify_nullable"),
        ("ALTER TABLE migration_run ALTER COLUMN target TYPE varchar(99)", "modify_type"),
        ("DROP TABLE migration_index", "migration_index"),
        ("DROP INDEX migration_run_live", "migration_run_live"),
    ],
)
def test_what_is_ours_and_was_changed_is_said(db: Database, check: Callable[[], str], damage: str, said: str) -> None:
    db.execute(damage)
    said_by_check = check()
    assert CLEAN not in said_by_check
    assert said in said_by_check


@AT_HEAD
def test_a_table_of_the_metadata_is_all_that_the_revisions_make(db: Database) -> None:
    with db.engine.connect() as connection:
        script = ScriptDirectory.from_config(alembic_config(Settings.load(database_url=db.url)))
        ours = comparison(connection, operations_of(script))["target_metadata"].tables
        inspector = sa.inspect(connection)
        for name in set(inspector.get_table_names()) - {"amprenta_version_rag"}:
            assert [column["name"] for column in inspector.get_columns(name)] == list(ours[name].columns.keys())
