"""What `alembic upgrade head` makes, what it takes as it is, and what it leaves alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from migrating import ROOT, Database

Alembic = Callable[..., subprocess.CompletedProcess[str]]
INDEX = "idx_rag_chunks_embedding"


def test_alembic_upgrade_head_fits_out_an_empty_database(db: Database, alembic: Alembic) -> None:
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert db.columns("rag_chunks") == {
        "namespace": "text",
        "chunk_id": "text",
        "content": "text",
        "metadata": "jsonb",
        "created_at": "timestamp with time zone",
        "updated_at": "timestamp with time zone",
        "embedding": "vector(1536)",
        "embedding_model": "text",
        "embedding_hash": "bigint",
        "embedding_text_hash": "bigint",
    }
    assert db.index_is_valid(INDEX)
    assert "hnsw (embedding vector_cosine_ops) WITH (m='16', ef_construction='64')" in db.scalar(
        "SELECT pg_get_indexdef(CAST(:name AS regclass))", name=INDEX
    )
    for table in (
        "migration_run",
        "migration_progress",
        "migration_quarantine",
        "migration_insert",
        "migration_text",
        "migration_limit",
        "migration_event",
        "shadow_query",
        "vector_forgotten",
        "vector_setting",
        "vector_outbox",
        "vector_row_mark",
        "migration_index",
    ):
        assert db.columns(table)
    assert db.execute("SELECT target, state, source FROM migration_run") == [("rag_chunks.embedding", "planned", None)]
    assert "python scripts/backfill.py --resume" in done.stderr


def test_an_upgrade_at_head_finds_nothing_to_do(db: Database, alembic: Alembic) -> None:
    db.upgrade()
    before = db.catalogue()
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "Running upgrade" not in done.stderr
    assert db.catalogue() == before
    assert db.scalar("SELECT count(*) FROM migration_run") == 1


def test_the_ini_file_works_from_any_folder_and_from_a_path_with_spaces(
    db: Database, alembic: Alembic, tmp_path: Path
) -> None:
    checkout = tmp_path / "my work" / "check out"
    checkout.mkdir(parents=True)
    shutil.copy(ROOT / "alembic.ini", checkout)
    shutil.copytree(ROOT / "alembic", checkout / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    done = alembic("-c", str(checkout / "alembic.ini"), "upgrade", "head", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert db.index_is_valid(INDEX)


def test_dash_x_dimension_decides_when_the_column_is_made(db: Database, alembic: Alembic) -> None:
    done = alembic("-x", "dimension=8", "upgrade", "head", VECTOR_DIMENSION="16")
    assert done.returncode == 0, done.stderr
    assert db.columns("rag_chunks")["embedding"] == "vector(8)"


def test_vector_dimension_decides_when_the_column_is_made(db: Database) -> None:
    db.upgrade(vector_dimension=16)
    assert db.columns("rag_chunks")["embedding"] == "vector(16)"


def test_more_than_2000_dimensions_are_indexed_through_halfvec(db: Database) -> None:
    db.upgrade(vector_dimension=3072)
    assert "(embedding)::halfvec(3072)) halfvec_cosine_ops" in db.scalar(
        "SELECT pg_get_indexdef(CAST(:name AS regclass))", name=INDEX
    )


def test_dash_x_index_chooses_ivfflat_with_lists_from_the_number_of_rows(adopted: Database, alembic: Alembic) -> None:
    adopted.upgrade("rag_0002", vector_dimension=4)
    adopted.execute("INSERT INTO rag_chunks (chunk_id) SELECT 'many' || n FROM generate_series(1, 2500) n")
    adopted.execute("UPDATE rag_chunks SET embedding = ARRAY[1, random(), random(), random()]::vector")
    done = alembic("-x", "index=ivfflat", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    definition = adopted.scalar("SELECT pg_get_indexdef(CAST(:name AS regclass))", name=INDEX)
    assert "USING ivfflat (embedding vector_cosine_ops) WITH (lists='2')" in definition
    assert alembic("check").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index=btree",), "-x index=btree is no kind of index"),
        (("dimension=many",), "the dimension is 'many'; expected a whole number from 1 to 16000"),
        (("dimension=0",), "the dimension is '0'"),
        (("dimensions=8",), "-x dimensions is not known"),
    ],
)
def test_a_wrong_dash_x_argument_is_refused_before_anything_is_made(
    db: Database, alembic: Alembic, arguments: tuple[str, ...], message: str
) -> None:
    done = alembic("-x", *arguments, "upgrade", "head")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not db.columns("rag_chunks").get("embedding")


def test_a_table_without_namespace_is_one_namespace_and_keeps_its_key_and_rows(
    adopted: Database, alembic: Alembic
) -> None:
    before = adopted.execute("SELECT chunk_id, document_id, content, updated_at FROM rag_chunks ORDER BY chunk_id")
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert (
        adopted.execute("SELECT chunk_id, document_id, content, updated_at FROM rag_chunks ORDER BY chunk_id") == before
    )
    columns = adopted.columns("rag_chunks")
    assert "namespace" not in columns
    assert columns["embedding"] == "vector(1536)"
    assert columns["embedding_model"] == "text"
    assert (
        adopted.scalar(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = 'rag_chunks'::regclass AND contype = 'p'"
        )
        == "PRIMARY KEY (chunk_id)"
    )


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE rag_chunks (id bigserial PRIMARY KEY, chunk_id text NOT NULL UNIQUE)",
        "CREATE TABLE rag_chunks (chunk_id uuid PRIMARY KEY)",
        "CREATE TABLE rag_chunks (namespace text, chunk_id text, PRIMARY KEY (namespace, chunk_id))",
        "CREATE TABLE rag_chunks (namespace text, chunk_id text, n text, UNIQUE (chunk_id, namespace) INCLUDE (n))",
    ],
    ids=["unique", "uuid", "namespace", "other order and INCLUDE"],
)
def test_a_table_with_a_unique_index_on_scope_and_key_is_adopted(db: Database, table: str) -> None:
    db.execute(table)
    db.upgrade()
    assert db.columns("rag_chunks")["embedding"] == "vector(1536)"


def test_an_embedding_column_that_is_there_keeps_its_dimension_and_values(adopted: Database) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding vector(3) DEFAULT '[1,2,3]'")
    adopted.upgrade()
    assert adopted.columns("rag_chunks")["embedding"] == "vector(3)"
    assert adopted.scalar("SELECT count(*) FROM rag_chunks WHERE embedding = '[1,2,3]'") == 100
    assert adopted.index_is_valid(INDEX)


def test_a_halfvec_column_that_is_there_is_adopted(adopted: Database) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding halfvec(8)")
    adopted.upgrade(vector_dimension=8)
    assert adopted.columns("rag_chunks")["embedding"] == "halfvec(8)"


def test_foreign_tables_and_a_foreign_alembic_version_are_not_touched(adopted: Database, alembic: Alembic) -> None:
    adopted.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    adopted.execute("INSERT INTO alembic_version VALUES ('the-applications-own')")
    adopted.execute("CREATE TABLE invoices (id serial PRIMARY KEY, total numeric)")
    adopted.execute("CREATE TABLE amprenta_version_unrelated (note text)")
    foreign = {"alembic_version", "alembic_version_pkc", "invoices", "invoices_pkey", "amprenta_version_unrelated"}

    def theirs() -> list[object]:
        return [row for row in adopted.catalogue() if row[0] in foreign]

    before = theirs()
    for command in (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head")):
        done = alembic(*command)
        assert done.returncode == 0, done.stderr
        assert theirs() == before
        assert adopted.scalar("SELECT version_num FROM alembic_version") == "the-applications-own"


def test_a_column_that_merely_has_the_retired_name_is_not_taken(adopted: Database) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding_retired vector(1536)")
    adopted.upgrade()
    columns = adopted.columns("rag_chunks")
    assert columns["embedding"] == columns["embedding_retired"] == "vector(1536)"


def test_alembic_current_tells_the_revision_also_while_an_upgrade_runs(db: Database, alembic: Alembic) -> None:
    from amprenta_vectors.config import Settings
    from amprenta_vectors.db import create_engine, migration_lock

    db.upgrade()
    with migration_lock(create_engine(Settings.load(database_url=db.url)), 1):
        done = alembic("current", AMPRENTA_MIGRATION_LOCK_TIMEOUT="0")
    assert done.returncode == 0, done.stderr
    assert "rag_0004 (head)" in done.stdout


@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
def test_an_unknown_revision_is_a_usage_error_of_the_packages_own_command(typed: Alembic, command: str) -> None:
    done = typed("amprenta_vectors", "db", command, "nowhere")
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
