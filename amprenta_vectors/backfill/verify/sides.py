"""The two sides of a verification in PostgreSQL: what the source has, in a temporary table, and what the table has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from amprenta_vectors.schema.expressions import column_type, in_scope, to_clause
from amprenta_vectors.schema.key_values import is_checked
from amprenta_vectors.schema.vector_table import VectorTable

_CAN_ASK_OF_INPUT = 160000
"""``pg_input_is_valid`` came with PostgreSQL 16."""


def source_side(table: VectorTable) -> sa.Table:
    """The temporary table of what the source has: keys as text, NULL where a record has none."""
    return sa.Table(
        "amprenta_source",
        sa.MetaData(),
        *(sa.Column(f"key_{position}", sa.Text) for position in range(len(table.key))),
        sa.Column("source", sa.Text),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("quarantined", sa.Text),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


def compare_sides(
    table: VectorTable, scope: Mapping[str, str], there: sa.Table, *, server_version: int
) -> sa.Select[Any]:
    """``(digest here, digest there, why quarantined, source key, *key as text)`` of whatever differs.

    A row that was embedded from its own text need not be there. Keys are compared as the values that the columns hold,
    never as text: a UUID has many spellings.
    """
    target = to_clause(table)
    stored: sa.ColumnElement[Any] = sent(table, target)
    columns = [target.c[name].label(f"here_{position}") for position, name in enumerate(table.key)]
    own = embedded_here(table, target)
    here = (
        sa.select(*columns, sa.func.sha256(stored).label("digest"), own.label("own"))
        .where(target.c[table.embedding].is_not(None), *in_scope(table, target, scope))
        .subquery("here")
    )
    on, shown = [], []
    for position, name in enumerate(table.key):
        mine, theirs = here.c[f"here_{position}"], there.c[f"key_{position}"]
        on.append(mine == as_key(table, name, theirs, server_version))
        shown.append(sa.func.coalesce(sa.cast(mine, sa.Text), theirs))
    return (
        sa.select(here.c.digest, there.c.digest, there.c.quarantined, there.c.source, *shown)
        .select_from(here.join(there, sa.and_(*on), full=True))
        .where(
            here.c.digest.is_distinct_from(there.c.digest) | there.c.quarantined.is_not(None),
            sa.or_(there.c.source.is_not(None), sa.not_(here.c.own)),
        )
        .order_by(sa.func.coalesce(there.c.source, shown[0]), *shown)
    )


def embedded_here(table: VectorTable, target: Any) -> sa.ColumnElement[bool]:
    """Whether a row was embedded from its own text, as the hash of that text tells, which alone is odd."""
    if table.text_hash is None:
        return sa.false()
    kept = sa.cast(target.c[table.text_hash], sa.BigInteger)
    return sa.func.coalesce(kept.bitwise_and(1), 0) == 1


def sent(table: VectorTable, target: sa.TableClause) -> sa.ColumnElement[Any]:
    """What the digest of a row is of: its embedding as it goes over the wire, and after it its sparse values."""
    send = sa.func.vector_send if table.storage == "vector" else sa.func.halfvec_send
    dense: sa.ColumnElement[Any] = send(target.c[table.embedding])
    if table.sparse is None:
        return dense
    beside = sa.func.coalesce(sa.func.sparsevec_send(target.c[table.sparse]), sa.cast(b"", sa.LargeBinary))
    return dense.op("||")(beside)


def as_key(table: VectorTable, name: str, text: sa.ColumnElement[Any], server_version: int) -> sa.ColumnElement[Any]:
    """A key of the source as the column holds it; NULL, which equals nothing, where its type has no such value.

    An older server refuses the statement in that case: only for types that the key map does not know.
    """
    type_ = column_type(table, name)
    value = sa.cast(text, type_)
    if is_checked(type_.name) or server_version < _CAN_ASK_OF_INPUT:
        return value
    return sa.case((sa.func.pg_input_is_valid(text, type_.name), value))
