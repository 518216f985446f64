"""A partitioned table: PostgreSQL builds no index of it concurrently, but one of each partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import qualified, quoted
from amprenta_vectors.ddl.index_key import IndexKey
from amprenta_vectors.errors import SchemaMismatch

if TYPE_CHECKING:
    from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp


def is_partitioned(connection: Connection, table: str, schema: str | None = None) -> bool:
    """Whether the rows of ``table`` lie in partitions."""
    statement = sa.text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
    return bool(connection.execute(statement, {"name": quoted(schema, table)}).scalar())


def refuse_partitioned(connection: Connection, op: CreateVectorIndexOp, key: IndexKey) -> None:
    """Raises `SchemaMismatch` with the statements that do it where the table of ``op`` is partitioned."""
    if not is_partitioned(connection, op.table, op.schema):
        return
    table, index, typed = qualified(op.table, op.schema), qualified(op.name), f"({key.typed})"
    raise SchemaMismatch(
        f"table {table} is partitioned: PostgreSQL cannot build index {op.name} on it without locking it",
        hint=f"CREATE INDEX {index} ON ONLY {table} USING {op.method} {typed}; for each partition: CREATE INDEX "
        f"CONCURRENTLY name ON partition USING {op.method} {typed}, then ALTER INDEX {index} ATTACH PARTITION name; "
        "then run this again, which finds it",
    )
