"""``op.create_plain_index()`` and its reverse: an ordinary index, made as concurrently as one on vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_plain_index
from amprenta_vectors.ddl.catalogue import building_name, connection_of, mark, qualified, quoted, unique_column_sets
from amprenta_vectors.ddl.index_state import drop_unfinished, is_valid, made_here, settle, waiting_at_length
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.partitions import is_partitioned
from amprenta_vectors.ddl.plan import Step, present_name
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.errors import SchemaMismatch


@Operations.register_operation("create_plain_index")
@dataclass
class CreatePlainIndexOp(MigrateOperation):
    """Build a btree index concurrently, unless it is there."""

    name: str
    table: str
    columns: Sequence[str]
    unique: bool = False
    where: str | None = None
    schema: str | None = None

    @classmethod
    def create_plain_index(
        cls, operations: Operations, name: str, table: str, columns: Sequence[str], **options: Any
    ) -> None:
        """Build index ``name`` on ``columns`` outside any transaction; a valid one of that name is left as it is.

        With ``unique``, one on exactly these columns under another name serves as well. ``where`` is the predicate of
        a partial index. An invalid leftover is dropped and rebuilt, one being built is waited for.
        """
        operations.invoke(cls(name, table, columns, **options))

    @property
    def statement_after_name(self) -> str:
        """What follows the index's name in CREATE INDEX."""
        columns = ", ".join(map(qualified, self.columns))
        where = "" if self.where is None else f" WHERE {self.where}"
        return f"ON {qualified(self.table, self.schema)} ({columns}){where}"

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropPlainIndexOp(self.name, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        connection = connection_of(operations)
        table = qualified(present_name(connection, self.table, self.schema) or self.table, self.schema)
        if is_valid(connection, self.name, self.schema):
            return [Step(f"index {self.name} exists: left as it is", table)]
        if serves_already(connection, self):
            return [Step(f"another unique index does the same as {self.name}: used instead", table)]
        return [
            Step(
                f"build index {self.name}",
                table,
                "SHARE UPDATE EXCLUSIVE",
                duration="concurrent: scans the table twice, and waits for every transaction that is open",
            )
        ]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_plain_index", self.schema, self.table, list(self.columns), self.name)


@Operations.register_operation("drop_plain_index")
@dataclass
class DropPlainIndexOp(MigrateOperation):
    """Drop an index of ours concurrently."""

    name: str
    schema: str | None = None
    _reverse: CreatePlainIndexOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_plain_index(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop index ``name`` if it was made here, and what an interrupted build of it left."""
        operations.invoke(cls(name, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the index that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_plain_index({self.name!r}) is not reversible: the index that was there is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_plain_index", self.schema, self.name)


@Operations.implementation_for(CreatePlainIndexOp)
def _create(operations: Operations, op: CreatePlainIndexOp) -> None:
    if operations.get_context().as_sql:
        offline_plain_index.create_plain_index(operations, op)
        return
    with waiting_at_length(operations, f"building index {op.name}"):
        if settle(operations, op.name, op.schema) == "valid":
            return
        # Named for good only once marked: after a kill at any moment, ours can be told from one that was there.
        building = building_name(op.name)
        if settle(operations, building, op.schema) == "absent":
            if serves_already(connection_of(operations), op):
                log.info("%s: another unique index does the same and is used instead; a downgrade leaves it", op.name)
                return
            _build(operations, op, building)
        mark(connection_of(operations), f"INDEX {quoted(op.schema, building)}")
        operations.rename_table(building, op.name, schema=op.schema)  # ALTER TABLE renames indexes as well


def _build(operations: Operations, op: CreatePlainIndexOp, name: str) -> None:
    connection = connection_of(operations)
    if is_partitioned(connection, op.table, op.schema):
        unique = "UNIQUE " if op.unique else ""
        raise SchemaMismatch(
            f"table {qualified(op.table, op.schema)} is partitioned: PostgreSQL cannot build index {op.name} on it "
            "without locking it",
            hint=f"CREATE {unique}INDEX {qualified(op.name)} {op.statement_after_name}, when its writers can wait; "
            "then run this again, which finds it",
        )
    require_ownership(connection, op.table, op.schema)
    require_create(connection, op.schema)
    operations.create_index(
        name,
        op.table,
        list(op.columns),
        unique=op.unique,
        schema=op.schema,
        postgresql_concurrently=True,
        # Not text(), which would take a colon in it for a parameter.
        postgresql_where=None if op.where is None else sa.literal_column(op.where),
    )


@Operations.implementation_for(DropPlainIndexOp)
def _drop(operations: Operations, op: DropPlainIndexOp) -> None:
    if operations.get_context().as_sql:
        offline_plain_index.drop_plain_index(operations, op)
        return
    drop_unfinished(operations, op.name, op.schema)
    if made_here(connection_of(operations), op.name, op.schema):
        with waiting_at_length(operations, f"dropping index {op.name}"):
            operations.drop_index(op.name, schema=op.schema, if_exists=True, postgresql_concurrently=True)


def serves_already(connection: Connection, op: CreatePlainIndexOp) -> bool:
    """Whether a unique index on exactly these columns is there, whatever its name."""
    return op.unique and op.where is None and set(op.columns) in unique_column_sets(connection, op.table, op.schema)
