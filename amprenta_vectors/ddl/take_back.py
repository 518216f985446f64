"""How a retired column comes back: emptied where its row changed, before anybody sees it under its name again.

A trigger empties the rows that change from now on; then those that changed since the downgrade are emptied, some pages
at a time and no row locked for long; then the column is renamed and the trigger dropped, in one instant. Killed
anywhere, it is still the retired column, and the next upgrade begins again with what is left to empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import (
    MADE,
    RETIRED,
    column_types,
    comment_of,
    commit_step,
    connection_of,
    qualified,
    quoted,
    retired_name,
)
from amprenta_vectors.ddl.locking import session_limits, try_for_lock, with_short_lock
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.plan import Blocked, Step, count
from amprenta_vectors.ddl.privileges import require_create, require_ownership

UPDATED_AT = "updated_at"
"""The column that tells whether a row changed while its values were retired."""
PAGES = 128
"""Pages of the table that one statement looks through for rows to empty, which it locks."""
ROW_LOCK_TIMEOUT = "200ms"
"""Shorter than deadlock_timeout, so that of two sessions that wait for each other's rows it is this one that yields."""


def take_back(operations: Operations, table: str, column: str, schema: str | None) -> None:
    """Bring a retired column back under its name, NULL where the row changed since it was retired."""
    connection, kept = connection_of(operations), retired_name(column)
    require_ownership(connection, table, schema)
    dated = changes_are_dated(connection, table, schema)
    emptied = 0
    if dated:
        require_create(connection, schema)
        guard = f"watching {table} for changes"
        with_short_lock(connection, guard, lambda: _create_trigger(connection, table, kept, schema))
        commit_step(operations)
        emptied = _empty_changed(operations, table, kept, schema)

    def rename() -> None:
        drop_trigger(connection, table, kept, schema)
        operations.alter_column(table, kept, comment=MADE, new_column_name=column, schema=schema)

    with_short_lock(connection, f"renaming {table}.{kept}", rename)
    commit_step(operations)
    if dated:
        log.info("%s.%s: its values are back; %d rows changed meanwhile and are NULL again", table, column, emptied)
    else:
        log.warning("%s.%s: its values are back; without %s, changed rows cannot be told", table, column, UPDATED_AT)


def plan_take_back(connection: Connection, table: str, column: str, schema: str | None, blocked: Blocked) -> list[Step]:
    """The steps of `take_back` on ``table``, under whatever name it now has."""
    name, kept = qualified(table, schema), retired_name(column)
    values = count(connection, table, schema, sa.column(kept).is_not(None))
    rename = Step(f"take back {values:,} values of {column} from {kept}", name, "ACCESS EXCLUSIVE", blocked)
    if not changes_are_dated(connection, table, schema):
        return [rename]
    changed = count(connection, table, schema, is_changed(connection, table, kept, schema))
    return [
        Step(
            "create a trigger that empties rows that change until the end",
            name,
            "SHARE ROW EXCLUSIVE",
            "nobody" if blocked == "nobody" else "writers",
        ),
        Step(
            f"empty {changed:,} of these values, whose rows changed since the downgrade",
            name,
            "ROW EXCLUSIVE",
            duration=f"scans the table, {PAGES} pages a transaction",
        ),
        rename,
    ]


def changes_are_dated(connection: Connection, table: str, schema: str | None) -> bool:
    """Whether the table records when a row changed."""
    return column_types(connection, table, schema).get(UPDATED_AT, "").startswith("timestamp")


def is_changed(connection: Connection, table: str, kept: str, schema: str | None) -> sa.ColumnElement[bool]:
    """The condition on a row that has a value of before the downgrade and changed after it."""
    retired_at = comment_of(connection, table, kept, schema).removeprefix(RETIRED)
    changed: sa.ColumnElement[bool] = sa.column(UPDATED_AT) >= sa.cast(retired_at, sa.TIMESTAMP(timezone=True))
    return sa.and_(changed, sa.column(kept).is_not(None))


def drop_trigger(connection: Connection, table: str, kept: str, schema: str | None) -> None:
    """Drop the trigger that an interrupted upgrade may have left; part of what takes the lock on the table anyway."""
    name, relation, function = _names(connection, table, kept, schema)
    connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON {relation}")
    connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {function}()")


def _create_trigger(connection: Connection, table: str, kept: str, schema: str | None) -> None:
    """Creating it waits for every transaction that wrote to the table, so no change escapes both it and the scan."""
    name, relation, function = _names(connection, table, kept, schema)
    connection.exec_driver_sql(
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS %(body)s",
        {"body": trigger_body(kept)},
    )
    connection.exec_driver_sql(
        f"CREATE OR REPLACE TRIGGER {name} BEFORE UPDATE ON {relation} FOR EACH ROW EXECUTE FUNCTION {function}()"
    )


def trigger_name(schema: str | None, table: str, kept: str) -> str:
    """What the trigger and its function are called, in a fixed length."""
    return "amprenta_empties_" + hashlib.sha256(quoted(schema, table, kept).encode()).hexdigest()[:16]


def trigger_body(kept: str) -> str:
    """The function's body; through JSON, which still works on a table whose owner dropped the column by hand."""
    nothing = json.dumps({kept: None}).replace("'", "''")
    return f"BEGIN RETURN jsonb_populate_record(NEW, '{nothing}'); END"


def _names(connection: Connection, table: str, kept: str, schema: str | None) -> tuple[str, str, str]:
    """The trigger, the table and the function, each as SQL; trigger and function share a name of fixed length."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    name = quote(trigger_name(schema, table, kept))
    within = f"{quote(schema)}." if schema else ""
    return name, within + quote(table), within + name


def _empty_changed(operations: Operations, table: str, kept: str, schema: str | None) -> int:
    """Empty every row that changed, each stretch of pages a transaction of its own; returns how many were."""
    connection, emptied = connection_of(operations), 0
    changed = is_changed(connection, table, kept, schema)
    pages = _pages(connection, table, schema)
    target = sa.table(table, sa.column(kept), schema=schema)

    def empty(first: int) -> Callable[[], int]:
        stretch = sa.text("ctid >= CAST(:first AS tid) AND ctid < CAST(:last AS tid)").bindparams(
            first=f"({first},0)", last=f"({first + PAGES},0)"
        )
        statement = sa.update(target).where(stretch, changed).values({kept: None})
        return lambda: connection.execute(statement).rowcount

    with operations.get_context().autocommit_block(), session_limits(connection, lock_timeout=ROW_LOCK_TIMEOUT):
        for first in range(0, pages, PAGES):
            emptied += try_for_lock(connection, f"emptying changed rows of {table}.{kept}", empty(first))
    return emptied


def _pages(connection: Connection, table: str, schema: str | None) -> int:
    """The length of the table in pages, or that of its longest partition."""
    pages: Any = connection.execute(
        sa.text("""
            WITH RECURSIVE tree AS (
                SELECT to_regclass(:name)::oid AS oid
                UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
            )
            SELECT max(pg_relation_size(oid)) / current_setting('block_size')::bigint FROM tree
        """),
        {"name": quoted(schema, table)},
    ).scalar_one()
    return int(pages)
