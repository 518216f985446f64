"""``op.create_vector_index()`` and its reverse: concurrent, repeatable, and never left invalid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_index
from amprenta_vectors.ddl.blockers import naming_blockers
from amprenta_vectors.ddl.catalogue import building_name, column_types, connection_of, mark, qualified, table_exists
from amprenta_vectors.ddl.index_state import deferred, equivalent_indexes, is_valid, made_here, settle
from amprenta_vectors.ddl.locking import session_limits
from amprenta_vectors.ddl.options import configured_method, log
from amprenta_vectors.ddl.partitions import refuse_partitioned
from amprenta_vectors.ddl.plan import Step, present_name
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.ddl.vector_type import VectorType
from amprenta_vectors.errors import SchemaMismatch

Method = Literal["hnsw", "ivfflat"]
Distance = Literal["cosine", "l2", "ip", "l1"]

VECTOR_INDEX_LIMIT = 2000
"""Dimensions beyond which a ``vector`` column is indexed through a cast to halfvec (pgvector's README)."""

IndexKey = tuple[str | sa.ColumnElement[Any], str]
"""What is indexed, the column or its cast to halfvec, and the operator class."""


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
    where: str | None = None
    storage: Literal["halfvec"] | None = None
    schema: str | None = None
    concurrently: bool = True
    configurable: bool = False

    @classmethod
    def create_vector_index(cls, operations: Operations, name: str, table: str, column: str, **options: Any) -> None:
        """Build index ``name`` on ``table.column`` outside any transaction.

        ``method`` is hnsw or ivfflat; ``options`` its storage parameters (``{"m": 16, "ef_construction": 64}``). The
        operator class follows from ``distance`` and the column's type. ``where`` is the predicate of a partial index;
        with ``storage="halfvec"`` a vector column is indexed through a cast, as it always is past 2000 dimensions. An
        invalid leftover is dropped and rebuilt, one being built is waited for. ``concurrently=False`` is for a table
        that the same transaction makes. With ``configurable``, ``-x index=`` decides the method; ``lists`` of an
        ivfflat index are 0 to follow from the number of rows. Raises `SchemaMismatch` for a column that is no vector.
        """
        operations.invoke(cls(name, table, column, **options))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropVectorIndexOp(self.name, self.schema, concurrently=self.concurrently, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        self = configured(operations, self)
        connection = connection_of(operations)
        present = present_name(connection, self.table, self.schema)
        table = qualified(present or self.table, self.schema)
        if deferred(connection, self.name):
            return [Step(f"index {self.name} is left to the backfill that deferred it", table)]
        if is_valid(connection, self.name, self.schema):
            return [Step(f"index {self.name} exists: left as it is", table)]
        if self.where is None and self.column in column_types(connection, self.table, self.schema):
            expression, opclass = _expression(connection, self)
            others = equivalent_indexes(connection, self, opclass, cast=not isinstance(expression, str))
            if others and is_valid(connection, others[0], self.schema):
                return [Step(f"index {others[0]} does the same as {self.name}: used instead", table)]
        return [
            Step(
                f"build index {self.name} ({self.method})",
                table,
                "SHARE UPDATE EXCLUSIVE" if self.concurrently else "SHARE",
                "nobody" if self.concurrently or present != self.table else "writers",
                "concurrent: scans the table twice, and waits for every transaction that is open"
                if self.concurrently
                else "scans the table",
            )
        ]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_vector_index", self.schema, self.table, self.column, self.name)


@Operations.register_operation("drop_vector_index")
@dataclass
class DropVectorIndexOp(MigrateOperation):
    """Drop an index of ours concurrently."""

    name: str
    schema: str | None = None
    adopted: bool = False
    concurrently: bool = True
    _reverse: CreateVectorIndexOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_vector_index(cls, operations: Operations, name: str, **options: Any) -> None:
        """Drop index ``name`` if this package made it; forget it where its building is deferred.

        With ``adopted=True``, also one that was made otherwise. ``concurrently=False`` is for a table that the same
        transaction drops.
        """
        operations.invoke(cls(name, **options))

    def reverse(self) -> CreateVectorIndexOp:
        """The operation that undoes this one. Raises ValueError where the index that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_vector_index({self.name!r}) is not reversible: the index that was there is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_vector_index", self.schema, self.name)


@Operations.implementation_for(CreateVectorIndexOp)
def _create(operations: Operations, op: CreateVectorIndexOp) -> None:
    op = configured(operations, op)
    if operations.get_context().as_sql:
        offline_index.create_vector_index(operations, op, VECTOR_INDEX_LIMIT)
        return
    connection = connection_of(operations)
    key = _expression(connection, op)
    if deferred(connection, op.name):
        log.info("%s: a backfill deferred it and will build it", op.name)
        return
    if not op.concurrently:
        if not table_exists(connection, op.name, op.schema):
            _build(operations, op, op.name, key)
            mark(connection, "INDEX", op.schema, op.name)
        return
    with _waiting_at_length(operations, f"building index {op.name}"):
        if settle(operations, op.name, op.schema) == "valid" or _find_equivalent(operations, op, key):
            return
        # Named for good only once marked: after a kill at any moment, ours can be told from one that was there.
        building = building_name(op.name)
        if settle(operations, building, op.schema) == "absent":
            _build(operations, op, building, key)
        mark(connection, "INDEX", op.schema, building)
        operations.rename_table(building, op.name, schema=op.schema)  # ALTER TABLE renames indexes as well


def _build(operations: Operations, op: CreateVectorIndexOp, name: str, key: IndexKey) -> None:
    expression, opclass = key
    if op.concurrently:
        refuse_partitioned(connection_of(operations), op, opclass)
    require_ownership(connection_of(operations), op.table, op.schema)
    require_create(connection_of(operations), op.schema)
    operations.create_index(
        name,
        op.table,
        [expression],
        schema=op.schema,
        postgresql_concurrently=op.concurrently,
        postgresql_using=op.method,
        postgresql_ops={op.column: opclass},
        postgresql_with=_options(connection_of(operations), op),
        # Not text(), which would take a colon in it for a parameter.
        postgresql_where=None if op.where is None else sa.literal_column(op.where),
    )


def configured(operations: Operations, op: CreateVectorIndexOp) -> CreateVectorIndexOp:
    """``op`` with the method that ``-x index=`` asks for, where it lets itself be configured."""
    method = configured_method(operations) if op.configurable else None
    if method is None or method == op.method:
        return op
    return replace(op, method=method, options={"lists": 0} if method == "ivfflat" else {})


def suitable_lists(rows: int) -> int:
    """A thousandth of the rows up to a million, their square root beyond (pgvector's README)."""
    return max(1, rows // 1000 if rows <= 1_000_000 else math.isqrt(rows))


def _options(connection: Connection, op: CreateVectorIndexOp) -> dict[str, int]:
    if op.options.get("lists") != 0:
        return op.options
    counted = sa.select(sa.func.count(sa.column(op.column))).select_from(sa.table(op.table, schema=op.schema))
    return {**op.options, "lists": suitable_lists(connection.execute(counted).scalar_one())}


def _find_equivalent(operations: Operations, op: CreateVectorIndexOp, key: IndexKey) -> bool:
    """Whether an index under another name serves the same queries; one that is being built is waited for."""
    if op.where is not None:
        return False
    expression, opclass = key
    cast = not isinstance(expression, str)
    for other in equivalent_indexes(connection_of(operations), op, opclass, cast=cast):
        if settle(operations, other, op.schema, ours=False) == "valid":
            log.info("%s: index %s does the same and is used instead; a downgrade leaves it", op.name, other)
            return True
    return False


@Operations.implementation_for(DropVectorIndexOp)
def _drop(operations: Operations, op: DropVectorIndexOp) -> None:
    if operations.get_context().as_sql:
        offline_index.drop_vector_index(operations, op)
        return
    connection = connection_of(operations)
    if deferred(connection, op.name):
        connection.execute(sa.text("DELETE FROM migration_index WHERE index_name = :name"), {"name": op.name})
    if not (op.adopted or made_here(connection, op.name, op.schema)):
        return
    if not op.concurrently:
        operations.drop_index(op.name, schema=op.schema, if_exists=True)
    else:
        with _waiting_at_length(operations, f"dropping index {op.name}"):
            operations.drop_index(op.name, schema=op.schema, if_exists=True, postgresql_concurrently=True)


@contextmanager
def _waiting_at_length(operations: Operations, what: str) -> Iterator[None]:
    """Outside any transaction and without time limits: what others hold open delays it, and is said."""
    connection = connection_of(operations)
    with (
        operations.get_context().autocommit_block(),
        session_limits(connection),
        naming_blockers(connection, what),
    ):
        yield


def _expression(connection: Connection, op: CreateVectorIndexOp) -> IndexKey:
    """The column, or its cast labelled with the column's name, and the operator class that serves it."""
    found = column_types(connection, op.table, op.schema).get(op.column, "no column")
    actual = VectorType.parse(found)
    if actual is None:
        raise SchemaMismatch(
            f"cannot index {op.table}.{op.column}: it is {found}; expected vector(n) or halfvec(n)",
            hint="alembic upgrade head",
        )
    if actual.storage == "vector" and (op.storage == "halfvec" or actual.dimension > VECTOR_INDEX_LIMIT):
        cast = sa.cast(sa.column(op.column), VectorType("halfvec", actual.dimension))
        return cast.label(op.column), f"halfvec_{op.distance}_ops"
    return op.column, f"{actual.storage}_{op.distance}_ops"
