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
                columns = [column or [] for column in connection.execute(self._columns(last)).one()]
                check_visible(connection, self._slice.table)
            width, rows = len(self._slice.table.key), len(columns[0])
            last = tuple(column[-1] for column in columns[:width]) if rows else None
            following = json.dumps(last) if rows == KEYSET_PAGE else None
            # The row's own key, or the columns after it that hold the source key.
            told = columns[width:] if self._slice.key_map.source_columns else columns[:width]
            # Several rows of one source key stand together, because rows are ordered by key; if a look-up column
            # holds it, a source key that comes again finds its rows filled.
            yield list(dict.fromkeys(map(self._slice.key_map.to_source, zip(*told, strict=True)))), following
            if following is None:
                return

    def _wanted(self) -> sa.ColumnElement[bool]:
        return self._slice.lacks_embedding()

    def _columns(self, last: tuple[str, ...] | None) -> sa.Select[Any]:
        """Select each column of a page as one array, in the order of the page; a row for each key costs ten times."""
        page = self._page(last).subquery()
        return sa.select(*map(sa.func.array_agg, page.c))

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
