"""The texts of a table's rows as they are embedded: those of several columns joined, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.own_rows import OwnRows
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.row_keys import AllRows
from amprenta_vectors.schema.vector_table import VectorTable


class RowTexts:
    """The texts of the rows of one scope. The source keys are the rows' own keys, as `OwnKeys` spells them."""

    def __init__(self, engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> None:
        self._engine = engine
        self.columns = text_columns_of(table)
        self.rows = OwnRows(table, scope, *self.columns)

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield the keys of all rows, in the order of the table's own unique index."""
        return AllRows(self._engine, self.rows.slice).iter_keys(token)

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the text to embed of each row that exists, ``""`` if it has none, by source key."""
        wanted = self.rows.wanted(keys)
        columns = [sa.cast(self.rows.rows.c[name], sa.Text) for name in self.columns]
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(self.rows.select(list(wanted), *columns)).all()
        except DBAPIError as error:
            raise to_error(error, "reading the texts of rows") from error
        width = len(self.rows.slice.table.key)
        return {wanted[tuple(row[:width])]: _joined(row[width:]) for row in rows}


def text_columns_of(table: VectorTable) -> tuple[str, ...]:
    """Return the columns whose text is embedded. Raises `ConfigError` if there are none."""
    columns = table.text_columns or ((table.text,) if table.text is not None else ())
    if not columns:
        raise ConfigError(
            f"table {table.qualified_name} names no column whose text could be embedded",
            hint=f'text_columns = ["…"] under [tables.{table.name}] in amprenta.toml',
        )
    return columns


def _joined(parts: Sequence[str | None]) -> str:
    return "\n".join(stripped for part in parts if part is not None and (stripped := part.strip()))
