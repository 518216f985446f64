"""A PostgreSQL table with pgvector as a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError, NotUpgraded, RowError, SchemaMismatch, TimedOut, TransientError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.ann_indexes import ann_indexes
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.filters.language import Condition, parse_filter
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.joining import Joinable, joining
from amprenta_vectors.stores.pgvector.models import Models
from amprenta_vectors.stores.pgvector.opened import Columns, OpenedColumn
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.other_models import Prepared
from amprenta_vectors.stores.pgvector.records import one_of
from amprenta_vectors.stores.pgvector.search import Searcher, with_distance
from amprenta_vectors.stores.pgvector.search_plan import SearchPlan, to_search_plan
from amprenta_vectors.stores.pgvector.senders import open_sender
from amprenta_vectors.stores.pgvector.sql import Statements, check_key, from_text
from amprenta_vectors.stores.pgvector.table_models import TableModels
from amprenta_vectors.stores.pgvector.writing import Writing, write
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.top_k import to_top_k
from amprenta_vectors.stores.vectors import FEW_ROWS, dimension_of, first_with_direction, near_enough, to_query_vector

Answer = TypeVar("Answer")
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

    Where models are registered for the table, a vector is searched and written in the column of its model: ``model``
    names it, else its dimension tells. A text is searched by the model that the registry says now, or said a second
    ago. What is written with a text is embedded for every model that is written (docs/change-the-model.md).

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
        self._table = table
        self._options = options
        self._owns_engine = owns_engine
        self.models = Models(engine, self._sender.errors, table, options.open_model, options.model)
        self._columns = Columns(engine, self._sender, table, scope, options)
        self._snapshots = self._columns.snapshots
        self._scope = dict(scope)

    def open_outbox(self) -> Outbox:
        """Open the outbox of this table and scope, on this store's connections."""
        return Outbox(self._engine, self._table.target, self._scope)

    @property
    def distance(self) -> Distance:
        """The table's distance; under ``l2`` the nearest row has the lowest score."""
        return self._table.distance

    @property
    def model(self) -> str | None:
        """The name of the model that is searched now; None if none is registered, and the settings name none."""
        with self._our_errors("looking up the model of"):
            searched = self.models.now().searched
        return self._options.model if searched is None else searched.model.name

    def query(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, nearest first.

        If ``top_k`` rows match, that many are returned: PostgreSQL chooses between the vector index and a scan by how
        many rows the scope and filter leave, and a search that the index cut short is repeated without it. ``exact``
        never uses the index. Rows without a vector, and zero vectors under cosine, are no hits. ``model`` is the one
        that made the vector. Raises `FilterError`, `DimensionMismatch` or `ConfigError` for what cannot be asked.
        """
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None

        def ask(models: TableModels) -> list[Hit]:
            searcher = self._column(models, model, vector).searcher()
            return self._hits(searcher, vector, top_k, condition, exact=exact)

        with self._our_errors("querying"):
            return self._by_models(None, ask)

    def search(
        self,
        text: str,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the rows nearest to a text, as `query` does, by ``model``, by default the one that is searched.

        The text is embedded and searched by one model, also where queries are switched to another meanwhile. Raises
        `ConfigError` if no model is registered, and what its embedder raises.
        """
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None

        def ask(models: TableModels) -> list[Hit]:
            column = models.chosen(model)
            vector = self._sender.aside(lambda: self.models.embedder(column.model).embed_query(text))
            searcher = self._columns.of(column, models).searcher()
            return self._hits(searcher, vector, top_k, condition, exact=exact)

        with self._our_errors("querying"):
            return self._by_models(None, ask)

    def text_embedder(self, model: str | None = None) -> ModelEmbedder | None:
        """Return the embedder for the texts that are searched and written here, by the model that is searched now.

        None says that the application embeds them: no model is registered, or the one that is searched is ``model``,
        by which it embeds, or nobody else can embed for that one.
        """
        with self._our_errors("looking up the model of"):
            registered = self.models.of_texts(model)
            return None if registered is None else self._sender.aside(lambda: self.models.embedder(registered))

    def explain(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> SearchPlan:
        """Explain which way `query` goes with the same arguments, and why. Makes the query, and raises its errors."""
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        with self._our_errors("explaining a query of"):
            searcher = self._column(self.models.now(), model, vector).searcher()
            asked = _query_vector(vector, searcher.statements)
            found = searcher.nearest(asked, top_k, condition, exact=exact)
            plan = searcher.explain(asked, top_k, condition, exact=exact)
            with self._snapshots.begin() as connection:
                indexes = ann_indexes(connection, searcher.statements.table)
        return to_search_plan(plan, found, top_k, searcher.settings, indexes, exact=exact)

    def scores(self, vector: ArrayLike, keys: Sequence[str], *, model: str | None = None) -> dict[str, float]:
        """Return the exact score of each of ``keys`` that has a row here."""
        with self._reading("scoring", model=model, vector=vector) as (connection, statements):
            asked = _query_vector(vector, statements)
            spelled = statements.spelled(possible_keys(keys))
            rows = with_distance(connection.execute(statements.distances(asked, list(spelled.values()))))
        score = _SCORES[self._table.distance]
        return {key: score(row.distance) for key, row in _as_asked(spelled, rows).items()}

    def sample(self, rows: int, *, seed: int = 0, model: str | None = None) -> NDArray[np.float32]:
        """Return at most ``rows`` stored vectors, ``(n, dimension)`` float32, the same for the same seed and rows."""
        with self._reading("sampling", model=model) as (connection, statements):
            vectors = [from_text(text) for text in connection.scalars(statements.sample(rows, seed))]
            return np.array(vectors, dtype=np.float32).reshape(len(vectors), statements.table.dimension)

    def sample_keys(self, rows: int, *, seed: int = 0, model: str | None = None) -> list[str]:
        """Return the keys of at most ``rows`` rows that have a vector, the same for the same seed and rows."""
        with self._reading("sampling", model=model) as (connection, statements):
            return list(connection.scalars(statements.sample_keys(rows, seed)))

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the scope to query with, ``(dimension,)``; None if none is found at once."""
        with self._reading("reading") as (connection, statements):
            return first_with_direction([from_text(text) for text in connection.scalars(statements.few(FEW_ROWS))])

    def fetch(
        self, keys: Sequence[str], *, connection: Joinable | None = None, model: str | None = None
    ) -> dict[str, Record]:
        """Return the rows of ``keys`` by key; keys that are absent, or have no vector yet, are absent."""
        with self._reading("fetching", connection, model=model) as (joined, statements):
            spelled = statements.spelled(possible_keys(keys))
            rows = joined.execute(statements.fetch(list(spelled.values()))).all()
        return {
            key: Record(key, from_text(row.vector), row.text, row.metadata or {})
            for key, row in _as_asked(spelled, rows).items()
        }

    def prepare(self, records: Sequence[Record], *, model: str | None = None) -> Prepared:
        """Return records with their texts embedded for the other models that are written, for `upsert`.

        For a caller's own transaction, which is not to wait for embedders. Raises what `upsert` raises of records.
        """
        latest = latest_records(records)
        with self._our_errors("writing"):
            return self._prepared(latest, self.models.now(), model)

    def upsert(
        self, records: Sequence[Record] | Prepared, *, connection: Joinable | None = None, model: str | None = None
    ) -> int:
        """Write rows; return how many. Of records that share a key the last one counts.

        A row of ours is replaced whole; of an application's, vector and model are written, the text where one is given,
        and the fields of the metadata that are. With ``connection`` it happens in the caller's transaction, and is kept
        or undone with it. ``model`` is the one that made the vectors; the texts are embedded for the others that are
        written. Raises `RowError` naming the first record that cannot be stored, before anything is written, and what
        `upsert_possible` returns, once the others are written.
        """
        given = records if isinstance(records, Prepared) else list(records)
        refused = self.upsert_possible(given, connection=connection, model=model)
        if refused:
            raise one_of(refused)
        return len({record.key for record in (given.records if isinstance(given, Prepared) else given)})

    def upsert_possible(
        self, records: Sequence[Record] | Prepared, *, connection: Joinable | None = None, model: str | None = None
    ) -> list[RowError]:
        """Write rows, as `upsert` does, but for those that return: none is there, and none can be inserted.

        Either a NOT NULL column of the application has no value, or its rows are looked up by a column of its own.
        """
        latest = [] if isinstance(records, Prepared) else latest_records(records)
        if not (records.records if isinstance(records, Prepared) else latest):
            return []

        def upsert(models: TableModels) -> list[RowError]:
            made = records if isinstance(records, Prepared) else self._prepared(latest, models, model)
            # Since the texts were embedded a column may have been renamed, and what was retired is written no more.
            now = {each.model.id: each for each in models.columns}
            own = None if made.own is None else now.get(made.own.model.id, made.own)
            written = [(each, now[each.column.model.id]) for each in made.others if each.column.model.id in now]
            with self._joined(self._engine, connection) as joined:
                statements = self._columns.of(own, models).resolve(joined)
                others = [(each, self._columns.of(column, models).resolve(joined)) for each, column in written]
                return write(joined, made.records, (own, statements), others, model or self._options.model)

        with self._our_errors("writing"):
            return self._by_models(connection, upsert)

    def delete(self, keys: Sequence[str], *, connection: Joinable | None = None) -> None:
        """Delete rows; an absent key is no error. With ``connection``, in the caller's transaction.

        A row of the application stays, and loses its embeddings, those of every model: no backfill fills it again
        before the application has written it again. Raises `SchemaMismatch` where that column is NOT NULL.
        """
        gone = possible_keys(keys)

        def delete(models: TableModels) -> None:
            with self._joined(self._engine, connection) as joined:
                own = self._columns.of(models.searched, models).resolve(joined)
                Writing(own, self._options.model).delete(joined, gone)
                for other in models.in_other_rows():
                    Writing(self._columns.of(other, models).resolve(joined), None).delete(joined, gone)

        with self._our_errors("deleting"):
            self._by_models(connection, delete)

    def count(self, *, model: str | None = None) -> int:
        """Return how many rows have a vector."""
        with self._reading("counting", model=model) as (connection, statements):
            return int(connection.scalar(statements.count()) or 0)

    def close(self) -> None:
        """Close the engine's connections, if the engine is the store's own."""
        self.models.close()
        if self._owns_engine:
            self._engine.dispose()

    def _hits(
        self, searcher: Searcher, vector: ArrayLike, top_k: int, condition: Condition | None, *, exact: bool
    ) -> list[Hit]:
        found = searcher.nearest(_query_vector(vector, searcher.statements), top_k, condition, exact=exact)
        rows = sorted(found.rows, key=lambda row: (row[1], row[0]))
        score = _SCORES[self._table.distance]
        hits = [Hit(key, score(distance), text, metadata or {}) for key, distance, text, metadata in rows]
        return near_enough(self, hits, self._options.threshold)

    def _prepared(self, latest: Sequence[Record], models: TableModels, model: str | None) -> Prepared:
        own = models.column_of(model, dimension_of(latest[0].vector)) if latest else None
        return Prepared(latest, own, self.models.embed_others(latest, models.others(own), self._sender.aside))

    def _column(self, models: TableModels, model: str | None, vector: ArrayLike | None = None) -> OpenedColumn:
        """Return the column of the model that made a vector; without a vector, the one that is searched."""
        if vector is None and model is None:
            return self._columns.of(models.searched, models)
        dimension = None if vector is None else dimension_of(vector)
        return self._columns.of(models.column_of(model, dimension), models)

    def _by_models(self, connection: Joinable | None, work: Callable[[TableModels], Answer]) -> Answer:
        """Return what ``work`` returns by the models that are known; tried again where that fails and others are now.

        A column may have been renamed or retired in the second since they were looked up.
        """
        models = self.models.now(connection)
        errors: tuple[type[Exception], ...] = (NotUpgraded, SchemaMismatch, DBAPIError, *self._sender.errors)
        try:
            return work(models)
        except errors:
            if connection is not None:
                raise
            self.models.look_again()
            now = self.models.now()
            if now.columns == models.columns:
                raise
        return work(now)

    @contextmanager
    def _reading(
        self,
        doing: str,
        connection: Joinable | None = None,
        *,
        model: str | None = None,
        vector: ArrayLike | None = None,
    ) -> Iterator[tuple[Connection, Statements]]:
        """Open a snapshot, or use the caller's transaction, with the statements for the table as it really is."""
        with self._our_errors(doing):
            chosen = self._column(self.models.now(connection), model, vector)
            with self._joined(self._snapshots, connection) as joined:
                yield joined, chosen.resolve(joined)

    @contextmanager
    def _joined(self, engine: sa.Engine, connection: Joinable | None) -> Iterator[Connection]:
        """Use the caller's transaction, or open one on ``engine``."""
        if connection is not None:
            with joining(connection) as joined:
                yield joined
        else:
            with engine.begin() as own:
                yield own

    @contextmanager
    def _our_errors(self, doing: str) -> Iterator[None]:
        what = f"{doing} {self._table.qualified_name}"
        errors: tuple[type[Exception], ...] = (DBAPIError, *self._sender.errors)
        try:
            yield
        except errors as error:
            # A column may have been retired meanwhile.
            self.models.look_again()
            ours = to_error(error, what)
            if isinstance(ours, TimedOut):
                ours.hint = "raise AMPRENTA_QUERY_TIMEOUT_SECONDS; store.explain(…) says why the query takes long"
            raise ours from error
        except sa.exc.TimeoutError:
            raise TransientError(
                f"{what}: all connections of the pool are in use", hint="raise AMPRENTA_POOL_SIZE"
            ) from None


def _query_vector(vector: ArrayLike, statements: Statements) -> NDArray[np.float32]:
    table = statements.table
    return to_query_vector(vector, table.dimension, cosine=table.distance == "cosine")


def _as_asked(spelled: Mapping[str, str], rows: Sequence[Any]) -> dict[str, Any]:
    """Return the rows by the keys that were asked for, whose spelling of a UUID may differ from the rows'."""
    found = {row.key: row for row in rows}
    asked = {key: found[value] for key, value in spelled.items() if value in found}
    return asked | {key: row for key, row in found.items() if key not in set(spelled.values())}
