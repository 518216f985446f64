"""A sample of a scope's rows, found by the unique index, whatever the size of the table."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.schema.slice import Slice

EACH_END = 5000
"""How many rows are looked at from either end of the keys."""


def some_rows(slice_: Slice, *, with_values: bool = False) -> sa.Subquery:
    """Return a subquery of the first and last 5,000 rows by key: if they are ``filled``, and their ``model`` if named.

    ``with_values`` adds ``text``, if there is a column for it, and ``vector`` as its type's send function gives it.
    """
    table, target = slice_.table, slice_.rows
    columns: list[sa.ColumnElement[Any]] = [slice_.embedding().is_not(None).label("filled")]
    if table.model is not None:
        columns.append(target.c[table.model].label("model"))
    if with_values:
        columns.append(slice_.sent_embedding().label("vector"))
        if table.text is not None:
            columns.append(target.c[table.text].label("text"))
    keys = [target.c[name] for name in table.unique_columns]
    chosen = sa.select(*columns).where(*slice_.in_scope()).limit(EACH_END)
    ends = [chosen.order_by(*keys), chosen.order_by(*(key.desc() for key in keys))]
    return sa.union_all(*(sa.select(end.subquery()) for end in ends)).subquery("some_rows")


def models_in_rows(connection: Connection, slice_: Slice) -> set[str]:
    """Return the models that a sample of the scope's filled rows names; none if the table has no model column."""
    if slice_.table.model is None:
        return set()
    rows = some_rows(slice_)
    statement = sa.select(rows.c.model).where(rows.c.filled, rows.c.model.is_not(None)).distinct()
    return set(connection.execute(statement).scalars())


def has_unnamed_vectors(connection: Connection, slice_: Slice) -> bool:
    """Return whether a row in a sample of the scope holds a vector and names no model."""
    rows = some_rows(slice_)
    unnamed = rows.c.filled if slice_.table.model is None else sa.and_(rows.c.filled, rows.c.model.is_(None))
    return connection.execute(sa.select(sa.literal(1)).select_from(rows).where(unnamed).limit(1)).first() is not None
