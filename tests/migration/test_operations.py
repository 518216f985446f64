"""The operations in a migration environment that is not ours, on names that need quoting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from migrating import Database

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from amprenta_vectors.errors import SchemaMismatch, ServerUnsuitable

ODD = 'o"dd: 100% ключ'
LONG = "ü" * 31


@contextmanager
def revision(db: Database) -> Iterator[Any]:
    """What a revision of an application's own chain is given as ``op``."""
    engine = sa.create_engine(db.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with context.begin_transaction(_per_migration=True):
            yield Operations(context)


@pytest.mark.parametrize("name", [ODD, LONG], ids=["odd", "long"])
@pytest.mark.parametrize("schema", [None, ODD], ids=["search path", "schema"])
def test_every_operation_takes_any_name_and_finds_its_way_back(db: Database, name: str, schema: str | None) -> None:
    if schema is not None:
        with db.engine.connect() as connection:
            connection.execute(sa.schema.CreateSchema(schema))
    for _ in range(2):
        with revision(db) as op:
            op.create_vector_extension()
            op.adopt_table(name, sa.Column(name, sa.Text, primary_key=True), key=[name], schema=schema)
            op.add_vector_column(name, f"{name[:20]}v", 3, schema=schema)
            op.create_vector_index(name[:25] + "_idx", name, f"{name[:20]}v", schema=schema)
        indexes = db.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE '%\\_idx'")
        assert indexes == [(name[:25] + "_idx",)]
        with db.engine.connect() as connection:
            table = sa.table(name, sa.column(name), sa.column(f"{name[:20]}v"), schema=schema)
            if connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0:
                connection.execute(table.insert().values({name: "a", f"{name[:20]}v": "[1,2,3]"}))
            assert connection.execute(sa.select(table)).all() == [("a", "[1,2,3]")]
        with revision(db) as op:
            op.drop_vector_index(name[:25] + "_idx", schema=schema)
            op.drop_kept_column(name, f"{name[:20]}v", schema=schema)
            op.retire_table(name, schema=schema)
            op.drop_vector_extension()
        assert db.execute("SELECT FROM pg_indexes WHERE indexname LIKE '%\\_idx'") == []
        assert db.execute("SELECT FROM pg_class WHERE relname = :name", name=name) == []


def test_an_extension_that_is_not_available_is_said_with_how_to_get_it(db: Database) -> None:
    if int(db.scalar("SHOW server_version_num")) < 180000:
        pytest.skip("only PostgreSQL 18 and newer can be told to look for extensions elsewhere")
    db.execute(f"ALTER DATABASE {db.scalar('SELECT current_database()')} SET extension_control_path = '/nonexistent'")
    with pytest.raises(ServerUnsuitable, match="is not available on this server") as caught, revision(db) as op:
        op.create_vector_extension()
    assert "install pgvector" in str(caught.value)


def test_what_to_type_names_the_schema_and_quotes_what_must_be(db: Database) -> None:
    db.execute("CREATE EXTENSION vector")
    db.execute("CREATE SCHEMA app")
    db.execute('CREATE TABLE app."Docs" ("Id" text, embedding real[], updated_at timestamptz)')
    with pytest.raises(SchemaMismatch) as caught, revision(db) as op:
        op.adopt_table("Docs", sa.Column("Id", sa.Text), key=["Id"], schema="app")
    typed = 'CREATE UNIQUE INDEX CONCURRENTLY ON app."Docs" ("Id")'
    assert typed in str(caught.value)
    db.execute(typed)
    with pytest.raises(SchemaMismatch) as caught, revision(db) as op:
        op.add_vector_column("Docs", "embedding", 3, schema="app")
    typed = 'ALTER TABLE app."Docs" RENAME COLUMN embedding TO embedding_old'
    assert typed in str(caught.value)
    db.execute(typed)
    with revision(db) as op:
        op.add_vector_column("Docs", "embedding", 3, schema="app")
    db.execute('ALTER TABLE app."Docs" ADD embedding_retired text')
    with pytest.raises(SchemaMismatch) as caught, revision(db) as op:
        op.drop_kept_column("Docs", "embedding", schema="app")
    assert 'ALTER TABLE app."Docs" RENAME COLUMN embedding_retired TO …' in str(caught.value)
