"""``op.create_vector_index()`` and its reverse: concurrent, repeatable, and never left invalid."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import MADE, building_name, column_types, connection_of, mark, quoted, table_exists
from amprenta_vectors.ddl.locking import without_timeouts
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.vector_type import VectorType
from amprenta_vectors.errors import SchemaMismatch

Method = Literal["hnsw", "ivfflat"]
Distance = Literal["cosine", "l2", "ip"]

VECTOR_INDEX_LIMIT = 2000
"""Dimensions beyond which a ``vector`` column is indexed through a cast to halfvec (pgvector's README)."""

_POLL_SECONDS = 0.5


@Operations.register_operation("create_vector_index")
@dataclass
class CreateVectorIndexOp(MigrateOperation):
    """Build an ANN index concurrently, unless it is there or its building is deferred by a backfill."""

    name: str
    table: str
    column: str
    method: Method = "hnsw"
    distance: Distance = "cosine"
    options: dict[str, int] = field(default_factory=dict)
    schema: str | None = None

    @classmethod
    def create_vector_index(cls, operations: Operations, name: str, table: str, column: str, **options: Any) -> None:
        """Build index ``name`` on ``table.column`` outside any transaction.

        ``method`` is hnsw or ivfflat; ``options`` its storage parameters (``{"m": 16, "ef_construction": 64}``). The
        operator class follows from ``distance`` and the column's type. An invalid leftover is dropped and rebuilt, one
        being built is waited for. Raises `SchemaMismatch` for a column that is no vector.
        """
        operations.invoke(cls(name, table, column, **options))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropVectorIndexOp(self.name, self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_vector_index", self.schema, self.table, self.column, self.name)


@Operations.register_operation("drop_vector_index")
@dataclass
class DropVectorIndexOp(MigrateOperation):
    """Drop an index of ours concurrently."""

    name: str
    schema: str | None = None

    @classmethod
    def drop_vector_index(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop index ``name`` if this package made it; forget it where its building is deferred."""
        operations.invoke(cls(name, schema))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_vector_index", self.schema, self.name)


@Operations.implementation_for(CreateVectorIndexOp)
def _create(operations: Operations, op: CreateVectorIndexOp) -> None:
    connection = connection_of(operations)
    expression, opclass = _expression(connection, op)
    if _deferred(connection, op.name):
        log.info("%s: a backfill deferred it and will build it", op.name)
        return
    with operations.get_context().autocommit_block(), without_timeouts(connection):
        if _settle(operations, op.name, op.schema) == "valid":
            return
        # Named for good only once marked: after a kill at any moment, ours can be told from one that was there.
        building = building_name(op.name)
        if _settle(operations, building, op.schema) == "absent":
            operations.create_index(
                building,
                op.table,
                [expression],
                schema=op.schema,
                postgresql_concurrently=True,
                postgresql_using=op.method,
                postgresql_ops={op.column: opclass},
                postgresql_with=op.options,
            )
        mark(connection, "INDEX", op.schema, building)
        operations.rename_table(building, op.name, schema=op.schema)  # ALTER TABLE renames indexes as well


@Operations.implementation_for(DropVectorIndexOp)
def _drop(operations: Operations, op: DropVectorIndexOp) -> None:
    connection = connection_of(operations)
    if _deferred(connection, op.name):
        connection.execute(sa.text("DELETE FROM migration_index WHERE index_name = :name"), {"name": op.name})
    if _made_here(connection, op.name, op.schema):
        with operations.get_context().autocommit_block(), without_timeouts(connection):
            operations.drop_index(op.name, schema=op.schema, if_exists=True, postgresql_concurrently=True)


def _settle(operations: Operations, name: str, schema: str | None) -> Literal["absent", "valid"]:
    """Wait while another session builds the index; drop what an interrupted build left."""
    while (state := _state(connection_of(operations), name, schema)) == "building":
        time.sleep(_POLL_SECONDS)
    if state == "valid":
        return "valid"
    if state == "invalid":
        log.warning("%s is invalid, left by an interrupted build: rebuilding it", name)
        operations.drop_index(name, schema=schema, if_exists=True, postgresql_concurrently=True)
    return "absent"


def _state(connection: Connection, name: str, schema: str | None) -> Literal["absent", "building", "invalid", "valid"]:
    row = connection.execute(
        sa.text("""
            SELECT i.indisvalid, EXISTS (
                SELECT 1 FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid
            ) AS building
            FROM pg_index i WHERE i.indexrelid = to_regclass(:name)
        """),
        {"name": quoted(schema, name)},
    ).first()
    if row is None:
        return "absent"
    if row.indisvalid:
        return "valid"
    return "building" if row.building else "invalid"


def _expression(connection: Connection, op: CreateVectorIndexOp) -> tuple[str | sa.ColumnElement[Any], str]:
    """The column, or its cast labelled with the column's name, and the operator class that serves it."""
    found = column_types(connection, op.table, op.schema).get(op.column, "no column")
    actual = VectorType.parse(found)
    if actual is None:
        raise SchemaMismatch(
            f"cannot index {op.table}.{op.column}: it is {found}; expected vector(n) or halfvec(n)",
            hint="alembic upgrade head",
        )
    if actual.storage == "vector" and actual.dimension > VECTOR_INDEX_LIMIT:
        cast = sa.cast(sa.column(op.column), VectorType("halfvec", actual.dimension))
        return cast.label(op.column), f"halfvec_{op.distance}_ops"
    return op.column, f"{actual.storage}_{op.distance}_ops"


def _deferred(connection: Connection, name: str) -> bool:
    if not table_exists(connection, "migration_index"):
        return False
    statement = sa.text("SELECT 1 FROM migration_index WHERE index_name = :name AND built_at IS NULL")
    return connection.execute(statement, {"name": name}).first() is not None


def _made_here(connection: Connection, name: str, schema: str | None) -> bool:
    statement = sa.text("SELECT obj_description(to_regclass(:name), 'pg_class')")
    return connection.execute(statement, {"name": quoted(schema, name)}).scalar() == MADE
