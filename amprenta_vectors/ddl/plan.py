"""What an upgrade would do and which locks it would take, found out without doing it.

The revisions' own ``upgrade`` functions run against an ``op`` that records; each operation then says, from the
catalogue as it is, what it would come to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import is_retired, retired_name, table_exists
from amprenta_vectors.errors import ConfigError

Blocked = Literal["nobody", "writers", "readers and writers", "not known"]


@dataclass(frozen=True)
class Step:
    """One thing that an operation does: on what, under which lock of PostgreSQL's, who waits for it, and how long."""

    action: str
    object: str = ""
    lock: str = ""
    blocks: Blocked = "nobody"
    duration: str = "instant"


@runtime_checkable
class Planned(Protocol):
    """An operation that can say beforehand what it will do."""

    def plan(self, operations: Operations) -> list[Step]:
        """The steps, judged by the database as it is now, of which nothing is changed."""
        ...


@dataclass(frozen=True)
class TableFigures:
    """A table that a revision works on: rows as last estimated, None where never, and bytes on disk."""

    name: str
    rows: int | None
    bytes: int


@dataclass(frozen=True)
class RevisionPlan:
    """A pending revision with its steps."""

    revision: str
    title: str
    steps: list[Step]
    tables: list[TableFigures]


def present_name(connection: Connection, table: str, schema: str | None) -> str | None:
    """The name that ``table`` has now: its own or its retired one; None where it is still to be made."""
    if table_exists(connection, table, schema):
        return table
    kept = retired_name(table)
    return kept if is_retired(connection, kept, schema=schema) else None


def plan_upgrade(
    connection: Connection, script: ScriptDirectory, revision: str, *, version_table: str, options: dict[str, Any]
) -> list[RevisionPlan]:
    """What an upgrade to ``revision`` would do, a revision at a time; ``options`` are those given by ``-x``.

    Raises what the upgrade itself would find wrong with tables and columns, and `ConfigError` for an unknown revision.
    """
    context = MigrationContext.configure(
        connection, opts={"version_table": version_table, "amprenta_options": options, "script": script}
    )
    heads: Any = context.get_current_heads()
    try:
        pending = list(script.iterate_revisions(revision, heads or "base", implicit_base=True))[::-1]
    except RevisionError as error:
        raise ConfigError(str(error), hint="amprenta-vectors db current") from error
    plans = []
    for each in pending:
        with recording(context) as (operations, recorded):
            each.module.upgrade()
            steps = [step for operation in recorded for step in _steps(operations, operation)]
        plans.append(RevisionPlan(each.revision, each.doc, steps, _figures(connection, steps)))
    return plans


@contextmanager
def recording(context: MigrationContext) -> Iterator[tuple[Operations, list[MigrateOperation]]]:
    """Let ``alembic.op`` note its operations instead of carrying them out."""
    recorded: list[MigrateOperation] = []
    with Operations.context(context) as operations:
        # Every directive, Alembic's own and ours, ends in this one method.
        setattr(operations, "invoke", recorded.append)  # noqa: B010 - mypy forbids to assign a method
        yield operations, recorded


def _steps(operations: Operations, operation: MigrateOperation) -> list[Step]:
    if isinstance(operation, Planned):
        return operation.plan(operations)
    return [Step(type(operation).__name__, lock="not known", blocks="not known", duration="not known")]


def _figures(connection: Connection, steps: list[Step]) -> list[TableFigures]:
    statement = sa.text("""
        SELECT :name AS name, CASE WHEN reltuples >= 0 THEN reltuples::bigint END AS rows, pg_table_size(oid) AS bytes
        FROM pg_class WHERE oid = to_regclass(:name) AND relkind IN ('r', 'p')
    """)
    names = dict.fromkeys(step.object for step in steps if step.object)
    found = [connection.execute(statement, {"name": name}).first() for name in names]
    return [TableFigures(row.name, row.rows, row.bytes) for row in found if row is not None]


def count(connection: Connection, table: str, schema: str | None, where: sa.ColumnElement[bool] | None = None) -> int:
    """How many rows ``table`` has, or how many of them meet a condition."""
    rows = sa.select(sa.func.count()).select_from(sa.table(table, schema=schema))
    counted: int = connection.execute(rows if where is None else rows.where(where)).scalar_one()
    return counted
