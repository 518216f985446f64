"""``op.add_kept_column()``: a column whose values a downgrade keeps and an upgrade takes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_column
from amprenta_vectors.ddl.catalogue import (
    MADE,
    RETIRED,
    column_types,
    comment_of,
    commit_step,
    connection_of,
    execute_as_written,
    has_value,
    is_retired,
    qualified,
    quoted,
    retired_name,
)
from amprenta_vectors.ddl.locking import drop_unless_used, lift_statement_timeout, with_short_lock
from amprenta_vectors.ddl.options import log, purging
from amprenta_vectors.ddl.plan import Blocked, Step, present_name
from amprenta_vectors.ddl.privileges import require_ownership
from amprenta_vectors.ddl.take_back import drop_trigger, plan_take_back, take_back
from amprenta_vectors.errors import AmprentaError, SchemaMismatch


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
        return DropKeptColumnOp(self.table, self.column, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        connection = connection_of(operations)
        return plan_column(connection, self.table, self.column, self.type.compile(connection.dialect), self.schema)

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
    _reverse: MigrateOperation | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_kept_column(cls, operations: Operations, table: str, column: str, *, schema: str | None = None) -> None:
        """Retire ``column``, or drop it where it holds no value or ``-x purge=true`` is given.

        A column that was adopted, not made here, is left as it is.
        """
        operations.invoke(cls(table, column, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the column that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_kept_column({self.column!r}) is not reversible: its type is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_kept_column", self.schema, self.table, self.column)


@Operations.implementation_for(AddKeptColumnOp)
def _add(operations: Operations, op: AddKeptColumnOp) -> None:
    if operations.get_context().as_sql:
        offline_column.add_kept_column(operations, op)
        return
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
    if operations.get_context().as_sql:
        offline_column.drop_kept_column(operations, op)
        return
    connection = connection_of(operations)
    where, kept = f"{op.table}.{op.column}", retired_name(op.column)
    types = column_types(connection, op.table, op.schema)
    if op.column in types:
        if comment_of(connection, op.table, op.column, op.schema) != MADE:
            log.info("%s was adopted, not made here: left as it is", where)
            return
        if kept in types:
            table = qualified(op.table, op.schema)
            raise SchemaMismatch(
                f"column {op.table}.{kept} is in the way: {where} is to be kept under that name",
                hint=f"ALTER TABLE {table} RENAME COLUMN {qualified(kept)} TO …, then run the downgrade again",
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

    def drop() -> None:
        drop_trigger(connection, op.table, kept, op.schema)
        operations.drop_column(op.table, kept, schema=op.schema)

    if drop_unless_used(connection, where, drop):
        return
    if values:
        raise AmprentaError(
            f"{where} cannot be dropped: something of yours depends on it; it is kept as {kept}",
            hint="drop that first (psql: \\d+ says what), or downgrade without purging",
        )
    log.info("%s: something of yours depends on it; kept as %s, without values", where, kept)


def _retire(operations: Operations, op: DropKeptColumnOp) -> None:
    """Rename the column, let the old application leave it out, and note since when its values may be stale."""
    connection, where = connection_of(operations), f"{op.table}.{op.column}"
    require_ownership(connection, op.table, op.schema)
    checks = _checks_against_null(connection, op)
    moment = _oldest_start(connection, where)

    def retire() -> None:
        for check in checks:
            operations.drop_constraint(check, op.table, schema=op.schema, type_="check")
        operations.alter_column(
            op.table,
            op.column,
            nullable=True,
            comment=f"{RETIRED}{moment.isoformat()}",
            new_column_name=retired_name(op.column),
            schema=op.schema,
        )

    with_short_lock(connection, f"retiring {where}", retire)
    for check in checks:
        log.warning("%s: CHECK constraint %s, which forbids NULL, is dropped and does not come back", where, check)


def _checks_against_null(connection: Connection, op: DropKeptColumnOp) -> list[str]:
    """The names of CHECK constraints that say no more than NOT NULL, validated or not."""
    names = connection.execute(
        sa.text("""
            SELECT conname FROM pg_constraint c
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = :column AND c.conkey = ARRAY[a.attnum]
            WHERE c.conrelid = to_regclass(:name) AND c.contype = 'c'
              AND pg_get_expr(c.conbin, c.conrelid) = format('(%I IS NOT NULL)', a.attname)
            ORDER BY conname
        """),
        {"name": quoted(op.schema, op.table), "column": op.column},
    )
    return list(names.scalars())


def _oldest_start(connection: Connection, where: str) -> datetime:
    """When the oldest transaction that runs began: whatever it writes from now on bears that time."""
    row = connection.execute(
        sa.text("""
            SELECT least(clock_timestamp(), min(xact_start)) AS moment, current_user AS role,
                   bool_or(NOT pg_has_role(usesysid, 'USAGE')) AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
                       AS hidden
            FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        """)
    ).one()
    if row.hidden:
        log.warning(
            "%s: role %s does not see when other roles' transactions began; what such a transaction, begun before the "
            "downgrade, writes after it will not count as changed (mend: GRANT pg_read_all_stats TO %s)",
            *(where, row.role, qualified(row.role)),
        )
    moment: datetime = row.moment
    return moment


def plan_column(connection: Connection, table: str, column: str, type: str, schema: str | None) -> list[Step]:
    """The steps by which a kept column comes to be."""
    present = present_name(connection, table, schema)
    blocked: Blocked = "readers and writers" if present == table else "nobody"
    if present is not None:
        if found := column_types(connection, present, schema).get(column):
            return [Step(f"column {column} {found} exists: adopted as it is", qualified(present, schema))]
        if is_retired(connection, present, retired_name(column), schema):
            return plan_take_back(connection, present, column, schema, blocked)
    return [Step(f"add column {column} {type}", qualified(present or table, schema), "ACCESS EXCLUSIVE", blocked)]


def add_column(
    operations: Operations,
    table: str,
    column: str,
    type: sa.types.TypeEngine[Any],
    schema: str | None,
    *,
    nullable: bool = True,
) -> None:
    """Add a column and mark it as made here; not ``nullable``, it is so all the same where the table has rows."""
    connection = connection_of(operations)
    require_ownership(connection, table, schema)

    def add() -> None:
        if not nullable:
            execute_as_written(connection, f"LOCK TABLE {quoted(schema, table)}")
        may_be_null = nullable or has_value(connection, table, schema=schema)
        operations.add_column(table, sa.Column(column, type, nullable=may_be_null, comment=MADE), schema=schema)

    with_short_lock(connection, f"adding {table}.{column}", add)
