"""The two sides of a verification in PostgreSQL: the source's digests in a temporary table, and the vector table."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

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


def _emptied(connection: Connection, slice_: Slice, there: sa.Table) -> sa.ColumnElement[bool]:
    """Return whether the row of a record was emptied by a store, which the source need not know of."""
    if slice_.table.rows == "ours":
        return sa.false()
    rows = slice_.rows.alias("emptied")
    found = sa.select(sa.literal(1)).select_from(rows).where(*slice_.has_key(connection, there, rows))
    return found.where(*slice_.in_scope(rows), slice_.is_emptied(rows)).correlate(there).exists()
