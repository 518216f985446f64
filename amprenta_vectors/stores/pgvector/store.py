"""A PostgreSQL table with pgvector as a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import ConfigError, RowError, TimedOut, TransientError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.pg.indexes import STORES_LOOK_SECONDS
from amprenta_vectors.pg.poolers import check_unnamed
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.search_settings import stored_settings
from amprenta_vectors.schema.slice import open_slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.joining import Joinable, joining
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.records import one_of
from amprenta_vectors.stores.pgvector.search import Searcher, to_ms, with_distance
from amprenta_vectors.stores.pgvector.search_plan import SearchPlan, to_search_plan
from amprenta_vectors.stores.pgvector.search_settings import SearchSettings
from amprenta_vectors.stores.pgvector.senders import open_sender
from amprenta_vectors.stores.pgvector.sql import Statements, check_key, from_text
from amprenta_vectors.stores.pgvector.writing import Writing
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.top_k import to_top_k
from amprenta_vectors.stores.vectors import FEW_ROWS, first_with_direction, near_enough, to_batch, to_query_vector

LOOK_SECONDS = STORES_LOOK_SECONDS
"""Seconds after which a search looks again which index serves: it may have been built or replaced meanwhile."""

_TIME_OUT = sa.text("SELECT set_config('statement_timeout', :timeout_ms, true)")
_SCORES: dict[Distance, Callable[[float], float]] = {
    "cosine": lambda distance: 1.0 - distance,
    "ip": lambda distance: -distance,
    "l2": lambda distance: distance * distance,
}
"""Pinecone's scores from pgvector's distances. Its euclidean score is the squared distance: there lower is nearer."""


class PgVectorStore:
    """The rows of ``table`` whose scope columns equal ``scope``; no other row is read or written.

    ``scope`` has a value for each scope column that the table is described with; if the real table lacks the column,
    the value must be the namespace that the table holds. The catalogue is read on first use, which raises `NotUpgraded`
    or `SchemaMismatch` for what does not exist. ``engine`` is on psycopg 2 or psycopg 3; `close` disposes of it only
    with ``owns_engine``.

    The index that the catalogue has on the column is searched by what it holds, values, halves or signs; of several
    kinds, the one built last. An index built or a setting stored later is used within a minute.

    Any number of threads may share a store. Database errors are raised as `TransientError` or `AmprentaError`. A
    ``connection`` may be SQLAlchemy's ``Connection`` or ``Session``.
    """

    name = "pgvector"

    def __init__(
        self,
        engine: sa.Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        options: StoreOptions = StoreOptions(),  # noqa: B008 - it cannot be changed
        *,
        owns_engine: bool = False,
    ) -> None:
        if set(scope) != set(table.scope):
            expected, given = (", ".join(sorted(names)) or "none" for names in (table.scope, scope))
            raise ConfigError(
                f"table {table.qualified_name} has the scope columns: {expected}; got values for: {given}"
            )
        if not isinstance(engine, sa.Engine):
            raise ConfigError(f"the engine is a {type(engine).__name__}; expected an Engine", hint="AsyncPgVectorStore")
        check_key(table)
        self._engine = engine
        self._sender = open_sender(engine)
        self._snapshots = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._table = table
        self._scope = dict(scope)
        self._options = options
        self._owns_engine = owns_engine
        self._resolved: Statements | None = None
        self._searcher: Searcher | None = None
        self._looked_at = 0.0

    def open_outbox(self) -> Outbox:
        """Open the outbox of this table and scope, on this store's connections."""
        return Outbox(self._engine, self._table.target, self._scope)

    @property
    def distance(self) -> Distance:
        """The table's distance; under ``l2`` the nearest row has the lowest score."""
        return self._table.distance

    def query(
        self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None, exact: bool = False
    ) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, nearest first.

        If ``top_k`` rows match, that many are returned: PostgreSQL chooses between the vector index and a scan by how
        many rows the scope and filter leave, and a search that the index cut short is repeated without it. ``exact``
        never uses the index. Rows without a vector, and zero vectors under cosine, are no hits. Raises `FilterError`,
        `DimensionMismatch` or `ConfigError` for what cannot be asked.
        """
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        with self._our_errors("querying"):
            statements, searcher = self._open()
            asked = self._query_vector(vector, statements)
            found = searcher.nearest(asked, top_k, condition, exact=exact)
        rows = sorted(found.rows, key=lambda row: (row[1], row[0]))
        score = _SCORES[self._table.distance]
        hits = [Hit(key, score(distance), text, metadata or {}) for key, distance, text, metadata in rows]
        return near_enough(self, hits, self._options.threshold)

    def explain(
        self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None, exact: bool = False
    ) -> SearchPlan:
        """Explain which way `query` goes with the same arguments, and why. Makes the query, and raises its errors."""
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        with self._our_errors("explaining a query of"):
            statements, searcher = self._open()
            asked = self._query_vector(vector, statements)
            found = searcher.nearest(asked, top_k, condition, exact=exact)
            plan = searcher.explain(asked, top_k, condition, exact=exact)
            with self._snapshots.begin() as connection:
                indexes = ann_indexes(connection, statements.table)
        return to_search_plan(plan, found, top_k, searcher.settings, indexes, exact=exact)

    def scores(self, vector: ArrayLike, keys: Sequence[str]) -> dict[str, float]:
        """Return the exact score of each of ``keys`` that has a row here."""
        with self._statements(self._snapshots, "scoring") as (connection, statements):
            asked = self._query_vector(vector, statements)
            spelled = statements.spelled(possible_keys(keys))
            rows = with_distance(connection.execute(statements.distances(asked, list(spelled.values()))))
        score = _SCORES[self._table.distance]
        return {key: score(row.distance) for key, row in _as_asked(spelled, rows).items()}

    def sample(self, rows: int, *, seed: int = 0) -> NDArray[np.float32]:
        """Return at most ``rows`` stored vectors, ``(n, dimension)`` float32, the same for the same seed and rows."""
        with self._statements(self._snapshots, "sampling") as (connection, statements):
            vectors = [from_text(text) for text in connection.scalars(statements.sample(rows, seed))]
            return np.array(vectors, dtype=np.float32).reshape(len(vectors), statements.table.dimension)

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the scope to query with, ``(dimension,)``; None if none is found at once."""
        with self._statements(self._snapshots, "reading") as (connection, statements):
            return first_with_direction([from_text(text) for text in connection.scalars(statements.few(FEW_ROWS))])

    def fetch(self, keys: Sequence[str], *, connection: Joinable | None = None) -> dict[str, Record]:
        """Return the rows of ``keys`` by key; keys that are absent, or have no vector yet, are absent."""
        with self._statements(self._snapshots, "fetching", connection) as (joined, statements):
            spelled = statements.spelled(possible_keys(keys))
            rows = joined.execute(statements.fetch(list(spelled.values()))).all()
        return {
            key: Record(key, from_text(row.vector), row.text, row.metadata or {})
            for key, row in _as_asked(spelled, rows).items()
        }

    def upsert(self, records: Sequence[Record], *, connection: Joinable | None = None) -> int:
        """Write rows; return how many. Of records that share a key the last one counts.

        A row of ours is replaced whole; of an application's, vector and model are written, the text where one is given,
        and the fields of the metadata that are. With ``connection`` it happens in the caller's transaction, and is kept
        or undone with it. Raises `RowError` naming the first record that cannot be stored, before anything is written,
        and what `upsert_possible` returns, once the others are written.
        """
        given = list(records)
        refused = self.upsert_possible(given, connection=connection)
        if refused:
            raise one_of(refused)
        return len({record.key for record in given})

    def upsert_possible(self, records: Sequence[Record], *, connection: Joinable | None = None) -> list[RowError]:
        """Write rows, as `upsert` does, but for those that return: none is there, and none can be inserted.

        Either a NOT NULL column of the application has no value, or its rows are looked up by a column of its own.
        """
        latest = latest_records(records)
        with self._statements(self._engine, "writing", connection) as (joined, statements):
            table = statements.table
            batch = to_batch(latest, table.dimension, cosine=table.distance == "cosine")
            return Writing(statements, self._options.model).upsert(joined, batch)

    def delete(self, keys: Sequence[str], *, connection: Joinable | None = None) -> None:
        """Delete rows; an absent key is no error. With ``connection``, in the caller's transaction.

        A row of the application stays, and loses its embedding: no backfill fills it again before the application has
        written it again. Raises `SchemaMismatch` where that column is NOT NULL.
        """
        with self._statements(self._engine, "deleting", connection) as (joined, statements):
            Writing(statements, self._options.model).delete(joined, possible_keys(keys))

    def count(self) -> int:
        """Return how many rows have a vector."""
        with self._statements(self._snapshots, "counting") as (connection, statements):
            return int(connection.scalar(statements.count()) or 0)

    def close(self) -> None:
        """Close the engine's connections, if the engine is the store's own."""
        if self._owns_engine:
            self._engine.dispose()

    @contextmanager
    def _statements(
        self, engine: sa.Engine, doing: str, connection: Joinable | None = None
    ) -> Iterator[tuple[Connection, Statements]]:
        """Open a transaction, or use the caller's, with the statements for the table as it really is."""
        with self._our_errors(doing):
            if connection is not None:
                with joining(connection) as joined:
                    yield joined, self._resolve(joined)
            else:
                with engine.begin() as own:
                    yield own, self._resolve(own)

    @contextmanager
    def _our_errors(self, doing: str) -> Iterator[None]:
        what = f"{doing} {self._table.qualified_name}"
        errors: tuple[type[Exception], ...] = (DBAPIError, *self._sender.errors)
        try:
            yield
        except errors as error:
            ours = to_error(error, what)
            if isinstance(ours, TimedOut):
                ours.hint = "raise AMPRENTA_QUERY_TIMEOUT_SECONDS; store.explain(…) says why the query takes long"
            raise ours from error
        except sa.exc.TimeoutError:
            raise TransientError(
                f"{what}: all connections of the pool are in use", hint="raise AMPRENTA_POOL_SIZE"
            ) from None

    def _open(self) -> tuple[Statements, Searcher]:
        searcher, now = self._searcher, time.monotonic()
        if searcher is None or now - self._looked_at >= LOOK_SECONDS:
            # Noted first, so that not every thread looks.
            self._looked_at = now
            searcher = self._searcher = self._look(searcher)
        return searcher.statements, searcher

    def _look(self, before: Searcher | None) -> Searcher:
        """Return a searcher by the catalogue and what is stored now; the one ``before`` if nothing changed."""
        with self._snapshots.begin() as connection:
            if self._options.query_timeout_seconds is not None:
                # Looking waits for an index that is being rebuilt.
                connection.execute(_TIME_OUT, {"timeout_ms": str(to_ms(self._options.query_timeout_seconds))})
            statements = self._resolve(connection)
            stored = stored_settings(connection, self._table.target)
            settings = SearchSettings(
                statements.table,
                serving(statements.table, ann_indexes(connection, statements.table)),
                ef_search=self._options.ef_search or stored.get("ef_search"),
                probes=self._options.probes or stored.get("probes"),
                oversampling=self._options.oversampling or stored.get("oversampling"),
            )
        if before is not None and before.settings == settings:
            return before
        return Searcher(self._engine, self._sender, statements, settings, self._options.query_timeout_seconds)

    def _resolve(self, connection: Connection) -> Statements:
        if self._resolved is None:
            check_unnamed(connection)
            table = resolve_table(connection, self._table, dimension=self._options.dimension)
            lost = [self._scope[name] for name in self._table.namespace_columns if name not in table.scope]
            namespace = lost[0] if lost else self._options.namespace
            if namespace is not None:
                check_namespace(connection, table, namespace)
            self._resolved = Statements(open_slice(self._engine, table, self._scope), self._options.text_field)
        return self._resolved

    def _query_vector(self, vector: ArrayLike, statements: Statements) -> NDArray[np.float32]:
        table = statements.table
        return to_query_vector(vector, table.dimension, cosine=table.distance == "cosine")


def _as_asked(spelled: Mapping[str, str], rows: Sequence[Any]) -> dict[str, Any]:
    """Return the rows by the keys that were asked for, whose spelling of a UUID may differ from the rows'."""
    found = {row.key: row for row in rows}
    asked = {key: found[value] for key, value in spelled.items() if value in found}
    return asked | {key: row for key, row in found.items() if key not in set(spelled.values())}
