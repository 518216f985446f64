"""``op.create_trigger()`` and its reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, Fact
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.privileges import require_ownership
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation
from amprenta_vectors.pg.names import literal, qualified, quoted


@dataclass(frozen=True)
class TriggerFact(Fact[bool | None]):
    """Whether a trigger of a table was made here; None where there is none."""

    name: str
    table: str
    schema: str | None = None

    def find(self, connection: Connection) -> bool | None:
        """Return whether the trigger was made here; None if there is none."""
        ours: bool | None = connection.execute(
            sa.text("""
                SELECT coalesce(obj_description(oid, 'pg_trigger') = :made, false) FROM pg_trigger
                WHERE tgrelid = to_regclass(:table) AND tgname = :name AND NOT tgisinternal
            """),
            {"made": MADE, "table": quoted(self.schema, self.table), "name": self.name},
        ).scalar()
        return ours

    def guard(self, value: bool | None) -> tuple[str, str]:
        """Return the check that there is no such trigger, or that it is ours."""
        relation = f"to_regclass({literal(quoted(self.schema, self.table))})"
        found = f"SELECT FROM pg_trigger WHERE tgrelid = {relation} AND tgname = {literal(self.name)}"
        if value is None:
            return f"NOT EXISTS ({found})", f"there is no trigger {self.name} on {self.table}"
        ours = f"obj_description(oid, 'pg_trigger') = {literal(MADE)}"
        return f"EXISTS ({found} AND {ours})", f"trigger {self.name} on {self.table} is {MADE}"


@operation("create_trigger")
@dataclass
class CreateTriggerOp(SteppedOp):
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
        """Return the whole CREATE TRIGGER statement."""
        table = qualified(self.table, self.schema)
        return f"CREATE TRIGGER {qualified(self.name)} {self.events} ON {table} {self.action}"

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropTriggerOp(self.name, self.table, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that makes the trigger, unless the table has one of that name."""
        fact, table = TriggerFact(self.name, self.table, self.schema), qualified(self.table, self.schema)
        ours = catalogue.ask(fact, None)
        if ours is not None:
            was = "is there" if ours else "was there, not made here: left as it is"
            return Done(f"trigger {self.name} on {self.table} {was}", table)
        catalogue.require_table(self.table, self.schema)

        def create(operations: Operations) -> None:
            execute(operations, self.statement)
            execute(operations, f"COMMENT ON TRIGGER {_on_table(self)} IS {literal(MADE)}")

        return Step(
            f"create trigger {self.name}",
            create,
            {fact: True},
            table=(self.table, self.schema),
            object=table,
            lock="SHARE ROW EXCLUSIVE",
            blocks="writers",
            needs=(lambda connection: require_ownership(connection, self.table, self.schema),),
        )


@operation("drop_trigger")
@dataclass
class DropTriggerOp(UndoingOp[CreateTriggerOp]):
    """Drop a trigger of ours."""

    name: str
    table: str
    schema: str | None = None

    @classmethod
    def drop_trigger(cls, operations: Operations, name: str, table: str, *, schema: str | None = None) -> None:
        """Drop trigger ``name`` of ``table`` if it was made here."""
        operations.invoke(cls(name, table, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that drops a trigger of ours."""
        fact, table = TriggerFact(self.name, self.table, self.schema), qualified(self.table, self.schema)
        ours = catalogue.ask(fact, True)
        if not ours:
            was = "was there before, not made here: left as it is" if ours is False else "is not there: nothing to drop"
            return Done(f"trigger {self.name} on {self.table} {was}", table)
        return Step(
            f"drop trigger {self.name}",
            lambda operations: execute(operations, f"DROP TRIGGER {_on_table(self)}"),
            {fact: None},
            table=(self.table, self.schema),
            object=table,
            lock="ACCESS EXCLUSIVE",
            blocks="readers and writers",
            needs=(lambda connection: require_ownership(connection, self.table, self.schema),),
        )


def _on_table(op: CreateTriggerOp | DropTriggerOp) -> str:
    return f"{qualified(op.name)} ON {qualified(op.table, op.schema)}"
