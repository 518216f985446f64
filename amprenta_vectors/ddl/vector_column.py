"""``op.add_vector_column()``: a kept column of type vector or halfvec, with a checked dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl import offline_column
from amprenta_vectors.ddl.catalogue import column_types, connection_of, is_retired, qualified, retired_name
from amprenta_vectors.ddl.kept_column import DropKeptColumnOp, add_column, plan_column
from amprenta_vectors.ddl.options import configured_dimension
from amprenta_vectors.ddl.plan import Step, present_name
from amprenta_vectors.ddl.take_back import take_back
from amprenta_vectors.ddl.vector_type import VectorType
from amprenta_vectors.errors import DimensionMismatch, SchemaMismatch


@Operations.register_operation("add_vector_column")
@dataclass
class AddVectorColumnOp(MigrateOperation):
    """Add a nullable embedding column, or take back the one an earlier downgrade kept.

    Its reverse is ``drop_kept_column``.
    """

    table: str
    column: str
    dimension: int
    storage: Literal["vector", "halfvec"] = "vector"
    schema: str | None = None
    configurable: bool = False
    nullable: bool = True

    @classmethod
    def add_vector_column(cls, operations: Operations, table: str, column: str, dimension: int, **options: Any) -> None:
        """Add ``column`` as ``storage(dimension)``; a column of that name and kind is adopted as it is.

        With ``configurable``, ``-x dimension=`` or ``VECTOR_DIMENSION`` decides instead of ``dimension``. Values kept
        by a downgrade come back, but for rows whose ``updated_at`` is later than the downgrade: those become NULL.
        Without ``nullable`` it is NOT NULL where the table has no rows yet; those that there are wait to be filled.
        Raises `DimensionMismatch` or `SchemaMismatch` for a column that cannot be adopted.
        """
        operations.invoke(cls(table, column, dimension, **options))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropKeptColumnOp(self.table, self.column, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now. Raises as the operation does for a column that cannot be adopted."""
        connection = connection_of(operations)
        demanded = configured_dimension(operations) if self.configurable else self.dimension
        present = present_name(connection, self.table, self.schema) or self.table
        types = column_types(connection, present, self.schema)
        for name in (self.column, retired_name(self.column)):
            if name in types and (name == self.column or is_retired(connection, present, name, self.schema)):
                _check(self, name, types[name], demanded)
                break
        type_ = VectorType(self.storage, demanded or self.dimension).get_col_spec()
        return plan_column(connection, self.table, self.column, type_, self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("add_vector_column", self.schema, self.table, self.column, f"{self.storage}({self.dimension})")


@Operations.implementation_for(AddVectorColumnOp)
def _add(operations: Operations, op: AddVectorColumnOp) -> None:
    if operations.get_context().as_sql:
        offline_column.add_vector_column(operations, op)
        return
    demanded = configured_dimension(operations) if op.configurable else op.dimension
    connection = connection_of(operations)
    types = column_types(connection, op.table, op.schema)
    kept = retired_name(op.column)
    if op.column in types:
        _check(op, op.column, types[op.column], demanded)
    elif is_retired(connection, op.table, kept, op.schema):
        _check(op, kept, types[kept], demanded)
        take_back(operations, op.table, op.column, op.schema)
    else:
        type_ = VectorType(op.storage, demanded or op.dimension)
        add_column(operations, op.table, op.column, type_, op.schema, nullable=op.nullable)


def _check(op: AddVectorColumnOp, column: str, found: str, demanded: int | None) -> None:
    actual = VectorType.parse(found)
    if actual is None:
        raise SchemaMismatch(
            f"column {op.table}.{column} is of type {found}; expected {op.storage}({demanded or op.dimension})",
            hint=f"rename it out of the way (ALTER TABLE {qualified(op.table, op.schema)} RENAME COLUMN "
            f"{qualified(column)} TO {qualified(column + '_old')}), then: alembic upgrade head",
        )
    if demanded is not None and actual.dimension != demanded:
        raise DimensionMismatch(
            f"VECTOR_DIMENSION is {demanded}, but {op.table}.{column} is {found}",
            hint=f"export VECTOR_DIMENSION={actual.dimension}, or unset it",
        )
