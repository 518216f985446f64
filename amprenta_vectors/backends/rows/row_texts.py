"""The texts of a table's rows as they are embedded: those of several columns joined, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.keymaps import OwnKeys, to_own_keys
from amprenta_vectors.schema.row_keys import AllRows
from amprenta_vectors.schema.slice import Slice, given_keys
from amprenta_vectors.schema.vector_table import VectorTable

_BLANKS = " \t\n\v\f\r"


class RowTexts:
    """The texts of the rows of one scope. The source keys are the rows' own keys, as `OwnKeys` spells them."""

    def __init__(self, engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> None:
        self._engine = engine
        self.columns = text_columns_of(table)
        self.slice = Slice(table, scope, OwnKeys([table.column_types[name] for name in table.key]))

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield the keys of all rows, in the order of the table's own unique index."""
        return AllRows(self._engine, self.slice).iter_keys(token)

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the text to embed of each row that exists, ``""`` if it has none, by source key."""
        wanted = to_own_keys(self.slice.key_map, keys)
        given = given_keys(list(wanted), width=len(self.slice.table.key))
        columns = [sa.cast(self.slice.text_rows.c[name], sa.Text) for name in self.columns]
        statement = sa.select(*given.c, *columns).where(*self._is_row_of(given))
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(statement).all()
        except DBAPIError as error:
            raise to_error(error, "reading the texts of rows") from error
        width = len(self.slice.table.key)
        return {wanted[tuple(row[:width])]: _joined(row[width:]) for row in rows}

    def selected(self, *, only_empty: bool) -> sa.Select[tuple[str]]:
        """Return a query of the texts of all rows, or of those without an embedding, blanks at their ends left out."""
        slice_, table = self.slice, self.slice.table
        if table.texts is None:
            rows = to_clause(table, *slice_.rows.c.keys(), *self.columns)
            listed: sa.FromClause = rows
            wanted, empty = slice_.in_scope(rows), slice_.lacks_embedding(rows)
        else:
            listed, _, wanted = slice_.listed()
            rows, empty = slice_.text_rows, slice_.lacks_embedding()
        parts = [sa.func.nullif(sa.func.btrim(sa.cast(rows.c[name], sa.Text), _BLANKS), "") for name in self.columns]
        text = sa.func.concat_ws("\n", *parts).label("text")
        return sa.select(text).select_from(listed).where(*wanted, *([empty] if only_empty else []), text != "")

    def _is_row_of(self, given: Any) -> list[sa.ColumnElement[bool]]:
        table, rows = self.slice.table, self.slice.text_rows
        if table.texts is None:
            return self.slice.is_row_of(given, rows)
        values = self.slice.key_values(given).values()
        return [rows.c[name] == value for name, value in zip(table.texts.key, values, strict=True)]


def text_columns_of(table: VectorTable) -> tuple[str, ...]:
    """Return the columns whose text is embedded. Raises `ConfigError` if there are none."""
    if table.texts is not None:
        return table.texts.columns
    columns = table.text_columns or ((table.text,) if table.text is not None else ())
    if not columns:
        raise ConfigError(
            f"table {table.qualified_name} names no column whose text could be embedded",
            hint=f'text_columns = ["…"] under [tables.{table.name}] in amprenta.toml',
        )
    return columns


def _joined(parts: Sequence[str | None]) -> str:
    return "\n".join(stripped for part in parts if part is not None and (stripped := part.strip()))
