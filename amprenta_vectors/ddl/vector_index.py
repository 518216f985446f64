"""``op.create_vector_index()`` and its reverse: concurrent, repeatable, and never left invalid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_index
from amprenta_vectors.ddl.catalogue import (
    building_name,
    column_types,
    connection_of,
    mark,
    qualified,
    quoted,
    table_exists,
)
from amprenta_vectors.ddl.index_key import IndexKey, index_key_of
from amprenta_vectors.ddl.index_state import (
    deferred,
    drop_unfinished,
    equivalent_indexes,
    is_valid,
    made_here,
    settle,
    waiting_at_length,
)
from amprenta_vectors.ddl.options import configured_index, log
from amprenta_vectors.ddl.partitions import refuse_partitioned
from amprenta_vectors.ddl.plan import Step, present_name
from amprenta_vectors.ddl.privileges import require_create, require_ownership

Method = Literal["hnsw", "ivfflat"]
Distance = Literal["cosine", "l2", "ip", "l1"]


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
    storage: Literal["halfvec", "bit"] | None = None
    schema: str | None = None
    concurrently: bool = True
    configurable: bool = False

    @classmethod
    def create_vector_index(cls, operations: Operations, name: str, table: str, column: str, **options: Any) -> None:
        """Build index ``name`` on ``table.column`` outside any transaction.

        ``method`` is hnsw or ivfflat; ``options`` its storage parameters (``{"m": 16, "ef_construction": 64}``). The
        operator class follows from ``distance`` and what is indexed: the column; with ``storage="halfvec"`` its cast,
        as always past 2000 dimensions; with ``storage="bit"`` the sign of each dimension, as always past 4000, whatever
        the distance. ``where`` is the predicate of a partial index. An invalid leftover is dropped and rebuilt, one
        being built is waited for. ``concurrently=False`` is for a table that the same transaction makes. With
        ``configurable``, ``-x index=`` decides method and storage; ``lists`` of an ivfflat index are 0 to follow from
        the number of rows. Raises `SchemaMismatch` for a column that is no vector, or too long for the storage.
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
            others = equivalent_indexes(connection, self, _key(connection, self))
            if others and is_valid(connection, others[0], self.schema):
                return [Step(f"index {others[0]} does the same as {self.name}: used instead", table)]
        return [
            Step(
                f"build index {self.name} ({', '.join(filter(None, (self.method, self.storage)))})",
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

        What an interrupted build of it left is dropped too. With ``adopted=True``, also one that was made otherwise.
        ``concurrently=False`` is for a table that the same
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
        offline_index.create_vector_index(operations, op)
        return
    connection = connection_of(operations)
    key = _key(connection, op)
    if deferred(connection, op.name):
        log.info("%s: a backfill deferred it and will build it", op.name)
        return
    if not op.concurrently:
        if not table_exists(connection, op.name, op.schema):
            _build(operations, op, op.name, key)
            mark(connection, f"INDEX {quoted(op.schema, op.name)}")
        return
    with waiting_at_length(operations, f"building index {op.name}"):
        if settle(operations, op.name, op.schema) == "valid" or _find_equivalent(operations, op, key):
            return
        # Named for good only once marked: after a kill at any moment, ours can be told from one that was there.
        building = building_name(op.name)
        if settle(operations, building, op.schema) == "absent":
            _build(operations, op, building, key)
        mark(connection, f"INDEX {quoted(op.schema, building)}")
        operations.rename_table(building, op.name, schema=op.schema)  # ALTER TABLE renames indexes as well


def _build(operations: Operations, op: CreateVectorIndexOp, name: str, key: IndexKey) -> None:
    if op.concurrently:
        refuse_partitioned(connection_of(operations), op, key)
    require_ownership(connection_of(operations), op.table, op.schema)
    require_create(connection_of(operations), op.schema)
    operations.create_index(
        name,
        op.table,
        [op.column if key.is_column else key.of(sa.column(op.column))],
        schema=op.schema,
        postgresql_concurrently=op.concurrently,
        postgresql_using=op.method,
        postgresql_ops={op.column: key.opclass},
        postgresql_with=_options(connection_of(operations), op),
        # Not text(), which would take a colon in it for a parameter.
        postgresql_where=None if op.where is None else sa.literal_column(op.where),
    )


def configured(operations: Operations, op: CreateVectorIndexOp) -> CreateVectorIndexOp:
    """``op`` with the method and storage that ``-x index=`` asks for, where it lets itself be configured."""
    asked = configured_index(operations) if op.configurable else None
    if asked is None:
        return op
    method, storage = asked
    options = op.options if method == op.method else {"lists": 0} if method == "ivfflat" else {}
    return replace(op, method=method, storage=storage or op.storage, options=options)


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
    for other in equivalent_indexes(connection_of(operations), op, key):
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
    if op.concurrently:
        drop_unfinished(operations, op.name, op.schema)
    if not (op.adopted or made_here(connection, op.name, op.schema)):
        return
    if not op.concurrently:
        operations.drop_index(op.name, schema=op.schema, if_exists=True)
    else:
        with waiting_at_length(operations, f"dropping index {op.name}"):
            operations.drop_index(op.name, schema=op.schema, if_exists=True, postgresql_concurrently=True)


def _key(connection: Connection, op: CreateVectorIndexOp) -> IndexKey:
    return index_key_of(connection, op.table, op.column, op.distance, storage=op.storage, schema=op.schema)
