"""The two sides of a verification in PostgreSQL: the source's digests in a temporary table, and the vector table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.schema.expressions import text_array
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable


def source_side(table: VectorTable) -> sa.Table:
    """Return the temporary table of what the source has: keys as text, NULL for a record without a key."""
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


def compare_sides(connection: Connection, slice_: Slice, there: sa.Table) -> sa.Select[Any]:
    """Return a query of ``(digest here, digest there, why quarantined, source key, *key as text)`` of whatever differs.

    ``here`` is the table, ``there`` the source. A row that was embedded from its own text may be absent there, one that
    a store emptied is absent here.
    """
    columns = [slice_.rows.c[name] for name in slice_.table.key]
    digest, own = sa.func.sha256(slice_.sent()), slice_.embedded_here()
    here = (
        sa.select(*columns, digest.label("amprenta_digest"), own.label("amprenta_own"))
        .where(slice_.embedding().is_not(None), *slice_.in_scope())
        .subquery("here")
    )
    on = slice_.has_key(connection, there, here)
    shown = [sa.func.coalesce(mine, there.c[f"key_{position}"]) for position, mine in enumerate(slice_.key_texts(here))]
    return (
        sa.select(here.c.amprenta_digest, there.c.digest, there.c.quarantined, there.c.source, *shown)
        .select_from(here.join(there, sa.and_(*on), full=True))
        .where(
            here.c.amprenta_digest.is_distinct_from(there.c.digest) | there.c.quarantined.is_not(None),
            sa.or_(there.c.source.is_not(None), sa.not_(here.c.amprenta_own)),
            sa.not_(_emptied(connection, slice_, there)),
        )
        .order_by(sa.func.coalesce(there.c.source, shown[0]), *shown)
    )


def find_twins(connection: Connection, there: sa.Table, rows: Sequence[Any]) -> dict[tuple[str | None, ...], str]:
    """Return, by the key of a row that differs from a record, another record that stands for the row and is equal.

    ``rows`` are of `compare_sides`. Which of two such records came first is chance: the row keeps what it has.
    """
    different = [row for row in rows if row[0] is not None and row[3] is not None]
    if not different:
        return {}
    names = [column.name for column in there.c if column.name.startswith("key_")]
    keys = zip(*(row[4:] for row in different), strict=True)
    digests = [bytes(row[0]).hex() for row in different]
    arrays = sa.func.unnest(*map(text_array, keys), text_array(digests))
    asked = arrays.table_valued(*names, "digest", name="asked").render_derived()
    same = [there.c[name] == asked.c[name] for name in names]
    shown = [there.c[name] for name in names]
    found = sa.select(sa.func.min(there.c.source), *shown).select_from(
        there.join(asked, sa.and_(*same, sa.func.encode(there.c.digest, "hex") == asked.c.digest))
    )
    return {tuple(key): source for source, *key in connection.execute(found.group_by(*shown))}


def _emptied(connection: Connection, slice_: Slice, there: sa.Table) -> sa.ColumnElement[bool]:
    """Return whether the row of a record was emptied by a store, which the source need not know of."""
    if slice_.table.rows == "ours":
        return sa.false()
    rows = slice_.rows.alias("emptied")
    found = sa.select(sa.literal(1)).select_from(rows).where(*slice_.has_key(connection, there, rows))
    return found.where(*slice_.in_scope(rows), slice_.is_emptied(rows)).correlate(there).exists()
