"""A PostgreSQL table with pgvector as a store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.db import to_error
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.vector_table import Distance, VectorTable
from amprenta_vectors.stores.filter_sql import is_storable
from amprenta_vectors.stores.filters import parse_filter
from amprenta_vectors.stores.pgvector_sql import SEARCH_SETTINGS, Statements, check_key, from_text, to_text
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.vectors import check_top_k, to_batch, to_query_vector

DEFAULT_EF_SEARCH = 200
MAX_EF_SEARCH = 1000
"""pgvector's own limit."""
ROWS_PER_STATEMENT = 1000

_SCORES: dict[Distance, Callable[[float], float]] = {
    "cosine": lambda distance: 1.0 - distance,
    "ip": lambda distance: -distance,
    "l2": lambda distance: distance * distance,
}
"""Pinecone's scores from pgvector's distances. Its euclidean score is the squared distance: there lower is nearer."""


class PgVectorStore:
    """The rows of ``table`` whose scope columns equal ``scope``; no other row is read or written.

    ``scope`` has a value for each scope column that the table is described with; where the real table lacks the column
    it is one scope, and the value is not used. The catalogue is read on first use, and what is not there raises then:
    `NotUpgraded`, `SchemaMismatch`. ``ef_search`` (1 to 1000) is how many candidates a search of the index keeps, never
    fewer than ``top_k``. ``dimension`` is what the settings demand of the column, where they do: `DimensionMismatch`
    otherwise. ``model`` is written beside every vector. Where Pinecone keeps the text in a metadata field,
    ``text_field``, a filter on that field asks the text column here. `close` disposes of ``engine`` only with
    ``owns_engine``.

    Any number of threads may share a store. Database errors are raised as `TransientError` or `AmprentaError`.
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        *,
        ef_search: int | None = None,
        dimension: int | None = None,
        model: str | None = None,
        text_field: str = "text",
        owns_engine: bool = False,
    ) -> None:
        if set(scope) != set(table.scope):
            expected, given = (", ".join(sorted(names)) or "none" for names in (table.scope, scope))
            raise ConfigError(
                f"table {table.qualified_name} has the scope columns: {expected}; got values for: {given}"
            )
        if ef_search is not None and not 1 <= ef_search <= MAX_EF_SEARCH:
            raise ConfigError(f"ef_search is {ef_search}; expected 1 to {MAX_EF_SEARCH}")
        check_key(table)
        self._engine = engine
        # One snapshot for a search and its exact repetition.
        self._snapshots = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._table = table
        self._scope = dict(scope)
        self._ef_search = ef_search or DEFAULT_EF_SEARCH
        self._dimension = dimension
        self._model = model
        self._text_field = text_field
        self._owns_engine = owns_engine
        self._resolved: Statements | None = None

    @property
    def lower_is_nearer(self) -> bool:
        """Whether the nearest row has the lowest score."""
        return self._table.distance == "l2"

    def query(
        self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None, exact: bool = False
    ) -> list[Hit]:
        """The ``top_k`` nearest rows that match ``filter``, nearest first.

        Where ``top_k`` rows match, that many come back: PostgreSQL chooses between the vector index and a scan by how
        many rows the scope and filter leave, and what the index cut short is asked again without it. ``exact`` never
        uses the index. Rows without a vector, and zero vectors under cosine, are no hits. Raises `FilterError`,
        `DimensionMismatch` or `ConfigError` for what cannot be asked.
        """
        check_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        with self._statements(self._snapshots, "querying") as (connection, statements):
            asked = self._query_vector(vector, statements)
            rows: list[Any] = []
            if not exact:
                ef_search = min(max(top_k, self._ef_search), MAX_EF_SEARCH)
                connection.execute(SEARCH_SETTINGS, {"ef_search": ef_search})
                rows = _with_distance(connection.execute(statements.nearest(asked, top_k, condition, exact=False)))
            if len(rows) < top_k:
                rows = _with_distance(connection.execute(statements.nearest(asked, top_k, condition, exact=True)))
        rows.sort(key=lambda row: (row.distance, row.key))
        score = _SCORES[self._table.distance]
        return [Hit(row.key, score(row.distance), row.text, row.metadata or {}) for row in rows]

    def scores(self, vector: ArrayLike, keys: Sequence[str]) -> dict[str, float]:
        """The exact score of each of ``keys`` that is here."""
        with self._statements(self._snapshots, "scoring") as (connection, statements):
            asked = self._query_vector(vector, statements)
            rows = _with_distance(connection.execute(statements.distances(asked, _possible(keys))))
        score = _SCORES[self._table.distance]
        return {row.key: score(row.distance) for row in rows}

    def sample(self, rows: int, *, seed: int = 0) -> NDArray[np.float32]:
        """At most ``rows`` stored vectors, ``(n, dimension)`` float32; the same ones for the same seed and rows."""
        with self._statements(self._snapshots, "sampling") as (connection, statements):
            vectors = [from_text(text) for text in connection.scalars(statements.sample(rows, seed))]
            return np.array(vectors, dtype=np.float32).reshape(len(vectors), statements.table.dimension)

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """The rows of ``keys`` by key; keys that are absent, or have no vector yet, are absent."""
        with self._statements(self._snapshots, "fetching") as (connection, statements):
            rows = connection.execute(statements.fetch(_possible(keys))).all()
        return {row.key: Record(row.key, from_text(row.vector), row.text, row.metadata or {}) for row in rows}

    def upsert(self, records: Sequence[Record], *, connection: Connection | None = None) -> int:
        """Insert or replace whole rows, all or none; returns how many. Of records that share a key the last one counts.

        With ``connection`` it happens in the caller's transaction, and is kept or undone with it. Raises `RowError`
        naming the first record that cannot be stored, before anything is written.
        """
        with self._statements(self._engine, "writing", connection) as (joined, statements):
            table = statements.table
            batch = to_batch(records, table.dimension, cosine=table.distance == "cosine")
            columns = _Columns(batch, table)
            for start in range(0, len(batch), ROWS_PER_STATEMENT):
                joined.execute(statements.upsert(*columns.part(start, start + ROWS_PER_STATEMENT), self._model))
        return len(batch)

    def delete(self, keys: Sequence[str], *, connection: Connection | None = None) -> None:
        """Delete rows; an absent key is no error. With ``connection``, in the caller's transaction."""
        with self._statements(self._engine, "deleting", connection) as (joined, statements):
            joined.execute(statements.delete(_possible(keys)))

    def count(self) -> int:
        """How many rows have a vector."""
        with self._statements(self._snapshots, "counting") as (connection, statements):
            return int(connection.scalar(statements.count()) or 0)

    def close(self) -> None:
        """Close the engine's connections, if the engine is the store's own."""
        if self._owns_engine:
            self._engine.dispose()

    @contextmanager
    def _statements(
        self, engine: sa.Engine, doing: str, connection: Connection | None = None
    ) -> Iterator[tuple[Connection, Statements]]:
        """A transaction, the caller's where there is one, and the statements for the table as it really is."""
        try:
            if connection is not None:
                yield connection, self._resolve(connection)
            else:
                with engine.begin() as own:
                    yield own, self._resolve(own)
        except DBAPIError as error:
            raise to_error(error, f"{doing} {self._table.qualified_name}") from error

    def _resolve(self, connection: Connection) -> Statements:
        if self._resolved is None:
            table = resolve_table(connection, self._table, dimension=self._dimension)
            columns = sa.inspect(connection).get_columns(table.table, schema=table.schema)
            types = {column["name"]: column["type"] for column in columns}
            self._resolved = Statements(table, types, self._scope, self._text_field)
        return self._resolved

    def _query_vector(self, vector: ArrayLike, statements: Statements) -> NDArray[np.float32]:
        table = statements.table
        return to_query_vector(vector, table.dimension, cosine=table.distance == "cosine")


class _Columns:
    """A batch as the columns of an upsert, all text. Raises `RowError` for what PostgreSQL would refuse."""

    def __init__(self, batch: VectorBatch, table: VectorTable) -> None:
        if table.storage == "halfvec":
            _check_half(batch)
        self._keys = batch.source_keys
        self._vectors = batch.vectors
        self._texts = batch.texts or ()
        self._metadata = [
            _encode(key, metadata) for key, metadata in zip(self._keys, batch.metadata or (), strict=True)
        ]
        for key, text, metadata in zip(self._keys, self._texts, self._metadata, strict=True):
            if not all(map(is_storable, (key, text or "", metadata))):
                raise RowError(key, Reason.REFUSED, "key, text or metadata has a character that PostgreSQL cannot hold")
            if text is not None and table.text is None:
                raise RowError(key, Reason.REFUSED, f"table {table.qualified_name} has no text column for its text")
            if metadata != "{}" and table.metadata is None:
                raise RowError(key, Reason.REFUSED, f"table {table.qualified_name} has no metadata column")

    def part(self, start: int, end: int) -> tuple[Sequence[str], list[str], Sequence[str | None], list[str]]:
        """Keys, vectors, texts and metadata of the rows from ``start`` to ``end``."""
        vectors = [to_text(vector) for vector in self._vectors[start:end]]
        return self._keys[start:end], vectors, self._texts[start:end], self._metadata[start:end]


def _check_half(batch: VectorBatch) -> None:
    with np.errstate(over="ignore"):
        fits = np.isfinite(batch.vectors.astype(np.float16)).all(axis=1)
    if not fits.all():
        key = batch.source_keys[int(np.argmin(fits))]
        raise RowError(key, Reason.REFUSED, "the vector has a value beyond the range of halfvec, 65504")


def _encode(key: str, metadata: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(metadata or {}), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RowError(key, Reason.REFUSED, f"the metadata is no JSON: {error}") from None


def _possible(keys: Sequence[str]) -> list[str]:
    """Keys that PostgreSQL can be asked for; the others cannot be there."""
    return [key for key in keys if is_storable(key)]


def _with_distance(result: sa.CursorResult[Any]) -> list[Any]:
    """Rows at a distance. A zero vector has none under cosine: a scan gives it NaN, and the index does not hold it."""
    return [row for row in result if not math.isnan(row.distance)]
