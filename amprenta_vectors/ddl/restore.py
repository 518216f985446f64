"""How a retired column comes back: emptied where its row changed, before anybody sees it under its name again.

A trigger empties the rows that change from now on; then those that changed since the downgrade are emptied, some pages
at a time and no row locked for long; then the column is renamed and the trigger dropped, in one instant. All but that
instant is neutral: killed anywhere, it is still the retired column, whichever way one goes from there.

A row changed if the transaction that wrote it, its ``xmin``, had not ended at the downgrade. Where that says nothing,
because the rows came from another server, a time in ``updated_at`` decides if its time zone is known. What cannot be
told is emptied.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact
from amprenta_vectors.ddl.marks import MADE, Retirement, retired_name
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.ddl.steps import Step, execute, script_catalogue
from amprenta_vectors.pg.names import compose, literal, qualified, quoted
from amprenta_vectors.pg.sessions import LOCK_SECONDS, settings, try_for_lock
from amprenta_vectors.pg.tables import Column, count_rows, pages_of, table_of

UPDATED_AT = "updated_at"
"""The column that may tell whether a row changed while its values were retired."""
PAGES = 128
"""Pages of the table that one statement looks through for rows to empty, which it locks."""
ROW_LOCK_TIMEOUT = "200ms"
"""Shorter than deadlock_timeout, so that of two sessions that wait for each other's rows it is this one that yields."""

_MOST_TRANSACTIONS = 2**31
"""The number of transactions since the downgrade up to which the 32 bits of ``xmin`` tell whether a row is older."""
_EMPTIED = "rows that changed before are empty: "
_AWARE = re.compile(r"timestamp(?:\((\d)\))? with time zone")

_CLUSTER = sa.text("""
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next,
           has_function_privilege('pg_control_system()', 'EXECUTE') AS may_ask
""")
_IDENTIFIER = sa.text("SELECT system_identifier FROM pg_control_system()")

# The 64-bit id of the transaction that wrote a row, from its 32 bits and the next id to come. Ids below 3 are of rows
# that were frozen before PostgreSQL 9.4.
_WRITTEN_BEFORE = """
(xmin::text::bigint < 3 OR (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) -
    ((SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - xmin::text::bigint) % 4294967296 < {})
"""


@dataclass(frozen=True)
class Watch:
    """The trigger on a retired column, and how many rows were emptied; None until that is done."""

    emptied: int | None = field(default=None, compare=False)

    @property
    def complete(self) -> bool:
        """Return whether every row that changed before is empty."""
        return self.emptied is not None


@dataclass(frozen=True)
class WatchFact(Fact[Watch | None]):
    """The trigger that empties what changes in a retired column."""

    table: str
    kept: str
    schema: str | None = None

    def find(self, connection: Connection) -> Watch | None:
        """Return the trigger; None if there is none."""
        statement = sa.text("""
            SELECT coalesce(obj_description(oid, 'pg_trigger'), '') FROM pg_trigger
            WHERE tgrelid = to_regclass(:table) AND tgname = :name AND NOT tgisinternal
        """)
        names = {"table": quoted(self.schema, self.table), "name": self.name}
        comment: str | None = connection.execute(statement, names).scalar()
        if comment is None:
            return None
        return Watch(int(comment.removeprefix(_EMPTIED)) if comment.startswith(_EMPTIED) else None)

    @property
    def name(self) -> str:
        """Return the name of the trigger and of its function, in a fixed length."""
        return (
            "amprenta_empties_" + hashlib.sha256(quoted(self.schema, self.table, self.kept).encode()).hexdigest()[:16]
        )

    @property
    def trigger(self) -> str:
        """Return the trigger as COMMENT ON and DROP name it."""
        return f"TRIGGER {self.name} ON {qualified(self.table, self.schema)}"

    @property
    def function(self) -> str:
        """Return the trigger's function as SQL names it."""
        return f"{qualified(self.name, self.schema)}()"


def restore_step(
    catalogue: Catalogue, table: str, column: str, schema: str | None, kept_column: Column, updated_at: Column | None
) -> Step:
    """Return the next step by which a retired column comes back under its name."""
    kept, where = retired_name(column), f"{table}.{column}"
    fact = WatchFact(table, kept, schema)
    watch = catalogue.ask(fact, None)
    shared: dict[str, Any] = {"table": (table, schema), "object": qualified(table, schema)}
    owner = _owner(table, schema)
    if watch is None:
        return Step(
            "create a trigger that empties rows that change until the end",
            lambda operations: _create_trigger(operations, fact),
            {fact: Watch()},
            lock="SHARE ROW EXCLUSIVE",
            blocks="writers",
            place="beside",
            needs=(owner, lambda connection: require_create(connection, schema)),
            **shared,
        )
    if watch.emptied is None:
        return Step(
            f"empty the values of {kept} whose rows changed since the downgrade",
            lambda operations: _empty(operations, fact, kept_column, updated_at),
            {fact: Watch(0)},
            measured=lambda connection: (
                f"empty {_count(connection, fact, _changed(connection, kept_column, updated_at)):,} of these values, "
                "whose rows changed since the downgrade"
            ),
            lock="ROW EXCLUSIVE",
            duration=f"scans the table, {PAGES} pages a transaction",
            place="beside",
            **shared,
        )

    def rename(operations: Operations) -> None:
        drop_trigger(operations, fact)
        operations.alter_column(table, kept, comment=MADE, new_column_name=column, schema=schema)

    return Step(
        f"take back {column} from {kept}",
        rename,
        {
            fact: None,
            ColumnFact(table, kept, schema): None,
            ColumnFact(table, column, schema): Column(kept_column.type, MADE, kept_column.not_null),
        },
        measured=lambda connection: f"take back {_count(connection, fact):,} values of {column} from {kept}",
        lock="ACCESS EXCLUSIVE",
        blocks="readers and writers",
        needs=(owner,),
        said=f"{where}: its values are back; {watch.emptied} rows changed meanwhile and are NULL again",
        **shared,
    )


def _count(connection: Connection, fact: WatchFact, changed: str = "true") -> int:
    """Return how many values are kept, or how many of them changed; the table may be retired itself."""
    there = fact.table if table_of(connection, fact.table, fact.schema) is not None else retired_name(fact.table)
    where = sa.and_(sa.column(fact.kept).is_not(None), sa.literal_column(f"({changed})"))
    return count_rows(connection, there, fact.schema, where)


def _owner(table: str, schema: str | None) -> Callable[[Connection], None]:
    return lambda connection: require_ownership(connection, table, schema)


def drop_trigger(operations: Operations, fact: WatchFact) -> None:
    """Drop the trigger, also one that an interrupted upgrade left, in a step that locks the table anyway."""
    execute(operations, fact.trigger.replace("TRIGGER", "DROP TRIGGER IF EXISTS", 1))
    execute(operations, f"DROP FUNCTION IF EXISTS {fact.function}")


def _create_trigger(operations: Operations, fact: WatchFact) -> None:
    """Create the trigger, waiting for whoever wrote to the table, so that no change escapes both it and the scan."""
    # Through JSON, which still works on a table whose owner dropped the column by hand.
    nothing = json.dumps({fact.kept: None}).replace("'", "''")
    body = literal(f"BEGIN RETURN jsonb_populate_record(NEW, '{nothing}'); END")
    execute(operations, f"CREATE OR REPLACE FUNCTION {fact.function} RETURNS trigger LANGUAGE plpgsql AS {body}")
    table = qualified(fact.table, fact.schema)

    def create() -> None:
        execute(
            operations,
            f"CREATE OR REPLACE TRIGGER {fact.name} BEFORE UPDATE ON {table} FOR EACH ROW "
            f"EXECUTE FUNCTION {fact.function}",
        )

    if (connection := _beside(operations)) is None:
        create()
        return
    with settings(connection, lock_timeout=f"{LOCK_SECONDS * 1000:.0f}ms"):
        try_for_lock(connection, f"watching {fact.table} for changes", create)


def _empty(operations: Operations, fact: WatchFact, kept_column: Column, updated_at: Column | None) -> None:
    """Empty every row that changed; beside another session, each stretch of pages in a transaction of its own."""
    table, kept = qualified(fact.table, fact.schema), qualified(fact.kept)
    catalogue = script_catalogue(operations.get_context()) if operations.get_context().as_sql else None
    asked = catalogue.connection if catalogue is not None else operations.get_bind()
    changed = _changed(asked, kept_column, updated_at)
    update = compose(
        "UPDATE {table} SET {kept} = NULL WHERE {kept} IS NOT NULL AND {changed}",
        table=table,
        kept=kept,
        changed=changed,
    )
    if catalogue is not None:
        execute(operations, update)
        return
    connection, emptied = operations.get_bind(), 0

    def empty(where: str = "") -> int:
        return connection.exec_driver_sql(update + where, execution_options={"no_parameters": True}).rowcount

    if _beside(operations) is None:
        emptied = empty()
    else:
        with settings(connection, lock_timeout=ROW_LOCK_TIMEOUT):
            for first in range(0, pages_of(connection, fact.table, fact.schema), PAGES):
                stretch = f" AND ctid >= '({first},0)'::tid AND ctid < '({first + PAGES},0)'::tid"
                emptied += try_for_lock(connection, f"emptying changed rows of {table}.{kept}", partial(empty, stretch))
    execute(operations, f"COMMENT ON {fact.trigger} IS {literal(f'{_EMPTIED}{emptied}')}")


def _beside(operations: Operations) -> Connection | None:
    """Return the connection where each statement commits by itself; None within the revision's transaction."""
    if operations.get_context().as_sql:
        return None
    connection = operations.get_bind()
    return connection if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT" else None


def _changed(connection: Connection | None, kept_column: Column, updated_at: Column | None) -> str:
    """Return the condition on a row that changed since the downgrade, or of which that cannot be told."""
    retired = Retirement.parse(kept_column.comment)
    if connection is not None and _tells_by_transaction(connection, retired):
        return f"NOT {_WRITTEN_BEFORE.format(retired.transaction)}"
    aware = _AWARE.fullmatch(updated_at.type) if updated_at is not None else None
    if aware is None or retired.moment is None:
        return "true"
    # A column of fewer digits rounds a time, perhaps to before the downgrade.
    moment = retired.moment - timedelta(seconds=10.0 ** -int(aware[1] or 6))
    return f"{UPDATED_AT} >= {literal(moment.isoformat())}::timestamptz"


def _tells_by_transaction(connection: Connection, retired: Retirement) -> bool:
    cluster = connection.execute(_CLUSTER).one()
    if retired.transaction is None or retired.identifier is None or not cluster.may_ask:
        return False
    same: bool = connection.execute(_IDENTIFIER).scalar_one() == retired.identifier
    since: int = cluster.next - retired.transaction
    return same and 0 <= since < _MOST_TRANSACTIONS
