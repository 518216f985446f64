"""The steps by which `take_back` brings a retired column back, as statements for psql."""

from __future__ import annotations

import sqlalchemy as sa

from amprenta_vectors.ddl.catalogue import RETIRED, qualified
from amprenta_vectors.ddl.locking import GIVE_UP_SECONDS
from amprenta_vectors.ddl.psql import (
    comment_of_column,
    fill,
    interval,
    literal,
    never_had,
    regclass,
    sql,
    type_of,
)
from amprenta_vectors.ddl.take_back import PAGES, UPDATED_AT, trigger_body, trigger_name


def dated(relation: str) -> str:
    """Whether the table records when a row changed."""
    return f"coalesce(starts_with({type_of(relation, literal(UPDATED_AT))}, 'timestamp'), false)"


def watch(schema: str | None, table: str, kept: str) -> str:
    """Make the trigger that empties what changes from now on."""
    trigger = trigger_name(schema, table, kept)
    return fill(
        """
        CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS {body};
        CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}();
        """,
        function=qualified(trigger, schema),
        body=literal(trigger_body(kept)),
        trigger=qualified(trigger),
        table=qualified(table, schema),
    )


def unwatch(schema: str | None, table: str, kept: str) -> str:
    """Drop the trigger, also one that an interrupted upgrade left."""
    trigger = trigger_name(schema, table, kept)
    return fill(
        """
        DROP TRIGGER IF EXISTS {trigger} ON {table};
        DROP FUNCTION IF EXISTS {function}();
        """,
        trigger=qualified(trigger),
        table=qualified(table, schema),
        function=qualified(trigger, schema),
    )


EMPTYING = {
    "since": "timestamptz",
    "pages": "bigint",
    "page": "bigint := 0",
    "emptied": "bigint",
    "give_up_at": "timestamptz",
}


def empty_changed(schema: str | None, table: str, kept: str) -> str:
    """Empty what was kept of rows that changed ``since``, each stretch of pages a transaction of its own."""
    relation = regclass(schema, table)
    emptying = (
        sa.update(sa.table(table, sa.column(kept), schema=schema))
        .where(
            sa.text("ctid >= $1 AND ctid < $2"), sa.column(UPDATED_AT) >= sa.text("$3"), sa.column(kept).is_not(None)
        )
        .values({kept: None})
    )
    return fill(
        """
        since := substr({comment}, {start});
        pages := (
            WITH RECURSIVE tree AS (
                SELECT {relation}::oid AS oid
                UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
            )
            SELECT max(pg_relation_size(oid)) / current_setting('block_size')::bigint FROM tree
        );
        give_up_at := clock_timestamp() + {give_up};
        WHILE page < pages LOOP
            BEGIN
                EXECUTE {emptying} USING format('(%s,0)', page)::tid, format('(%s,0)', page + {stretch})::tid, since;
                GET DIAGNOSTICS emptied = ROW_COUNT;
                emptied := emptied + current_setting('amprenta.emptied')::bigint;
                PERFORM set_config('amprenta.emptied', emptied::text, false);
                page := page + {stretch};
                give_up_at := clock_timestamp() + {give_up};
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                IF clock_timestamp() > give_up_at THEN
                    {never_had}
                END IF;
                PERFORM pg_sleep(0.5);
            END;
            COMMIT;
        END LOOP;
        """,
        comment=comment_of_column(relation, literal(kept)),
        start=str(len(RETIRED) + 1),
        relation=relation,
        give_up=interval(GIVE_UP_SECONDS),
        emptying=literal(sql(emptying)),
        stretch=str(PAGES),
        never_had=never_had(f"emptying changed rows of {table}.{kept}"),
    )
