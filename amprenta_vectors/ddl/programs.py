"""Functions, triggers and views of a section, which no model has, for ``alembic check`` to look for."""

from __future__ import annotations

from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Found
from amprenta_vectors.ddl.function import CreateFunctionOp, FunctionsFact
from amprenta_vectors.ddl.materialized_view import CreateMaterializedViewOp
from amprenta_vectors.ddl.plan import recording
from amprenta_vectors.ddl.steps import Step
from amprenta_vectors.ddl.trigger import CreateTriggerOp

Program = CreateFunctionOp | CreateTriggerOp | CreateMaterializedViewOp


def programs_of(script: ScriptDirectory) -> list[Program]:
    """What the revisions make of them, in their order; the revisions are asked, and nothing is carried out."""
    context = MigrationContext.configure(dialect_name="postgresql")
    found: list[MigrateOperation] = []
    for each in list(script.walk_revisions())[::-1]:
        with recording(context) as (_, recorded):
            each.module.upgrade()
        found += recorded
    return [op for op in found if isinstance(op, Program)]


def missing(connection: Connection, programs: list[Program]) -> list[MigrateOperation]:
    """Those whose name nothing in the database has."""
    found = Found(connection)
    return [
        program
        for program in programs
        if isinstance(program.next_step(found, {}), Step) and not _is_ours(found, program)
    ]


def _is_ours(found: Found, program: Program) -> bool:
    """Whether it is there, made here: a function is renewed by each upgrade."""
    return isinstance(program, CreateFunctionOp) and bool(found.ask(FunctionsFact(program.name, program.schema), ()))
