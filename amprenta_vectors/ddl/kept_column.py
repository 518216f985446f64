"""``op.add_kept_column()``: a column whose values a downgrade keeps and an upgrade takes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl.catalogue import (
    MADE,
    RETIRED,
    column_types,
    comment_of,
    connection_of,
    has_value,
    retired_name,
)
from amprenta_vectors.ddl.locking import with_short_lock
from amprenta_vectors.ddl.options import log, purging

UPDATED_AT = "updated_at"
"""The column that tells whether a row changed while its values were retired."""


@Operations.register_operation("add_kept_column")
@dataclass
class AddKeptColumnOp(MigrateOperation):
    """Add a nullable column, or take back the one an earlier downgrade kept."""

    table: str
    column: str
    type: sa.types.TypeEngine[Any]
    schema: str | None = None

    @classmethod
    def add_kept_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        type: sa.types.TypeEngine[Any],
        *,
        schema: str | None = None,
    ) -> None:
        """Add ``column`` of ``type``; one that exists is adopted as it is."""
        operations.invoke(cls(table, column, type, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropKeptColumnOp(self.table, self.column, self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("add_kept_column", self.schema, self.table, self.column, self.type)


@Operations.register_operation("drop_kept_column")
@dataclass
class DropKeptColumnOp(MigrateOperation):
    """Take a column out of use: kept under a retired name with values, dropped without."""

    table: str
    column: str
    schema: str | None = None

    @classmethod
    def drop_kept_column(cls, operations: Operations, table: str, column: str, *, schema: str | None = None) -> None:
        """Retire ``column``, or drop it where it holds no value or ``-x purge=true`` is given.

        A column that was adopted, not made here, is left as it is.
        """
        operations.invoke(cls(table, column, schema))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_kept_column", self.schema, self.table, self.column)


@Operations.implementation_for(AddKeptColumnOp)
def _add(operations: Operations, op: AddKeptColumnOp) -> None:
    types = column_types(connection_of(operations), op.table, op.schema)
    if op.column in types:
        return
    if retired_name(op.column) in types:
        take_back(operations, op.table, op.column, op.schema)
    else:
        add_column(operations, op.table, op.column, op.type, op.schema)


@Operations.implementation_for(DropKeptColumnOp)
def _drop(operations: Operations, op: DropKeptColumnOp) -> None:
    connection = connection_of(operations)
    where = f"{op.table}.{op.column}"
    if op.column not in column_types(connection, op.table, op.schema):
        return
    if comment_of(connection, op.table, op.column, op.schema) != MADE:
        log.info("%s was adopted, not made here: left as it is", where)
        return
    values = has_value(connection, op.table, op.column, op.schema)
    if values and not purging(operations):
        with_short_lock(connection, f"retiring {where}", lambda: _retire(operations, op))
        log.info("%s: its values are kept as %s", where, retired_name(op.column))
        return
    if values:
        counted = sa.select(sa.func.count(sa.column(op.column))).select_from(sa.table(op.table, schema=op.schema))
        log.warning("%s: dropping %d values", where, connection.execute(counted).scalar_one())
    with_short_lock(
        connection, f"dropping {where}", lambda: operations.drop_column(op.table, op.column, schema=op.schema)
    )


def _retire(operations: Operations, op: DropKeptColumnOp) -> None:
    moment = connection_of(operations).execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    operations.alter_column(
        op.table,
        op.column,
        nullable=True,
        comment=f"{RETIRED}{moment.isoformat()}",
        new_column_name=retired_name(op.column),
        schema=op.schema,
    )


def add_column(
    operations: Operations, table: str, column: str, type: sa.types.TypeEngine[Any], schema: str | None
) -> None:
    """Add a nullable column and mark it as made here."""
    with_short_lock(
        connection_of(operations),
        f"adding {table}.{column}",
        lambda: operations.add_column(table, sa.Column(column, type, comment=MADE), schema=schema),
    )


def take_back(operations: Operations, table: str, column: str, schema: str | None) -> None:
    """Bring a retired column back under its name, NULL where the row changed since it was retired."""
    connection, kept = connection_of(operations), retired_name(column)
    comment = comment_of(connection, table, kept, schema)
    with_short_lock(
        connection,
        f"renaming {table}.{kept}",
        lambda: operations.alter_column(table, kept, comment=MADE, new_column_name=column, schema=schema),
    )
    if UPDATED_AT not in column_types(connection, table, schema):
        log.warning("%s.%s: its values are back; without %s, changed rows cannot be told", table, column, UPDATED_AT)
        return
    retired_at = sa.cast(comment.removeprefix(RETIRED), sa.TIMESTAMP(timezone=True))
    emptied = connection.execute(
        sa.update(sa.table(table, sa.column(column), sa.column(UPDATED_AT), schema=schema))
        .where(sa.column(UPDATED_AT) > retired_at)
        .where(sa.column(column).is_not(None))
        .values({column: None})
    ).rowcount
    log.info("%s.%s: its values are back; %d rows changed meanwhile and are NULL again", table, column, emptied)
