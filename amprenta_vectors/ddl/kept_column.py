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
    commit_step,
    connection_of,
    has_value,
    is_retired,
    retired_name,
)
from amprenta_vectors.ddl.locking import drop_unless_used, lift_statement_timeout, with_short_lock
from amprenta_vectors.ddl.options import log, purging
from amprenta_vectors.errors import AmprentaError, SchemaMismatch

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
    connection = connection_of(operations)
    if op.column in column_types(connection, op.table, op.schema):
        return
    if is_retired(connection, op.table, retired_name(op.column), op.schema):
        take_back(operations, op.table, op.column, op.schema)
    else:
        add_column(operations, op.table, op.column, op.type, op.schema)


@Operations.implementation_for(DropKeptColumnOp)
def _drop(operations: Operations, op: DropKeptColumnOp) -> None:
    """Retire first, look for values afterwards: none can come any more, and nobody waits while we look."""
    connection = connection_of(operations)
    where, kept = f"{op.table}.{op.column}", retired_name(op.column)
    types = column_types(connection, op.table, op.schema)
    if op.column in types:
        if comment_of(connection, op.table, op.column, op.schema) != MADE:
            log.info("%s was adopted, not made here: left as it is", where)
            return
        if kept in types:
            raise SchemaMismatch(
                f"column {op.table}.{kept} is in the way: {where} is to be kept under that name",
                hint=f"ALTER TABLE {op.table} RENAME COLUMN {kept} TO …, then run the downgrade again",
            )
        _retire(operations, op)
        commit_step(operations)
    if not is_retired(connection, op.table, kept, op.schema):
        return
    lift_statement_timeout(connection)
    values = has_value(connection, op.table, kept, op.schema)
    if values and not purging(operations):
        log.info("%s: its values are kept as %s", where, kept)
        return
    if values:
        counted = sa.select(sa.func.count(sa.column(kept))).select_from(sa.table(op.table, schema=op.schema))
        log.warning("%s: dropping %d values", where, connection.execute(counted).scalar_one())
    if drop_unless_used(connection, where, lambda: operations.drop_column(op.table, kept, schema=op.schema)):
        return
    if values:
        raise AmprentaError(
            f"{where} cannot be dropped: something of yours depends on it; it is kept as {kept}",
            hint="drop that first (psql: \\d+ says what), or downgrade without purging",
        )
    log.info("%s: something of yours depends on it; kept as %s, without values", where, kept)


def _retire(operations: Operations, op: DropKeptColumnOp) -> None:
    """Rename the column, and note since when its values may be stale.

    That is the start of the oldest transaction that runs: whatever it writes from now on bears that time.
    """
    connection = connection_of(operations)
    moment = connection.execute(
        sa.text("""
            SELECT least(clock_timestamp(), min(xact_start)) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
        """)
    ).scalar_one()
    with_short_lock(
        connection,
        f"retiring {op.table}.{op.column}",
        lambda: operations.alter_column(
            op.table,
            op.column,
            nullable=True,
            comment=f"{RETIRED}{moment.isoformat()}",
            new_column_name=retired_name(op.column),
            schema=op.schema,
        ),
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
    if not column_types(connection, table, schema).get(UPDATED_AT, "").startswith("timestamp"):
        log.warning("%s.%s: its values are back; without %s, changed rows cannot be told", table, column, UPDATED_AT)
        return
    lift_statement_timeout(connection)
    retired_at = sa.cast(comment.removeprefix(RETIRED), sa.TIMESTAMP(timezone=True))
    emptied = connection.execute(
        sa.update(sa.table(table, sa.column(column), sa.column(UPDATED_AT), schema=schema))
        .where(sa.column(UPDATED_AT) >= retired_at)
        .where(sa.column(column).is_not(None))
        .values({column: None})
    ).rowcount
    log.info("%s.%s: its values are back; %d rows changed meanwhile and are NULL again", table, column, emptied)
