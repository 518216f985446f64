"""The table's own rows as a source: the text of their columns, embedded when they are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.protocol import SourceDescription
from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.errors import ConfigError, DimensionMismatch, RowError, SourceError, SourceNotFound
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.expressions import to_clause, to_column_value
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.row_keys import AllRows
from amprenta_vectors.schema.slice import Slice, given_keys
from amprenta_vectors.schema.vector_table import VectorTable


class RowsSource:
    """The rows of one scope. The source keys are the rows' own keys, as `OwnKeys` spells them.

    The texts of a row's columns are joined in their order, one a line; blank ones are left out. Safe to share between
    threads if the embedder is.
    """

    def __init__(
        self, engine: Engine, table: VectorTable, scope: Mapping[str, str], embedder: Embedder, count: int
    ) -> None:
        self._engine = engine
        self._own = OwnKeys([table.column_types[name] for name in table.key])
        self._slice = Slice(table, scope, self._own)
        self._embedder = embedder
        self._columns = text_columns_of(table)
        of_scope = "/".join(scope.values())
        self.description = SourceDescription(
            kind="rows",
            identity=f"{table.qualified_name}({', '.join(self._columns)})/{of_scope}",
            dimension=embedder.model.dimension,
            distance=None,
            model=embedder.model.name,
            count=count,
            computed=True,
        )

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield the keys of all rows, in the order of the table's own unique index."""
        return AllRows(self._engine, self._slice).iter_keys(token)

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Return the vectors of the rows' texts as they are now; a row without text is quarantined.

        Raises `TransientError` if database or embedder is away, `SourceError` for vectors of another shape.
        """
        texts = self.texts(keys)
        named = {key: text for key, text in texts.items() if text}
        listed = ", ".join(self._columns)
        return VectorBatch(
            source_keys=list(named),
            vectors=self._embed(list(named.values())),
            texts=list(named.values()),
            quarantined=tuple(
                RowError(key, Reason.NO_TEXT, f"nothing to embed in {listed}")
                for key, text in texts.items()
                if not text
            ),
        )

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the text to embed of each row that exists, ``""`` if it has none, by source key."""
        wanted = {own: key for key in keys if (own := self._own.to_key(key)) is not None}
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(self._select(list(wanted))).all()
        except DBAPIError as error:
            raise to_error(error, "reading the texts of rows") from error
        width = len(self._slice.table.key)
        return {wanted[tuple(row[:width])]: _joined(row[width:]) for row in rows}

    def _select(self, keys: Sequence[Key]) -> sa.Select[Any]:
        rows = to_clause(self._slice.table, *self._columns)
        given = given_keys(keys, width=len(self._slice.table.key))
        columns = [*given.c, *(sa.cast(rows.c[name], sa.Text) for name in self._columns)]
        return sa.select(*columns).where(*self._slice.is_row_of(given, rows))

    def _embed(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        expected = (len(texts), self._embedder.model.dimension)
        if not texts:
            return np.empty(expected, np.float32)
        vectors = np.ascontiguousarray(self._embedder.embed(texts), dtype=np.float32)
        if vectors.shape != expected:
            raise SourceError(f"{self._embedder.model.name} gave vectors of shape {vectors.shape}; expected {expected}")
        return vectors


class RowsOrigin:
    """The rows of one table, scope by scope. Opened by :func:`open_rows_origin`."""

    kind: SourceKind = "rows"
    distance = None
    lists = True

    def __init__(self, engine: Engine, table: VectorTable, embedder: Embedder) -> None:
        self._engine = engine
        self._table = table
        self._embedder = embedder
        self.name = f"table {table.qualified_name}"
        self.dimension: int | None = embedder.model.dimension
        self.model: str | None = embedder.model.name

    def namespaces(self) -> Mapping[str, int]:
        """Return the scopes that have rows, each with its number of rows."""
        table = self._table
        target = to_clause(table)
        columns = [sa.cast(target.c[name], sa.Text) for name in table.namespace_columns]
        fixed = [target.c[name] == to_column_value(table, name, value) for name, value in self._fixed().items()]
        statement = sa.select(sa.func.count(), *columns).select_from(target).where(*fixed).group_by(*columns)
        with self._engine.connect() as connection:
            return {"/".join(values): count for count, *values in connection.execute(statement) if None not in values}

    def _fixed(self) -> dict[str, str]:
        return {name: value for name, value in self._table.scope_values.items() if name in self._table.scope}

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> RowsSource:
        """Open the rows of one scope of ``table``, which is the origin's own; they keep the metadata that they have.

        Raises `SourceNotFound` for a scope without a row.
        """
        found = self.namespaces()
        if table.namespace_columns and namespace not in found:
            listed = ", ".join(f"{name or '(empty)'} ({count})" for name, count in sorted(found.items())[:20])
            raise SourceNotFound(
                f"{self.name} has no row with {' / '.join(table.namespace_columns)} {namespace!r}; it has: "
                f"{listed or 'none'}",
                hint="--namespace NAME, or --all-namespaces",
            )
        return RowsSource(
            self._engine, table, table.scope_for(namespace), self._embedder, count=found.get(namespace, 0)
        )

    def close(self) -> None:
        """Do nothing: no resource is held."""


def open_rows_origin(settings: Settings, table: VectorTable, engine: Engine) -> RowsOrigin:
    """Open the rows of ``table``, which is from the catalogue, to be embedded by ``AMPRENTA_EMBEDDER``.

    Raises `ConfigError` without an embedder, without a column to embed, and if ``EMBEDDING_MODEL`` is another model
    than the embedder's; `DimensionMismatch` if the embedder's vectors do not fit the column.
    """
    text_columns_of(table)
    embedder = open_embedder(settings)
    model = embedder.model
    if settings.embedding_model is not None and not model.is_called(settings.embedding_model):
        raise ConfigError(
            f"EMBEDDING_MODEL is {settings.embedding_model!r}; AMPRENTA_EMBEDDER={settings.embedder} embeds by "
            f"{model.name!r}",
            hint="unset EMBEDDING_MODEL, or set AMPRENTA_EMBEDDER to that model's own embedder",
        )
    if model.dimension != table.dimension:
        raise DimensionMismatch(
            f"AMPRENTA_EMBEDDER={settings.embedder} ({model.name}) makes vectors of {model.dimension} dimensions, "
            f"{table.target} has {table.dimension}",
            hint=f"set AMPRENTA_EMBEDDER to the model of the column, or add a column of {model.dimension} dimensions",
        )
    return RowsOrigin(engine, table, embedder)


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
