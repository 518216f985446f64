"""The plan of an upgrade: what it would do and which locks it would take, found out without doing it.

The revisions' own ``upgrade`` functions run against an ``op`` that records; each operation then says, from the
catalogue as the steps before it leave it, which steps it comes to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Foretold, Found, TableFact
from amprenta_vectors.ddl.contexts import open_context
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, explain
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.pg.tables import table_of


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
    steps: list[Step | Done]
    tables: list[TableFigures]


def plan_upgrade(
    connection: Connection, script: ScriptDirectory, revision: str, *, version_table: str, options: dict[str, Any]
) -> list[RevisionPlan]:
    """Return what an upgrade to ``revision`` would do, a revision at a time; ``options`` are those given by ``-x``.

    Raises what the upgrade itself would find wrong with tables and columns, and `ConfigError` for an unknown revision.
    """
    context = open_context(
        connection=connection, opts={"version_table": version_table, "amprenta_options": options, "script": script}
    )
    heads: Any = context.get_current_heads()
    try:
        pending = list(script.iterate_revisions(revision, heads or "base", implicit_base=True))[::-1]
    except RevisionError as error:
        raise ConfigError(str(error), hint="amprenta-vectors db current") from error
    plans, catalogue = [], Foretold(Found(connection))
    options = {"version_table": version_table, **options}
    for each in pending:
        with recording(context) as (_, recorded):
            each.module.upgrade()
        found = (step for operation in recorded for step in _steps(catalogue, operation, options))
        steps = [_as_it_is_now(connection, step) for step in found]
        plans.append(RevisionPlan(each.revision, each.doc, steps, _figures(connection, steps)))
    return plans


def publications_of(connection: Connection, plans: list[RevisionPlan]) -> dict[str, list[str]]:
    """Return the publications that carry what the steps change, each with the tables that it carries.

    A publication of all tables carries those too that the steps make.
    """
    steps = [step for plan in plans for step in plan.steps if isinstance(step, Step)]
    tables = (fact for step in steps for fact in step.foretells if isinstance(fact, TableFact))
    made = [qualified(table.name, table.schema) for table in tables]
    names = list(dict.fromkeys([*(step.object for step in steps if step.object), *made]))
    rows = connection.execute(_PUBLICATIONS, {"names": names})
    return {row.publication: row.tables for row in rows} if steps else {}


_PUBLICATIONS = sa.text("""
    SELECT p.pubname AS publication, array_agg(changed.name ORDER BY changed.name) AS tables
    FROM pg_publication p CROSS JOIN unnest(CAST(:names AS text[])) AS changed (name)
    WHERE p.puballtables OR EXISTS (
        SELECT FROM pg_publication_tables t
        WHERE t.pubname = p.pubname AND to_regclass(format('%I.%I', t.schemaname, t.tablename)) IN (
            SELECT to_regclass(changed.name) UNION SELECT relid FROM pg_partition_tree(to_regclass(changed.name))
        )
    )
    GROUP BY 1 ORDER BY 1
""")


@contextmanager
def recording(context: MigrationContext) -> Iterator[tuple[Operations, list[MigrateOperation]]]:
    """Let ``alembic.op`` note its operations instead of carrying them out."""
    recorded: list[MigrateOperation] = []
    with Operations.context(context) as operations:
        # Every directive, Alembic's own and ours, ends in this one method.
        setattr(operations, "invoke", recorded.append)  # noqa: B010 - mypy forbids to assign a method
        yield operations, recorded


def _steps(catalogue: Foretold, operation: MigrateOperation, options: Mapping[str, Any]) -> Iterator[Step | Done]:
    if isinstance(operation, SteppedOp):
        yield from explain(catalogue, operation, options)
    else:
        name = type(operation).__name__
        yield Step(name, lambda _: None, lock="not known", blocks="not known", duration="not known")


def _as_it_is_now(connection: Connection, step: Step | Done) -> Step | Done:
    """Return a step that says how much it has to do, and that no session waits for a table that is not there yet."""
    if isinstance(step, Done):
        return step
    if step.measured is not None:
        step = replace(step, action=step.measured(connection))
    if step.table is not None and table_of(connection, *step.table) is None:
        step = replace(step, blocks="nobody")
    return step


def _figures(connection: Connection, steps: list[Step | Done]) -> list[TableFigures]:
    statement = sa.text("""
        SELECT :name AS name, CASE WHEN reltuples >= 0 THEN reltuples::bigint END AS rows, pg_table_size(oid) AS bytes
        FROM pg_class WHERE oid = to_regclass(:name) AND relkind IN ('r', 'p')
    """)
    names = dict.fromkeys(step.object for step in steps if step.object)
    found = [connection.execute(statement, {"name": name}).first() for name in names]
    return [TableFigures(row.name, row.rows, row.bytes) for row in found if row is not None]
