"""Functions, triggers and views of a section, which no model has, for ``alembic check`` to look for."""

from __future__ import annotations

from alembic.operations import MigrateOperation
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Found
from amprenta_vectors.ddl.contexts import open_context
from amprenta_vectors.ddl.function import CreateFunctionOp, FunctionsFact
from amprenta_vectors.ddl.materialized_view import CreateMaterializedViewOp
from amprenta_vectors.ddl.plan import recording
from amprenta_vectors.ddl.steps import Step
from amprenta_vectors.ddl.trigger import CreateTriggerOp

Program = CreateFunctionOp | CreateTriggerOp | CreateMaterializedViewOp


def operations_of(script: ScriptDirectory) -> list[MigrateOperation]:
    """Return what the revisions do, in their order; the revisions are asked, and nothing is carried out."""
    context = open_context(dialect_name="postgresql")
    found: list[MigrateOperation] = []
    for each in list(script.walk_revisions())[::-1]:
        with recording(context) as (_, recorded):
            each.module.upgrade()
        found += recorded
    return found


def missing(connection: Connection, operations: list[MigrateOperation]) -> list[MigrateOperation]:
    """Return the operations that make a function, trigger or view of a name that nothing in the database has."""
    found = Found(connection)
    return [
        program
        for program in operations
        if isinstance(program, Program)
        and isinstance(program.next_step(found, {}), Step)
        and not _is_ours(found, program)
    ]


def _is_ours(found: Found, program: Program) -> bool:
    """Return whether ``program`` is a function that is there, made here: each upgrade renews it."""
    return isinstance(program, CreateFunctionOp) and bool(found.ask(FunctionsFact(program.name, program.schema), ()))
