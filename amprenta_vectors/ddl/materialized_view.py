"""``op.create_materialized_view()`` and its reverse: a view with the unique index that lets it be refreshed in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_programs
from amprenta_vectors.ddl.catalogue import MADE, comment_of, connection_of, execute_as_written, mark, qualified, quoted
from amprenta_vectors.ddl.locking import drop_unless_used, lift_statement_timeout
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.plan import Step
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.errors import SchemaMismatch


@Operations.register_operation("create_materialized_view")
@dataclass
class CreateMaterializedViewOp(MigrateOperation):
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
        Raises `SchemaMismatch` where something else has the name.
        """
        operations.invoke(cls(name, query, unique, schema))

    @property
    def statements(self) -> tuple[str, str]:
        """The view, and the index on it."""
        name, index = qualified(self.name, self.schema), qualified(f"{self.name}_key")
        columns = ", ".join(map(qualified, self.unique))
        view = f"CREATE MATERIALIZED VIEW {name} AS {self.query.strip()}"
        return view, f"CREATE UNIQUE INDEX {index} ON {name} ({columns})"

    def exists(self, connection: Connection) -> bool:
        """Whether there is a materialised view of that name. Raises `SchemaMismatch` where something else has it."""
        kind, name = kind_of(connection, self.name, self.schema), qualified(self.name, self.schema)
        if kind not in (None, "m"):
            raise SchemaMismatch(
                f"{name} exists and is no materialised view",
                hint=f"rename it out of the way (ALTER TABLE {name} RENAME TO …), then run the upgrade again",
            )
        return kind == "m"

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropMaterializedViewOp(self.name, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now. Raises `SchemaMismatch` where it would."""
        name = qualified(self.name, self.schema)
        if self.exists(connection_of(operations)):
            return [Step(f"materialised view {name} exists: left as it is")]
        return [Step(f"create materialised view {name}", duration="scans what it selects from")]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_materialized_view", self.schema, self.name)


@Operations.register_operation("drop_materialized_view")
@dataclass
class DropMaterializedViewOp(MigrateOperation):
    """Drop a materialised view of ours that nothing uses."""

    name: str
    schema: str | None = None
    _reverse: CreateMaterializedViewOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_materialized_view(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop view ``name`` if it was made here and no other view or function uses it."""
        operations.invoke(cls(name, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the view that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_materialized_view({self.name!r}) is not reversible: its query is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_materialized_view", self.schema, self.name)


@Operations.implementation_for(CreateMaterializedViewOp)
def _create(operations: Operations, op: CreateMaterializedViewOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.create_materialized_view(operations, op)
        return
    connection = connection_of(operations)
    if op.exists(connection):
        if comment_of(connection, op.name, schema=op.schema) != MADE:
            log.info("materialised view %s was there, not made here: left as it is", op.name)
        return
    require_create(connection, op.schema)
    lift_statement_timeout(connection)
    for statement in op.statements:
        execute_as_written(connection, statement)
    mark(connection, f"MATERIALIZED VIEW {qualified(op.name, op.schema)}")


@Operations.implementation_for(DropMaterializedViewOp)
def _drop(operations: Operations, op: DropMaterializedViewOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.drop_materialized_view(operations, op)
        return
    connection, name = connection_of(operations), qualified(op.name, op.schema)
    if kind_of(connection, op.name, op.schema) != "m":
        return
    if comment_of(connection, op.name, schema=op.schema) != MADE:
        log.info("materialised view %s was there before, not made here: left as it is", op.name)
        return
    require_ownership(connection, op.name, op.schema)
    drop = f"DROP MATERIALIZED VIEW {name} RESTRICT"
    if not drop_unless_used(connection, f"view {op.name}", lambda: execute_as_written(connection, drop)):
        log.info("materialised view %s: something of yours depends on it; left as it is", op.name)


def kind_of(connection: Connection, name: str, schema: str | None) -> str | None:
    """The kind of relation that has a name, ``m`` for a materialised view; None where there is none."""
    kind: str | None = connection.execute(
        sa.text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(:name)"), {"name": quoted(schema, name)}
    ).scalar()
    return kind
