"""A revision that commits before it is stamped, and was killed in between: finished first, whichever way one then goes.

Alembic records a revision once it is done. One that is killed after a commit is half done, and an upgrade never calls a
revision that is half downgraded, nor the reverse. So the revision and its direction are noted before its first commit,
as the comment on the version table, and the note goes with the commit that stamps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import wraps
from typing import Any

from alembic.migration import MigrationContext
from alembic.runtime.migration import MigrationInfo, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.steps import execute_on
from amprenta_vectors.pg.names import literal, qualified
from amprenta_vectors.pg.tables import table_of

_NOTE = re.compile(r"unfinished (upgrade|downgrade) of (\w+)")


def settle_first(context: MigrationContext, script: ScriptDirectory) -> None:
    """Have ``context`` finish what an interrupted command left, and note what this one commits early.

    Call it in an ``env.py``, after `configure` and before ``run_migrations``.
    """
    steps: Any = context._migrations_fn  # what the command is to do: Alembic has no other place to reach it
    current: list[RevisionStep] = []

    @wraps(steps)
    def iter_steps(heads: tuple[str, ...], _: MigrationContext) -> Iterator[Any]:
        for step in unfinished(context, script, heads):
            log.warning("%s was interrupted: it is finished first", step)
            current[:] = [step]
            yield step
        for step in steps(context.get_current_heads(), context):
            current[:] = [step] if isinstance(step, RevisionStep) else []
            yield step

    def note(connection: Connection) -> None:
        if current:
            way = "upgrade" if current[0].is_upgrade else "downgrade"
            _comment(context, connection, f"unfinished {way} of {current[0].revision.revision}")

    def forget(ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:
        if _note_of(ctx) is not None and ctx.connection is not None:
            _comment(ctx, ctx.connection, None)

    context._migrations_fn = iter_steps
    context.opts["amprenta_before_commit"] = note
    context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, forget)


def unfinished(context: MigrationContext, script: ScriptDirectory, heads: tuple[str, ...]) -> list[RevisionStep]:
    """Return the steps that finish what was interrupted; an empty list if nothing was."""
    found = _note_of(context)
    if found is None:
        return []
    way, revision = found
    if way == "upgrade":
        steps: list[Any] = script._upgrade_revs(revision, heads)  # type: ignore[arg-type]
    else:
        below = script.get_revision(revision).down_revision
        steps = script._downgrade_revs(str(below or "base"), heads)  # type: ignore[arg-type]
    return steps


def _note_of(context: MigrationContext) -> tuple[str, str] | None:
    connection = context.connection
    assert connection is not None  # noqa: S101 - a script is never interrupted by us
    table = table_of(connection, context.version_table, context.version_table_schema)
    found = None if table is None else _NOTE.fullmatch(table.comment)
    return None if found is None else (found[1], found[2])


def _comment(context: MigrationContext, connection: Connection, text: str | None) -> None:
    table = qualified(context.version_table, context.version_table_schema)
    execute_on(connection, f"COMMENT ON TABLE {table} IS {'NULL' if text is None else literal(text)}")
