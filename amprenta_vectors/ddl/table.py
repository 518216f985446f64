"""``op.adopt_table()``: take a table as it is, or make it; its reverse keeps what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateTableOp

from amprenta_vectors.ddl import offline
from amprenta_vectors.ddl.catalogue import (
    MADE,
    RETIRED,
    column_types,
    comment_of,
    connection_of,
    has_value,
    is_retired,
    other_sections,
    qualified,
    retired_name,
    table_exists,
    unique_column_sets,
)
from amprenta_vectors.ddl.locking import drop_unless_used, with_short_lock
from amprenta_vectors.ddl.options import log, purging
from amprenta_vectors.ddl.plan import Step, count
from amprenta_vectors.ddl.privileges import require_create, require_ownership
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
    types: Mapping[str, str] = field(default_factory=dict)
    schema: str | None = None

    @classmethod
    def adopt_table(cls, operations: Operations, table: str, *elements: sa.schema.SchemaItem, **options: Any) -> None:
        """Make ``table`` of ``elements`` where it is absent; where it exists, check what is relied on.

        Relied on are the columns ``key``, ``relies_on`` and ``types``, which maps some to the type they must have, and
        a unique index on exactly ``key`` with those ``scope`` columns that the table has. Raises `SchemaMismatch`
        naming what is missing.
        """
        operations.invoke(cls(table, elements, **options))

    @cached_property
    def as_table(self) -> sa.Table:
        """The table as SQLAlchemy knows it; once, because an index belongs to one table for good."""
        return CreateTableOp(self.table, list(self.elements), schema=self.schema).to_table()

    @property
    def relied_on(self) -> list[str]:
        """The columns that a table must have to be adopted."""
        return list(dict.fromkeys((*self.key, *self.relies_on, *self.types)))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return RetireTableOp(self.table, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now. Raises `SchemaMismatch` where it would."""
        connection, kept = connection_of(operations), retired_name(self.table)
        table = qualified(self.table, self.schema)
        if table_exists(connection, self.table, self.schema):
            _check(operations, self)
            return [Step(f"{table} exists: adopted as it is", table)]
        if is_retired(connection, kept, schema=self.schema):
            rows = count(connection, kept, self.schema)
            retired = qualified(kept, self.schema)
            return [Step(f"take back {table} from {retired}, with {rows:,} rows", retired, "ACCESS EXCLUSIVE")]
        return [Step(f"create table {table}")]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("adopt_table", self.schema, self.table)


@Operations.register_operation("retire_table")
@dataclass
class RetireTableOp(MigrateOperation):
    """Take a table of ours out of use: kept under a retired name with rows, dropped without."""

    table: str
    schema: str | None = None
    shared: bool = False
    _reverse: AdoptTableOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def retire_table(
        cls, operations: Operations, table: str, *, schema: str | None = None, shared: bool = False
    ) -> None:
        """Retire ``table``, or drop it where it is empty or ``-x purge=true`` is given; leave an adopted one.

        With ``shared``, it is left while another section has revisions in this database.
        """
        operations.invoke(cls(table, schema, shared))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the table that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"retire_table({self.table!r}) is not reversible: its columns are unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("retire_table", self.schema, self.table)


@Operations.implementation_for(AdoptTableOp)
def _adopt(operations: Operations, op: AdoptTableOp) -> None:
    if operations.get_context().as_sql:
        offline.adopt_table(operations, op)
        return
    connection = connection_of(operations)
    kept = retired_name(op.table)
    if table_exists(connection, op.table, op.schema):
        _check(operations, op)
    elif is_retired(connection, kept, schema=op.schema):
        require_ownership(connection, kept, op.schema)
        with_short_lock(connection, f"renaming {kept}", lambda: _rename(operations, kept, op.table, op.schema, MADE))
        log.info("%s: taken back from %s", op.table, kept)
    else:
        require_create(connection, op.schema)
        operations.create_table(op.table, *op.elements, schema=op.schema, comment=MADE)


def _rename(operations: Operations, old: str, new: str, schema: str | None, comment: str) -> None:
    operations.rename_table(old, new, schema=schema)
    operations.create_table_comment(new, comment, schema=schema)


def _check(operations: Operations, op: AdoptTableOp) -> None:
    connection, table = connection_of(operations), qualified(op.table, op.schema)
    columns = column_types(connection, op.table, op.schema)
    missing = [name for name in op.relied_on if name not in columns]
    if missing:
        raise SchemaMismatch(
            f"table {table} exists without the columns relied on: {', '.join(missing)}",
            hint=f"add them (ALTER TABLE {table} ADD COLUMN …), or rename the table out of the way",
        )
    for name, type_ in op.types.items():
        if columns[name] != type_:
            raise SchemaMismatch(
                f"column {table}.{qualified(name)} is of type {columns[name]}; expected {type_}",
                hint=f"rename the table out of the way, or ALTER TABLE {table} ALTER COLUMN {qualified(name)} "
                f"TYPE {type_} USING …, then run the upgrade again",
            )
    wanted = [name for name in (*op.scope, *op.key) if name in columns]
    if op.key and set(wanted) not in unique_column_sets(connection, op.table, op.schema):
        listed = ", ".join(map(qualified, wanted))
        raise SchemaMismatch(
            f"table {table} exists without a unique index on exactly ({listed})",
            hint=f"CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({listed})",
        )


@Operations.implementation_for(RetireTableOp)
def _retire(operations: Operations, op: RetireTableOp) -> None:
    """Retire first, look for rows afterwards: under the lock of the renaming none can come any more."""
    if operations.get_context().as_sql:
        offline.retire_table(operations, op)
        return
    if op.shared and other_sections(operations):
        return
    connection, kept = connection_of(operations), retired_name(op.table)
    if not table_exists(connection, op.table, op.schema):
        return
    if comment_of(connection, op.table, schema=op.schema) != MADE:
        log.info("%s was adopted, not made here: left as it is", op.table)
        return
    if table_exists(connection, kept, op.schema):
        raise SchemaMismatch(
            f"table {kept} is in the way: {op.table} is to be kept under that name",
            hint=f"ALTER TABLE {qualified(kept, op.schema)} RENAME TO …, then run the downgrade again",
        )
    require_ownership(connection, op.table, op.schema)
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
