"""``op.adopt_table()``: take a table as it is, or make it; its reverse keeps what it holds."""

from __future__ import annotations

from collections.abc import Sequence
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
    is_retired,
    retired_name,
    table_exists,
    unique_column_sets,
)
from amprenta_vectors.ddl.locking import drop_unless_used, with_short_lock
from amprenta_vectors.ddl.options import log, purging
from amprenta_vectors.errors import AmprentaError, SchemaMismatch


@Operations.register_operation("adopt_table")
@dataclass
class AdoptTableOp(MigrateOperation):
    """Adopt a table that exists and make one that does not."""

    table: str
    elements: Sequence[sa.schema.SchemaItem]
    key: Sequence[str] = ()
    scope: Sequence[str] = ()
    relies_on: Sequence[str] = ()
    schema: str | None = None

    @classmethod
    def adopt_table(cls, operations: Operations, table: str, *elements: sa.schema.SchemaItem, **options: Any) -> None:
        """Make ``table`` of ``elements`` where it is absent; where it exists, check what is relied on.

        Relied on are the columns ``key`` and ``relies_on``, and a unique index on exactly ``key`` with those ``scope``
        columns that the table has. Raises `SchemaMismatch` naming what is missing.
        """
        operations.invoke(cls(table, elements, **options))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return RetireTableOp(self.table, self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("adopt_table", self.schema, self.table)


@Operations.register_operation("retire_table")
@dataclass
class RetireTableOp(MigrateOperation):
    """Take a table of ours out of use: kept under a retired name with rows, dropped without."""

    table: str
    schema: str | None = None

    @classmethod
    def retire_table(cls, operations: Operations, table: str, *, schema: str | None = None) -> None:
        """Retire ``table``, or drop it where it is empty or ``-x purge=true`` is given; leave an adopted one."""
        operations.invoke(cls(table, schema))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("retire_table", self.schema, self.table)


@Operations.implementation_for(AdoptTableOp)
def _adopt(operations: Operations, op: AdoptTableOp) -> None:
    connection = connection_of(operations)
    kept = retired_name(op.table)
    if table_exists(connection, op.table, op.schema):
        _check(operations, op)
    elif is_retired(connection, kept, schema=op.schema):
        with_short_lock(connection, f"renaming {kept}", lambda: _rename(operations, kept, op.table, op.schema, MADE))
        log.info("%s: taken back from %s", op.table, kept)
    else:
        operations.create_table(op.table, *op.elements, schema=op.schema, comment=MADE)


def _rename(operations: Operations, old: str, new: str, schema: str | None, comment: str) -> None:
    operations.rename_table(old, new, schema=schema)
    operations.create_table_comment(new, comment, schema=schema)


def _check(operations: Operations, op: AdoptTableOp) -> None:
    connection = connection_of(operations)
    columns = column_types(connection, op.table, op.schema)
    missing = [name for name in (*op.key, *op.relies_on) if name not in columns]
    if missing:
        raise SchemaMismatch(
            f"table {op.table} exists without the columns relied on: {', '.join(missing)}",
            hint=f"add them (ALTER TABLE {op.table} ADD COLUMN …), or rename the table out of the way",
        )
    wanted = [name for name in (*op.scope, *op.key) if name in columns]
    if op.key and set(wanted) not in unique_column_sets(connection, op.table, op.schema):
        listed = ", ".join(wanted)
        raise SchemaMismatch(
            f"table {op.table} exists without a unique index on exactly ({listed})",
            hint=f"CREATE UNIQUE INDEX CONCURRENTLY ON {op.table} ({listed})",
        )


@Operations.implementation_for(RetireTableOp)
def _retire(operations: Operations, op: RetireTableOp) -> None:
    """Retire first, look for rows afterwards: under the lock of the renaming none can come any more."""
    connection, kept = connection_of(operations), retired_name(op.table)
    if not table_exists(connection, op.table, op.schema):
        return
    if comment_of(connection, op.table, schema=op.schema) != MADE:
        log.info("%s was adopted, not made here: left as it is", op.table)
        return
    if table_exists(connection, kept, op.schema):
        raise SchemaMismatch(
            f"table {kept} is in the way: {op.table} is to be kept under that name",
            hint=f"ALTER TABLE {kept} RENAME TO …, then run the downgrade again",
        )
    comment = f"{RETIRED}{connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one().isoformat()}"
    with_short_lock(connection, f"retiring {op.table}", lambda: _rename(operations, op.table, kept, op.schema, comment))
    rows = has_value(connection, kept, schema=op.schema)
    if rows and not purging(operations):
        log.info("%s: kept as %s", op.table, kept)
        return
    if rows:
        counted = sa.select(sa.func.count()).select_from(sa.table(kept, schema=op.schema))
        log.warning("%s: dropping %d rows", op.table, connection.execute(counted).scalar_one())
    if drop_unless_used(connection, op.table, lambda: operations.drop_table(kept, schema=op.schema)):
        return
    if rows:
        raise AmprentaError(
            f"{op.table} cannot be dropped: something of yours depends on it",
            hint="drop that first (psql: \\d+ says what), or downgrade without purging",
        )
    log.info("%s: something of yours depends on it; kept as %s, without rows", op.table, kept)
