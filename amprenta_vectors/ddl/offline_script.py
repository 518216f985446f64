"""What stands around the operations in a script for psql: the lock, and the question which revisions are left to run.

A script is for a database in any state between its two ends, so it asks the version table before each revision, where
Alembic's own statements take the database to be exactly where the script begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import dedent
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep, StampStep
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateTable

from amprenta_vectors.ddl.catalogue import qualified
from amprenta_vectors.ddl.psql import do, fill, interval, literal, refuse, sql

_HEADER = r"""
    -- Made by amprenta_vectors, for psql on a direct connection, not through a pooler and never with -1:
    --     psql -X -v ON_ERROR_STOP=1 -f THIS_FILE "$DATABASE_URL"
    -- Interrupted anywhere, it goes on where it was when it is run again.
    \set ON_ERROR_STOP on
    \set ON_ERROR_ROLLBACK off
    \set AUTOCOMMIT on
"""


def make_repeatable(context: MigrationContext, *, lock: int, lock_seconds: float) -> None:
    """Have ``context``, configured to write SQL, write a script for a database in any state between its two ends.

    Each revision runs only where it is left to run, all of them under the advisory lock ``lock``, for which the script
    waits up to ``lock_seconds``. For an ``env.py``, before ``run_migrations``.
    """
    steps: Any = context._migrations_fn  # what the command is to do: Alembic has no other place to reach it

    def iter_steps(heads: tuple[str, ...], _: MigrationContext) -> Iterator[Any]:
        found: list[RevisionStep | StampStep] = list(steps(heads, context))
        if any(isinstance(step, StampStep) for step in found):
            yield from found
            return
        write = context.impl.static_output
        for number, step in enumerate(found):
            if number == 0:
                _begin(context, heads, upgrading=step.is_upgrade, lock=lock, lock_seconds=lock_seconds)
            applied = _is_at(context, _since(_revisions(context), step.info.up_revision_ids))
            left = f"NOT {applied}" if step.is_upgrade else applied
            write(fill(r"SELECT {left} AS amprenta_left \gset", left=left))
            write("\\if :amprenta_left")
            yield step
            write("\\endif")
        if found:
            write(fill("SELECT pg_advisory_unlock({lock});", lock=str(lock)))

    context._migrations_fn = iter_steps
    context.on_version_apply_callbacks = (*context.on_version_apply_callbacks, _stamp)


def _stamp(ctx: MigrationContext, step: MigrationInfo, heads: set[Any], run_args: dict[str, Any]) -> None:
    """Record that a step is done, whatever the table said before."""
    if step.is_stamp:
        return
    table, revisions = _version_table(ctx), _revisions(ctx)
    version = table.c.version_num
    ups = list(step.up_revision_ids)
    statements: list[sa.ClauseElement]
    if step.is_upgrade:
        statements = [
            sa.delete(table).where(version.in_(sorted(_until(revisions, ups)))),
            *(sa.insert(table).values(version_num=revision) for revision in ups),
        ]
    else:
        statements = [sa.delete(table).where(version.in_(ups))]
        for revision in step.down_revision_ids:
            reached = sa.exists(sa.literal(1)).where(version.in_(sorted(_since(revisions, [revision]))))
            statements.append(
                sa.insert(table).from_select(["version_num"], sa.select(sa.literal(revision)).where(~reached))
            )
    for statement in statements:
        ctx.impl.static_output(sql(statement) + ";")


def _begin(
    context: MigrationContext, heads: tuple[str, ...], *, upgrading: bool, lock: int, lock_seconds: float
) -> None:
    """Take the lock, and refuse a database that is at a revision which the script is not for."""
    impl, table, revisions = context.impl, _version_table(context), _revisions(context)
    impl.memo["version table"] = table.name
    made = impl.version_table_impl(
        version_table=context.version_table,
        version_table_schema=context.version_table_schema,
        version_table_pk=context.opts.get("version_table_pk", True),
    )
    expected = _since(revisions, heads) if upgrading else _until(revisions, heads)
    at_base = not heads or not upgrading
    check = fill(
        """
        SELECT coalesce(string_agg(version_num, ', '), 'base') INTO revision FROM {table};
        IF EXISTS (SELECT FROM {table} WHERE version_num <> ALL ({expected})){or_base} THEN
            {refuse}
        END IF;
        """,
        table=qualified(context.version_table, context.version_table_schema),
        expected=literal(sorted(expected)),
        or_base="" if at_base else " OR revision = 'base'",
        refuse=refuse(
            "'the database is at revision ' || revision || "
            + literal(f"; this script is for: {', '.join([*(['base'] if at_base else []), *sorted(expected)])}"),
            "'write one that begins at ' || revision || ', with the release that knows it'",
        ),
    )
    # COMMIT lets go of the snapshot, which a concurrent build under the lock would wait for.
    take_lock = fill(
        """
        IF transaction_timestamp() <> statement_timestamp() THEN
            {no_transaction}
        END IF;
        WHILE NOT pg_try_advisory_lock({lock}) LOOP
            IF clock_timestamp() > deadline THEN
                {refuse}
            END IF;
            COMMIT;
            PERFORM pg_sleep(0.2);
        END LOOP;
        """,
        no_transaction=refuse(
            literal("the script cannot run inside a transaction"),
            literal("run it without -1, --single-transaction or a BEGIN of your own"),
        ),
        lock=str(lock),
        refuse=refuse(
            literal(f"another migration of this database has run for more than {lock_seconds:.0f} s"),
            literal("wait for it, or raise AMPRENTA_MIGRATION_LOCK_TIMEOUT and write the script again"),
        ),
    )
    deadline = f"timestamptz := clock_timestamp() + {interval(lock_seconds)}"
    for text in (
        dedent(_HEADER).strip(),
        "SET statement_timeout = 0;",
        do(take_lock, deadline=deadline) + ";",
        "RESET statement_timeout;",
        sql(CreateTable(made, if_not_exists=True)).strip() + ";",
        do(check, revision="text") + ";",
    ):
        impl.static_output(text)


def _revisions(context: MigrationContext) -> ScriptDirectory:
    assert context.script is not None  # noqa: S101 - every environment has its revisions
    return context.script


def _version_table(context: MigrationContext) -> sa.TableClause:
    return sa.table(context.version_table, sa.column("version_num", sa.Text), schema=context.version_table_schema)


def _is_at(context: MigrationContext, revisions: set[str]) -> str:
    return fill(
        "EXISTS (SELECT FROM {table} WHERE version_num = ANY ({revisions}))",
        table=qualified(context.version_table, context.version_table_schema),
        revisions=literal(sorted(revisions)),
    )


def _until(revisions: ScriptDirectory, heads: Iterable[str]) -> set[str]:
    """``heads`` and all that came before them."""
    return {each.revision for head in heads for each in revisions.iterate_revisions(head, "base")}


def _since(revisions: ScriptDirectory, heads: Iterable[str]) -> set[str]:
    """``heads`` and all that came after any of them; every revision where there are none."""
    wanted = set(heads)
    every = {each.revision for each in revisions.walk_revisions()}
    return {each for each in every if not wanted or wanted & _until(revisions, [each])}
