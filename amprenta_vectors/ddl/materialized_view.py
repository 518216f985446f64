"""``op.create_materialized_view()`` and its reverse: a view with the unique index that lets it be refreshed in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl.catalogue import Catalogue, IsUsed, TableFact
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.errors import IN_USE
from amprenta_vectors.pg.names import literal, qualified
from amprenta_vectors.pg.sessions import settings
from amprenta_vectors.pg.tables import Table


@operation("create_materialized_view")
@dataclass
class CreateMaterializedViewOp(SteppedOp):
    """Make a materialised view, unless there is one of that name."""

    name: str
    query: str
    unique: Sequence[str]
    schema: str | None = None

    @classmethod
    def create_materialized_view(
        cls, operations: Operations, name: str, query: str, unique: Sequence[str], *, schema: str | None = None
    ) -> None:
        """Make view ``name`` of ``query`` with its rows; one of that name is left as it is.

        ``unique`` are the columns that tell its rows apart: by the index on them it can be refreshed concurrently.
        Raises `SchemaMismatch` if something else has the name.
        """
        operations.invoke(cls(name, query, unique, schema))

    @property
    def statements(self) -> tuple[str, str]:
        """Return the statements that make the view, and the index on it."""
        name, index = qualified(self.name, self.schema), qualified(f"{self.name}_key")
        columns = ", ".join(map(qualified, self.unique))
        view = f"CREATE MATERIALIZED VIEW {name} AS {self.query.strip()}"
        return view, f"CREATE UNIQUE INDEX {index} ON {name} ({columns})"

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropMaterializedViewOp(self.name, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that makes the view, unless there is one.

        Raises `SchemaMismatch` if something else has its name.
        """
        fact, name = TableFact(self.name, self.schema), qualified(self.name, self.schema)
        found = catalogue.ask(fact, None)
        if found is not None and found.kind != "m":
            raise SchemaMismatch(
                f"{name} exists and is no materialised view",
                hint=f"rename it out of the way (ALTER TABLE {name} RENAME TO …), then run the upgrade again",
            )
        if found is not None:
            was = "is there" if found.comment == MADE else "was there, not made here: left as it is"
            return Done(f"materialised view {name} {was}")
        return Step(
            f"create materialised view {name}",
            self._create,
            {fact: Table(self.name, self.schema, "m", MADE)},
            duration="scans what it selects from",
            needs=(lambda connection: require_create(connection, self.schema),),
        )

    def _create(self, operations: Operations) -> None:
        statements = (
            *self.statements,
            f"COMMENT ON MATERIALIZED VIEW {qualified(self.name, self.schema)} IS {literal(MADE)}",
        )
        if operations.get_context().as_sql:
            for statement in statements:
                execute(operations, statement)
            return
        with settings(operations.get_bind(), local=True, statement_timeout="0"):
            for statement in statements:
                execute(operations, statement)


@operation("drop_materialized_view")
@dataclass
class DropMaterializedViewOp(UndoingOp[CreateMaterializedViewOp]):
    """Drop a materialised view of ours that nothing uses."""

    name: str
    schema: str | None = None

    @classmethod
    def drop_materialized_view(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop view ``name`` if it was made here and no other view or function uses it."""
        operations.invoke(cls(name, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that drops a view of ours, unless something uses it."""
        fact, name = TableFact(self.name, self.schema), qualified(self.name, self.schema)
        found = catalogue.ask(fact, Table(self.name, self.schema, "m", MADE))
        if found is None or found.kind != "m":
            return Done(f"there is no materialised view {name}: nothing to drop")
        if found.comment != MADE:
            return Done(f"materialised view {name} was there before, not made here: left as it is")
        if catalogue.ask(IsUsed(f"view {name}"), False):
            return Done(f"materialised view {name}: something of yours depends on it; left as it is")
        return Step(
            f"drop materialised view {name}",
            lambda operations: execute(operations, f"DROP MATERIALIZED VIEW {name} RESTRICT"),
            {fact: None},
            table=(self.name, self.schema),
            object=name,
            lock="ACCESS EXCLUSIVE",
            blocks="readers and writers",
            needs=(lambda connection: require_ownership(connection, self.name, self.schema),),
            teaches={IN_USE: (IsUsed(f"view {name}"), True)},
        )
