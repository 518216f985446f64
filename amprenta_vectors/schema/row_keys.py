"""Source keys read from the table's own rows, page by page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.schema.catalogue import check_visible
from amprenta_vectors.schema.expressions import to_column_value
from amprenta_vectors.schema.slice import Slice

KEYSET_PAGE = 10_000


class EmptyRows:
    """The source keys of rows that are to be filled, in the order of the table's own unique index.

    Where the texts lie in another table, those are the keys of its rows that have no embedding here. Rows that do not
    meet the conditions ``also`` are left out. The token is the last row's key as JSON: a keyset, so that rows filled
    meanwhile shift nothing.
    """

    def __init__(self, engine: Engine, slice_: Slice, *also: sa.ColumnElement[bool]) -> None:
        self._engine = engine
        self._slice = slice_
        self._also = also

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield pages of at most 10,000 keys; each is one short statement, so that no snapshot grows old."""
        last: tuple[str, ...] | None = tuple(json.loads(token)) if token else None
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(self._page(last)).all()
                check_visible(connection, self._slice.table)
            width = len(self._slice.table.key)
            last = tuple(rows[-1][:width]) if rows else None
            following = json.dumps(last) if len(rows) == KEYSET_PAGE else None
            # The row's own key, or the columns after it that hold the source key.
            told = slice(width, None) if self._slice.key_map.source_columns else slice(width)
            # Several rows of one source key stand together, because rows are ordered by key; if a look-up column
            # holds it, a source key that comes again finds its rows filled.
            yield list(dict.fromkeys(self._slice.key_map.to_source(tuple(row[told])) for row in rows)), following
            if following is None:
                return

    def _wanted(self) -> sa.ColumnElement[bool]:
        return self._slice.lacks_embedding()

    def _page(self, last: tuple[str, ...] | None) -> sa.Select[Any]:
        table = self._slice.table
        listed, keys, in_scope = self._slice.listed()
        others = [self._slice.rows.c[name] for name in self._slice.key_map.source_columns or ()]
        columns: list[Any] = [sa.cast(column, sa.Text) for column in (*keys, *others)]
        statement = (
            sa.select(*columns)
            .select_from(listed)
            .where(
                self._wanted(),
                *self._also,
                *(column.is_not(None) for column in (*keys, *others)),
                *in_scope,
            )
            .order_by(*keys)
            .limit(KEYSET_PAGE)
        )
        if last is not None:
            after = [to_column_value(table, name, value) for name, value in zip(table.key, last, strict=True)]
            statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*after))
        return statement


class AllRows(EmptyRows):
    """The source keys of all rows."""

    def _wanted(self) -> sa.ColumnElement[bool]:
        return sa.true()
