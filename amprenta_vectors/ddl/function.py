"""``op.create_function()`` and its reverse: one function of a name, and never in place of somebody else's."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import offline_programs
from amprenta_vectors.ddl.catalogue import MADE, connection_of, execute_as_written, mark, qualified
from amprenta_vectors.ddl.locking import drop_unless_used
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.plan import Step
from amprenta_vectors.ddl.privileges import require_create, require_function_ownership
from amprenta_vectors.errors import SchemaMismatch

LOAD_PGVECTOR = "SELECT '[1]'::vector"
"""Loads its library: before, only a superuser may make a function that SETs one of its parameters."""

_NAMED = sa.text("""
    SELECT p.oid::regprocedure::text AS signature, p.prorettype::regtype::text AS returns, p.pronargs AS arguments,
           coalesce(obj_description(p.oid, 'pg_proc') = :made, false) AS ours
    FROM pg_proc p
    WHERE p.proname = :name AND p.prokind = 'f'
      AND CASE WHEN :schema IS NULL THEN pg_function_is_visible(p.oid)
          ELSE p.pronamespace = to_regnamespace(:quoted) END
    ORDER BY p.oid
""").bindparams(sa.bindparam("schema", type_=sa.Text), sa.bindparam("quoted", type_=sa.Text), made=MADE)


@Operations.register_operation("create_function")
@dataclass
class CreateFunctionOp(MigrateOperation):
    """Make a function, unless there is one of that name that was not made here."""

    name: str
    arguments: str
    returns: str
    definition: str
    schema: str | None = None

    @classmethod
    def create_function(
        cls,
        operations: Operations,
        name: str,
        arguments: str,
        returns: str,
        definition: str,
        *,
        schema: str | None = None,
    ) -> None:
        """Make or renew function ``name``; the other three are SQL as it stands in a CREATE FUNCTION.

        ``definition`` is what follows RETURNS: language, volatility, body. A function of that name that was not made
        here is used as it is, whatever its arguments: a second one beside it would make calls ambiguous. Raises
        `SchemaMismatch` where a trigger needs one and that is none for a trigger.
        """
        operations.invoke(cls(name, arguments, returns, definition, schema))

    @property
    def statement(self) -> str:
        """The whole statement."""
        name = qualified(self.name, self.schema)
        return f"CREATE OR REPLACE FUNCTION {name}({self.arguments}) RETURNS {self.returns} {self.definition.strip()}"

    def exists(self, connection: Connection) -> bool:
        """Whether there is a function of that name."""
        return bool(_named(connection, self.name, self.schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropFunctionOp(self.name, self.schema, _reverse=self)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now. Raises `SchemaMismatch` where it would."""
        if foreign := _foreign(connection_of(operations), self):
            return [Step(f"function {foreign} exists: used as it is")]
        return [Step(f"create function {qualified(self.name, self.schema)}")]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_function", self.schema, self.name)


@Operations.register_operation("drop_function")
@dataclass
class DropFunctionOp(MigrateOperation):
    """Drop a function of ours that nothing uses."""

    name: str
    schema: str | None = None
    _reverse: CreateFunctionOp | None = field(default=None, repr=False, compare=False)

    @classmethod
    def drop_function(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop function ``name`` if it was made here and no trigger, view or function uses it."""
        operations.invoke(cls(name, schema))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one. Raises ValueError where the function that was there is not known."""
        if self._reverse is None:
            raise ValueError(f"drop_function({self.name!r}) is not reversible: its definition is unknown")
        return self._reverse

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_function", self.schema, self.name)


@Operations.implementation_for(CreateFunctionOp)
def _create(operations: Operations, op: CreateFunctionOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.create_function(operations, op, LOAD_PGVECTOR)
        return
    connection = connection_of(operations)
    if foreign := _foreign(connection, op):
        log.info("function %s was there, not made here: used as it is", foreign)
        return
    for found in _named(connection, op.name, op.schema):
        require_function_ownership(connection, found.signature)
    require_create(connection, op.schema)
    if connection.execute(sa.text("SELECT to_regtype('vector') IS NOT NULL")).scalar():
        execute_as_written(connection, LOAD_PGVECTOR)
    execute_as_written(connection, op.statement)
    for made in _named(connection, op.name, op.schema):
        mark(connection, f"FUNCTION {made.signature}")


@Operations.implementation_for(DropFunctionOp)
def _drop(operations: Operations, op: DropFunctionOp) -> None:
    if operations.get_context().as_sql:
        offline_programs.drop_function(operations, op)
        return
    connection = connection_of(operations)
    for found in _named(connection, op.name, op.schema):
        if not found.ours:
            log.info("function %s was there before, not made here: left as it is", found.signature)
            continue
        require_function_ownership(connection, found.signature)
        drop, what = f"DROP FUNCTION {found.signature} RESTRICT", f"function {found.signature}"
        if not drop_unless_used(connection, what, partial(execute_as_written, connection, drop)):
            log.info("%s: something of yours depends on it; left as it is", what)


def _named(connection: Connection, name: str, schema: str | None) -> list[Any]:
    """Functions of that name: signature, type returned, number of arguments, and whether they are ours."""
    named = {"name": name, "schema": schema, "quoted": qualified(schema) if schema else None}
    return list(connection.execute(_NAMED, named))


def _foreign(connection: Connection, op: CreateFunctionOp) -> str | None:
    """The signature of a function that was there; None where there is none."""
    foreign = [found for found in _named(connection, op.name, op.schema) if not found.ours]
    if not foreign:
        return None
    if op.returns == "trigger" and not any(found.returns == "trigger" for found in foreign):
        signature = foreign[0].signature
        raise SchemaMismatch(
            f"function {signature} exists and returns {foreign[0].returns}; expected one for a trigger",
            hint=f"ALTER FUNCTION {signature} RENAME TO …, then run the upgrade again",
        )
    return str(foreign[0].signature)
