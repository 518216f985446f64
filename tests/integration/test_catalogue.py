"""`resolve_table` reads a vector table as it really is, and refuses one that is not what is relied on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from databases import janitor
from sqlalchemy.engine import Connection

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import DimensionMismatch, NotUpgraded, SchemaMismatch
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.catalogue import columns_to_fill, resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import VectorTable


@pytest.fixture(scope="module")
def vector_engine(postgres_server: EmbeddedPostgres) -> Iterator[sa.Engine]:
    """An engine on a database with pgvector and nothing else."""
    with janitor(postgres_server, "with_vector") as database:
        engine = create_engine(Settings.load(database_url=postgres_server.url(database.dbname)))
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE EXTENSION vector"))
        yield engine
        engine.dispose()


@pytest.fixture
def connection(vector_engine: sa.Engine) -> Iterator[Connection]:
    """A transaction that is rolled back, and with it all that the test made."""
    with vector_engine.connect() as connection:
        yield connection


def test_a_table_made_here_is_read_whole(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        table = resolve_table(connection, RAG_CHUNKS)
    assert (table.scope, table.key, table.unique_columns) == (("namespace",), ("chunk_id",), ("namespace", "chunk_id"))
    assert (table.text, table.metadata, table.model) == ("content", "metadata", "embedding_model")
    assert (table.dimension, table.storage) == (8, "vector")
    assert table.column_types == {
        "namespace": "text",
        "chunk_id": "text",
        "updated_at": "timestamp with time zone",
    }


def test_scope_and_optional_columns_that_are_not_there_are_left_out(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE rag_chunks (chunk_id uuid PRIMARY KEY, embedding halfvec(3))")
    table = resolve_table(connection, RAG_CHUNKS)
    assert table.scope == ()
    assert (table.text, table.metadata, table.model) == (None, None, None)
    assert (table.dimension, table.storage) == (3, "halfvec")
    assert table.column_types == {"chunk_id": "uuid"}


def test_a_vector_table_without_scope_and_with_a_key_of_two_columns(connection: Connection) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE products (shop int, sku text, vec vector(3), UNIQUE (sku, shop), note text NOT NULL)"
    )
    described = VectorTable(name="products", table="products", key=("shop", "sku"), embedding="vec", dimension=768)
    table = resolve_table(connection, described)
    assert table.unique_columns == ("shop", "sku")
    assert table.column_types == {"shop": "integer", "sku": "text"}
    assert table.dimension == 3
    assert columns_to_fill(connection, table) == ["note"]


def test_columns_with_a_default_need_no_value_from_a_backfill(connection: Connection) -> None:
    connection.exec_driver_sql("""
        CREATE TABLE rag_chunks (
            id bigint GENERATED ALWAYS AS IDENTITY, chunk_id text PRIMARY KEY, embedding vector(3),
            made timestamptz NOT NULL DEFAULT now(),
            twice text NOT NULL GENERATED ALWAYS AS (chunk_id || chunk_id) STORED,
            optional text, content text NOT NULL, owner_id int NOT NULL
        )
    """)
    assert columns_to_fill(connection, resolve_table(connection, RAG_CHUNKS)) == ["owner_id"]


def test_a_table_in_another_schema_with_a_name_that_needs_quoting(connection: Connection) -> None:
    connection.exec_driver_sql('CREATE SCHEMA "my schema"')
    connection.exec_driver_sql('CREATE TABLE "my schema"."Odd ""Table" ("Key" text PRIMARY KEY, embedding vector(3))')
    described = VectorTable(name="odd", table='Odd "Table', schema="my schema", key=("Key",), dimension=3)
    table = resolve_table(connection, described)
    assert table.target == 'my schema.Odd "Table.embedding'
    assert table.column_types == {"Key": "text"}


def test_a_type_of_an_extension_in_another_schema_is_understood(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE SCHEMA extensions")
    connection.exec_driver_sql("ALTER EXTENSION vector SET SCHEMA extensions")
    connection.exec_driver_sql("CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding extensions.vector(3))")
    assert resolve_table(connection, RAG_CHUNKS).dimension == 3


def test_no_table_names_the_command_that_makes_it(connection: Connection) -> None:
    with pytest.raises(NotUpgraded, match="table rag_chunks does not exist") as caught:
        resolve_table(connection, RAG_CHUNKS)
    assert caught.value.hint == "alembic upgrade head"


def test_no_embedding_column_names_the_command_that_makes_it(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY)")
    with pytest.raises(NotUpgraded, match="table rag_chunks has no column embedding") as caught:
        resolve_table(connection, RAG_CHUNKS)
    assert caught.value.hint == "alembic upgrade head"


def test_no_key_column_is_named(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE rag_chunks (id text PRIMARY KEY, embedding vector(3))")
    with pytest.raises(SchemaMismatch, match="table rag_chunks has no column chunk_id"):
        resolve_table(connection, RAG_CHUNKS)


@pytest.mark.parametrize("type_", ["text", "json", "real[]", "vector", "sparsevec(3)"])
def test_an_embedding_of_another_type_is_named_with_its_type(connection: Connection, type_: str) -> None:
    connection.exec_driver_sql(f"CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding {type_})")
    with pytest.raises(SchemaMismatch) as caught:
        resolve_table(connection, RAG_CHUNKS)
    assert f"column rag_chunks.embedding is of type {type_}; expected vector(n) or halfvec(n)" in str(caught.value)
    assert "ALTER TABLE rag_chunks RENAME COLUMN embedding TO embedding_old" in str(caught.value)


def test_a_demanded_dimension_that_disagrees_names_both(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding vector(3))")
    assert resolve_table(connection, RAG_CHUNKS, dimension=3).dimension == 3
    with pytest.raises(DimensionMismatch, match=r"VECTOR_DIMENSION is 1536, but rag_chunks.embedding is vector\(3\)"):
        resolve_table(connection, RAG_CHUNKS, dimension=1536)


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX ON rag_chunks (namespace, chunk_id)",
        "CREATE UNIQUE INDEX ON rag_chunks (chunk_id)",
        "CREATE UNIQUE INDEX ON rag_chunks (namespace, chunk_id) WHERE content IS NOT NULL",
        "CREATE UNIQUE INDEX ON rag_chunks (namespace, lower(chunk_id))",
        "CREATE UNIQUE INDEX ON rag_chunks (namespace, chunk_id, content)",
    ],
    ids=["not unique", "key alone", "partial", "expression", "more columns"],
)
def test_an_index_that_does_not_tell_rows_apart_by_scope_and_key_is_not_enough(
    connection: Connection, index: str
) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE rag_chunks (namespace text, chunk_id text, content text, embedding vector(3))"
    )
    connection.exec_driver_sql(index)
    with pytest.raises(SchemaMismatch, match=r"no unique index on exactly \(namespace, chunk_id\)") as caught:
        resolve_table(connection, RAG_CHUNKS)
    assert caught.value.hint == "CREATE UNIQUE INDEX CONCURRENTLY ON rag_chunks (namespace, chunk_id)"


def test_the_order_of_the_unique_columns_does_not_matter(connection: Connection) -> None:
    connection.exec_driver_sql(
        "CREATE TABLE rag_chunks (namespace text, chunk_id text, embedding vector(3), UNIQUE (chunk_id, namespace))"
    )
    assert resolve_table(connection, RAG_CHUNKS).unique_columns == ("namespace", "chunk_id")
