"""``op.create_trigger()`` and its reverse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_programs
from amprenta_vectors.ddl.catalogue import MADE, connection_of, execute_as_written, mark, qualified, quoted
from amprenta_vectors.ddl.locking import with_short_lock
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.plan import Step, present_name
from amprenta_vectors.ddl.privileges import require_ownership


@Operations.register_operation("create_trigger")
@dataclass
class CreateTriggerOp(MigrateOperation):
    """Make a trigger, unless the table has one of that name."""

    name: str
    table: str
    events: str
    action: str
    schema: str | None = None

    @classmethod
    def create_trigger(
        cls, operations: Operations, name: str, table: str, events: str, action: str, *, schema: str | None = None
    ) -> None:
        """Make trigger ``name`` on ``table``, under a short lock; one of that name is left as it is.

        ``events`` is SQL as it stands before ON (``BEFORE UPDATE``), ``action`` what stands after the table
        (``FOR EACH ROW EXECUTE FUNCTION …()``).
        """
        operations.invoke(cls(name, table, events, action, schema))

    @property
    def statement(self) -> str:
        """The whole statement."""
        table = qualified(self.table, self.schema)
        return f"CREATE TRIGGER {qualified(self.name)} {self.events} ON {table} {self.action}"

    def exists(self, connection: Connection) -> bool:
        """Whether the table has a trigger of that name."""
        return is_ours(connection, self.name, self.table, self.schema) is not None

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropTriggerOp(self.name, self.table, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        connection = connection_of(operations)
        present = present_name(connection, self.table, self.schema)
        table = qualified(present or self.table, self.schema)
        if is_ours(connection, self.name, self.table, self.schema) is not None:
            return [Step(f"trigger {self.name} exists: left as it is", table)]
        blocked = present == self.table
        return [
            Step(f"create trigger {self.name}", table, "SHARE ROW EXCLUSIVE", "writers" if blocked else "nobody"),
        ]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_trigger", self.schema, self.table, self.name)


@Operations.register_operation("drop_trigger")
@dataclass
class DropTriggerOp(MigrateOperation):
    """Drop a trigger of ours."""

    name: str
    table: str
    schema: str | None = None
    _reverse: CreateTriggerOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_trigger(cls, operations: Operations, name: str, table: str, *, schema: str | None = None) -> None:
        """Drop trigger ``name`` of ``table`` if it was made here."""
        operations.invoke(cls(name, table, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the trigger that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_trigger({self.name!r}) is not reversible: what it did is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_trigger", self.schema, self.table, self.name)


@Operations.implementation_for(CreateTriggerOp)
def _create(operations: Operations, op: CreateTriggerOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.create_trigger(operations, op)
        return
    connection = connection_of(operations)
    ours = is_ours(connection, op.name, op.table, op.schema)
    if ours is None:
        require_ownership(connection, op.table, op.schema)

        def create() -> None:
            execute_as_written(connection, op.statement)
            mark(connection, f"TRIGGER {_on_table(op)}")

        with_short_lock(connection, f"creating trigger {op.name}", create)
    elif not ours:
        log.info("trigger %s on %s was there, not made here: left as it is", op.name, op.table)


@Operations.implementation_for(DropTriggerOp)
def _drop(operations: Operations, op: DropTriggerOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.drop_trigger(operations, op)
        return
    connection = connection_of(operations)
    ours = is_ours(connection, op.name, op.table, op.schema)
    if ours:
        require_ownership(connection, op.table, op.schema)
        drop = f"DROP TRIGGER {_on_table(op)}"
        with_short_lock(connection, f"dropping trigger {op.name}", lambda: execute_as_written(connection, drop))
    elif ours is not None:
        log.info("trigger %s on %s was there before, not made here: left as it is", op.name, op.table)


def is_ours(connection: Connection, name: str, table: str, schema: str | None) -> bool | None:
    """Whether a trigger was made here; None where there is none."""
    ours: bool | None = connection.execute(
        sa.text("""
            SELECT coalesce(obj_description(oid, 'pg_trigger') = :made, false) FROM pg_trigger
            WHERE tgrelid = to_regclass(:table) AND tgname = :name AND NOT tgisinternal
        """),
        {"made": MADE, "table": quoted(schema, table), "name": name},
    ).scalar()
    return ours


def _on_table(op: CreateTriggerOp | DropTriggerOp) -> str:
    return f"{qualified(op.name)} ON {qualified(op.table, op.schema)}"
