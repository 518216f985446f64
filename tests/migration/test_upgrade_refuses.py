"""Tables, columns and dimensions that an upgrade refuses: exit code 2, what is wrong by name, and nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from migrating import Database

from amprenta_vectors.errors import DimensionMismatch, SchemaMismatch

Alembic = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert done.returncode == 2, done.stderr
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_table_without_chunk_id_is_named_with_what_it_lacks(db: Database, alembic: Alembic) -> None:
    db.execute("CREATE TABLE rag_chunks (id text PRIMARY KEY)")
    done = alembic("upgrade", "head")
    refused(
        done, "table rag_chunks exists without the columns relied on: chunk_id", "ALTER TABLE rag_chunks ADD COLUMN"
    )
    assert db.columns("rag_chunks") == {"id": "text"}


def test_what_to_type_for_a_missing_unique_index_mends_it(db: Database, alembic: Alembic) -> None:
    db.execute("CREATE TABLE rag_chunks (namespace text, chunk_id text)")
    done = alembic("upgrade", "head")
    typed = "CREATE UNIQUE INDEX CONCURRENTLY ON rag_chunks (namespace, chunk_id)"
    refused(done, "table rag_chunks exists without a unique index on exactly (namespace, chunk_id)", typed)
    db.execute(typed)
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX ON rag_chunks (chunk_id)",
        "CREATE UNIQUE INDEX ON rag_chunks (chunk_id) WHERE content IS NOT NULL",
        "CREATE UNIQUE INDEX ON rag_chunks (lower(chunk_id))",
        "CREATE UNIQUE INDEX ON rag_chunks (chunk_id, content)",
        "CREATE UNIQUE INDEX ON rag_chunks (content) INCLUDE (chunk_id)",
        "ALTER TABLE rag_chunks ADD UNIQUE (chunk_id) DEFERRABLE",
    ],
    ids=["not unique", "partial", "expression", "more columns", "INCLUDE", "deferrable"],
)
def test_an_index_that_does_not_tell_rows_apart_by_key_alone_is_not_enough(db: Database, index: str) -> None:
    db.execute("CREATE TABLE rag_chunks (chunk_id text, content text)")
    db.execute(index)
    with pytest.raises(SchemaMismatch, match=r"without a unique index on exactly \(chunk_id\)"):
        db.upgrade()


def test_a_unique_index_on_the_key_alone_is_not_enough_beside_a_namespace(db: Database) -> None:
    db.execute("CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, namespace text)")
    with pytest.raises(SchemaMismatch, match=r"exactly \(namespace, chunk_id\)"):
        db.upgrade()


def test_a_key_that_a_unique_index_merely_includes_is_not_unique(db: Database) -> None:
    db.execute("CREATE TABLE rag_chunks (namespace text, chunk_id text)")
    db.execute("CREATE UNIQUE INDEX ON rag_chunks (namespace) INCLUDE (chunk_id)")
    with pytest.raises(SchemaMismatch, match=r"exactly \(namespace, chunk_id\)"):
        db.upgrade()


@pytest.mark.parametrize("type_", ["text", "json", "jsonb", "real[]", "bytea"])
def test_an_embedding_column_of_another_type_is_refused_and_keeps_its_values(adopted: Database, type_: str) -> None:
    adopted.execute(f"ALTER TABLE rag_chunks ADD COLUMN embedding {type_}")
    values = {"text": "[1,2]", "json": "[1, 2]", "jsonb": "[1, 2]", "real[]": "{1,2}", "bytea": "12"}
    adopted.execute(f"UPDATE rag_chunks SET embedding = '{values[type_]}'")
    with pytest.raises(SchemaMismatch) as caught:
        adopted.upgrade()
    assert f"column rag_chunks.embedding is of type {type_}; expected vector(1536)" in str(caught.value)
    assert adopted.scalar("SELECT count(embedding) FROM rag_chunks") == 100


def test_what_to_type_for_a_column_of_another_type_mends_it(adopted: Database, alembic: Alembic) -> None:
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding real[] DEFAULT '{1,2}'")
    typed = "ALTER TABLE rag_chunks RENAME COLUMN embedding TO embedding_old"
    refused(alembic("upgrade", "head"), "is of type real[]; expected vector(1536)", typed)
    adopted.execute(typed)
    done = alembic("upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert adopted.columns("rag_chunks")["embedding"] == "vector(1536)"
    assert adopted.scalar("SELECT count(embedding_old) FROM rag_chunks") == 100


def test_a_vector_column_without_a_dimension_is_refused(adopted: Database) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding vector")
    with pytest.raises(SchemaMismatch, match=r"is of type vector; expected vector\(1536\)"):
        adopted.upgrade()


def test_a_dimension_that_disagrees_with_the_column_names_both(adopted: Database, alembic: Alembic) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding vector(3)")
    done = alembic("upgrade", "head", VECTOR_DIMENSION="1536")
    refused(done, "VECTOR_DIMENSION is 1536, but rag_chunks.embedding is vector(3)", "export VECTOR_DIMENSION=3")
    done = alembic("upgrade", "head", VECTOR_DIMENSION="3")
    assert done.returncode == 0, done.stderr


def test_a_dimension_that_disagrees_with_the_kept_column_is_refused_and_keeps_it(adopted: Database) -> None:
    adopted.upgrade(vector_dimension=3)
    adopted.execute("UPDATE rag_chunks SET embedding = '[1,2,3]', updated_at = now() - interval '1 day'")
    adopted.downgrade()
    with pytest.raises(
        DimensionMismatch, match=r"VECTOR_DIMENSION is 4, but rag_chunks.embedding_retired is vector\(3\)"
    ):
        adopted.upgrade(vector_dimension=4)
    adopted.upgrade()
    assert adopted.scalar("SELECT count(*) FROM rag_chunks WHERE embedding = '[1,2,3]'") == 100


@pytest.mark.parametrize("value", ["many", "0", "20000", "1.5"])
def test_a_vector_dimension_that_is_no_dimension_is_refused(db: Database, alembic: Alembic, value: str) -> None:
    refused(alembic("upgrade", "head", VECTOR_DIMENSION=value), "VECTOR_DIMENSION", repr(value))
    assert not db.columns("rag_chunks")
