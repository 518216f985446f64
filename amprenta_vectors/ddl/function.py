"""``op.create_function()`` and its reverse: one function of a name, and never in place of somebody else's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, Fact, IsUsed
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.privileges import require_create, require_function_ownership
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.errors import IN_USE
from amprenta_vectors.pg.names import literal, qualified

LOAD_PGVECTOR = "SELECT '[1]'::vector"
"""Loads pgvector's library: before, only a superuser may make a function that SETs one of its parameters."""

_NAMED = sa.text("""
    SELECT p.oid::regprocedure::text AS signature, p.prorettype::regtype::text AS returns,
           coalesce(obj_description(p.oid, 'pg_proc') = :made, false) AS ours
    FROM pg_proc p
    WHERE p.proname = :name AND p.prokind = 'f'
      AND CASE WHEN :schema IS NULL THEN pg_function_is_visible(p.oid)
          ELSE p.pronamespace = to_regnamespace(:quoted) END
    ORDER BY p.oid
""").bindparams(sa.bindparam("schema", type_=sa.Text), sa.bindparam("quoted", type_=sa.Text), made=MADE)


@dataclass(frozen=True)
class Function:
    """A function by its signature, with the type that it returns, and whether it was made here."""

    signature: str = field(compare=False)
    returns: str = field(compare=False)
    ours: bool


@dataclass(frozen=True)
class FunctionsFact(Fact[tuple[Function, ...]]):
    """The functions of a name, whatever their arguments."""

    name: str
    schema: str | None = None

    def find(self, connection: Connection) -> tuple[Function, ...]:
        """Return the functions, the oldest first."""
        named = {"name": self.name, "schema": self.schema, "quoted": qualified(self.schema) if self.schema else None}
        return tuple(Function(**row._mapping) for row in connection.execute(_NAMED, named))

    def guard(self, value: tuple[Function, ...]) -> tuple[str, str]:
        """Return the check that there is no such function, or that all are ours."""
        relation = f"FROM pg_proc p WHERE p.proname = {literal(self.name)} AND pg_function_is_visible(p.oid)"
        if self.schema is not None:
            relation = relation.replace(
                "pg_function_is_visible(p.oid)", f"p.pronamespace = {literal(qualified(self.schema))}::regnamespace"
            )
        if not value:
            return f"NOT EXISTS (SELECT {relation})", f"there is no function {self.name}"
        ours = f"SELECT bool_and(obj_description(p.oid, 'pg_proc') = {literal(MADE)}) {relation}"
        return ours, f"function {self.name} is {MADE}"


@operation("create_function")
@dataclass
class CreateFunctionOp(SteppedOp):
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
        `SchemaMismatch` if ``returns`` is ``trigger`` and the function that is there is none for a trigger.
        """
        operations.invoke(cls(name, arguments, returns, definition, schema))

    @property
    def statement(self) -> str:
        """Return the whole CREATE FUNCTION statement."""
        name = qualified(self.name, self.schema)
        return f"CREATE OR REPLACE FUNCTION {name}({self.arguments}) RETURNS {self.returns} {self.definition.strip()}"

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropFunctionOp(self.name, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that makes or renews the function, unless one of that name was not made here."""
        fact = FunctionsFact(self.name, self.schema)
        found = catalogue.ask(fact, ())
        foreign = [each for each in found if not each.ours]
        if foreign:
            if self.returns == "trigger" and not any(each.returns == "trigger" for each in foreign):
                signature = foreign[0].signature
                raise SchemaMismatch(
                    f"function {signature} exists and returns {foreign[0].returns}; expected one for a trigger",
                    hint=f"ALTER FUNCTION {signature} RENAME TO …, then run the upgrade again",
                )
            return Done(f"function {foreign[0].signature} was there, not made here: used as it is")

        def create(operations: Operations) -> None:
            if not operations.get_context().as_sql:
                connection = operations.get_bind()
                if connection.execute(sa.text("SELECT to_regtype('vector') IS NOT NULL")).scalar():
                    execute(operations, LOAD_PGVECTOR)
            execute(operations, self.statement)
            # By its name alone where nothing can be asked for its arguments.
            made = [qualified(self.name, self.schema)]
            if not operations.get_context().as_sql:
                made = [each.signature for each in fact.find(operations.get_bind())]
            for each in made:
                execute(operations, f"COMMENT ON FUNCTION {each} IS {literal(MADE)}")

        return Step(
            f"create function {qualified(self.name, self.schema)}",
            create,
            {fact: (Function(qualified(self.name, self.schema), self.returns, ours=True),)},
            last=True,
            needs=(
                *(
                    (lambda connection, each=each: require_function_ownership(connection, each.signature))
                    for each in found
                ),
                lambda connection: require_create(connection, self.schema),
            ),
        )


@operation("drop_function")
@dataclass
class DropFunctionOp(UndoingOp[CreateFunctionOp]):
    """Drop a function of ours that nothing uses."""

    name: str
    schema: str | None = None

    @classmethod
    def drop_function(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop function ``name`` if it was made here and no trigger, view or function uses it."""
        operations.invoke(cls(name, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that drops a function of ours, unless something uses it."""
        fact = FunctionsFact(self.name, self.schema)
        found = catalogue.ask(fact, (Function(qualified(self.name, self.schema), "", ours=True),))
        ours = [each for each in found if each.ours]
        free = [each for each in ours if not catalogue.ask(IsUsed(f"function {each.signature}"), False)]
        if not free:
            if ours:
                return Done(f"function {ours[0].signature}: something of yours depends on it; left as it is")
            if found:
                return Done(f"function {found[0].signature} was there before, not made here: left as it is")
            return Done(f"there is no function {self.name}: nothing to drop")
        function = free[0]
        return Step(
            f"drop function {function.signature}",
            lambda operations: execute(operations, f"DROP FUNCTION {function.signature} RESTRICT"),
            {fact: tuple(each for each in found if each is not function)},
            lock="ACCESS EXCLUSIVE",
            needs=(lambda connection: require_function_ownership(connection, function.signature),),
            teaches={IN_USE: (IsUsed(f"function {function.signature}"), True)},
        )
