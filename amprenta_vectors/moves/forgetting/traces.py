"""What stores keep of a person beside rows: intents, tombstones, marks on rows, and queries that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, JSONPATH
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.forgetting import Mentions, Named, is_among
from amprenta_vectors.batch import Key
from amprenta_vectors.schema.engine_tables import kept_clause

LONGEST_NUMBER = 18
"""Digits of a key that a filter may have as a number."""
_IN_FILTER = "lax $.** ? (@ == $v[*])"


def forget_intents(connection: Connection, named: Named, mentions: Mentions) -> tuple[int, int]:
    """Delete intents and tombstones; return how many, and how many deletions the other store has still to get.

    Those stay: without them it would keep the rows for ever.
    """
    texts = [sa.column(name, sa.Text) for name in ("target", "key", "operation", "last_error")]
    others = [sa.column("scope", JSONB), sa.column("cleared_at", sa.TIMESTAMP(timezone=True))]
    outbox = kept_clause(connection, "vector_outbox", *texts, *others)
    if outbox is None:
        return 0, 0
    theirs = named.of(outbox.c.target, outbox.c.scope, outbox.c.key)
    owed = sa.and_(outbox.c.operation == "delete", outbox.c.cleared_at.is_(None))
    deleted = connection.execute(sa.delete(outbox).where(theirs, ~owed)).rowcount
    mentions.blot(connection, outbox, "last_error")
    left = connection.execute(sa.select(sa.func.count()).select_from(outbox).where(theirs, owed)).scalar_one()
    return deleted, left


def forget_queries(connection: Connection, keys: Sequence[str], mentions: Mentions) -> int:
    """Delete the shadow queries that missed one of the rows, or whose filter, error or store names the person."""
    names = ("primary_store", "secondary_store", "error")
    texts = [sa.column(name, sa.Text) for name in names]
    shadow = kept_clause(
        connection, "shadow_query", sa.column("missing", ARRAY(sa.Text)), sa.column("filter", JSONB), *texts
    )
    if shadow is None:
        return 0
    numbers = [int(each) for each in mentions.values if each.isdecimal() and len(each) <= LONGEST_NUMBER]
    given = sa.cast(sa.literal(json.dumps({"v": [*mentions.values, *numbers]})), JSONB)
    in_filter = sa.func.jsonb_path_exists(shadow.c.filter, sa.cast(_IN_FILTER, JSONPATH), given)
    values = sa.cast(sa.literal([*keys, *mentions.values], ARRAY(sa.Text)), ARRAY(sa.Text))
    missed = shadow.c.missing.op("&&")(values)
    named = [mentions.among(shadow.c[name]) for name in names]
    return connection.execute(sa.delete(shadow).where(sa.or_(missed, in_filter, *named))).rowcount


def forget_marks(connection: Connection, named: Named, rows: Sequence[Key]) -> int:
    """Delete the marks on rows, those with the keys of ``rows``, or all of a user's."""
    columns = [sa.column("target", sa.Text), sa.column("scope", JSONB), sa.column("key", ARRAY(sa.Text))]
    marks = kept_clause(connection, "vector_row_mark", *columns)
    if marks is None:
        return 0
    theirs = named.in_scope(marks.c.target, marks.c.scope)
    if named.keys is not None:
        theirs = sa.and_(theirs, is_among(marks.c.key, rows))
    return connection.execute(sa.delete(marks).where(theirs)).rowcount
