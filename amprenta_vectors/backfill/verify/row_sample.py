"""Some rows of a scope, found by its unique index, whatever the size of the table."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.schema.slice import Slice

EACH_END = 5000
"""Rows that are looked at from either end of the keys."""


def some_rows(slice_: Slice, *, with_values: bool = False) -> sa.Subquery:
    """The first and the last 5,000 rows by key: whether they are ``filled``, and their ``model`` where rows name one.

    ``with_values`` adds ``text``, where there is a column for it, and ``vector`` as its type's send function gives it.
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
    """The models that some filled rows of the scope name; none where rows name no model."""
    if slice_.table.model is None:
        return set()
    rows = some_rows(slice_)
    statement = sa.select(rows.c.model).where(rows.c.filled, rows.c.model.is_not(None)).distinct()
    return set(connection.execute(statement).scalars())


def has_unnamed_vectors(connection: Connection, slice_: Slice) -> bool:
    """Whether some rows of the scope hold a vector and name no model."""
    rows = some_rows(slice_)
    unnamed = rows.c.filled if slice_.table.model is None else sa.and_(rows.c.filled, rows.c.model.is_(None))
    return connection.execute(sa.select(sa.literal(1)).select_from(rows).where(unnamed).limit(1)).first() is not None
