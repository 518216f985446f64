"""The pgvector store for applications that await: the same logic, on an asynchronous engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.util import greenlet_spawn

from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.joining import AsyncJoinable, to_joinable
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.other_models import Prepared
from amprenta_vectors.stores.pgvector.search_plan import SearchPlan
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, Record

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Answer = TypeVar("Answer")
ENDING_SECONDS = 10.0
"""How long a task that is cancelled waits for its statement to end."""


class AsyncPgVectorStore:
    """The rows of ``table`` whose scope columns equal ``scope``, as `PgVectorStore` has them, for one event loop.

    ``engine`` is SQLAlchemy's asynchronous engine on asyncpg or psycopg 3; `close` disposes of it only with
    ``owns_engine``. Behind a pooler it may name no prepared statement, or the first use raises `ConfigError`. Any
    number of tasks may share a store, which uses as many connections as the engine's pool has. A task that is cancelled
    ends its statement, and its connection is not used again. Errors are those of `PgVectorStore`. A ``connection`` may
    be SQLAlchemy's ``AsyncConnection`` or ``AsyncSession``.
    """

    name = PgVectorStore.name

    def __init__(
        self,
        engine: AsyncEngine,
        table: VectorTable,
        scope: Mapping[str, str],
        options: StoreOptions = StoreOptions(),  # noqa: B008 - it cannot be changed
        *,
        owns_engine: bool = False,
    ) -> None:
        if isinstance(engine, sa.Engine):
            raise ConfigError("the engine is an Engine; expected an AsyncEngine", hint="PgVectorStore")
        self._store = PgVectorStore(engine.sync_engine, table, scope, options, owns_engine=owns_engine)

    @classmethod
    def over(cls, store: PgVectorStore) -> Self:
        """Return the store over one whose engines are the ``sync_engine`` of asynchronous ones."""
        made = cls.__new__(cls)
        made._store = store
        return made

    @property
    def distance(self) -> Distance:
        """The table's distance; under ``l2`` the nearest row has the lowest score."""
        return self._store.distance

    async def model(self) -> str | None:
        """Return the name of the model that is searched now; None if none is registered, and the settings name none."""
        return await _awaited(lambda: self._store.model)

    async def query(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, as `PgVectorStore.query` does."""
        return await _awaited(lambda: self._store.query(vector, top_k=top_k, filter=filter, exact=exact, model=model))

    async def search(
        self,
        text: str,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the rows nearest to a text, as `PgVectorStore.search` does; it is embedded in a thread."""
        return await _awaited(lambda: self._store.search(text, top_k=top_k, filter=filter, exact=exact, model=model))

    async def text_embedder(self, model: str | None = None) -> ModelEmbedder | None:
        """Return the embedder for texts by the model that is searched now, as `PgVectorStore.text_embedder` does."""
        return await _awaited(lambda: self._store.text_embedder(model))

    async def explain(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> SearchPlan:
        """Explain which way `query` goes with the same arguments, and why."""
        return await _awaited(lambda: self._store.explain(vector, top_k=top_k, filter=filter, exact=exact, model=model))

    async def scores(self, vector: ArrayLike, keys: Sequence[str], *, model: str | None = None) -> dict[str, float]:
        """Return the exact score of each of ``keys`` that has a row here."""
        return await _awaited(lambda: self._store.scores(vector, keys, model=model))

    async def sample(self, rows: int, *, seed: int = 0, model: str | None = None) -> NDArray[np.float32]:
        """Return at most ``rows`` stored vectors, ``(n, dimension)`` float32, the same for the same seed and rows."""
        return await _awaited(lambda: self._store.sample(rows, seed=seed, model=model))

    async def sample_keys(self, rows: int, *, seed: int = 0, model: str | None = None) -> list[str]:
        """Return the keys of at most ``rows`` rows that have a vector, the same for the same seed and rows."""
        return await _awaited(lambda: self._store.sample_keys(rows, seed=seed, model=model))

    async def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the scope to query with, ``(dimension,)``; None if none is found at once."""
        return await _awaited(self._store.stored_vector)

    async def fetch(
        self, keys: Sequence[str], *, connection: AsyncJoinable | None = None, model: str | None = None
    ) -> dict[str, Record]:
        """Return the rows of ``keys`` by key; with ``connection``, in the caller's transaction."""
        joined = None if connection is None else to_joinable(connection)
        return await _awaited(lambda: self._store.fetch(keys, connection=joined, model=model))

    async def prepare(self, records: Sequence[Record], *, model: str | None = None) -> Prepared:
        """Return records with their texts embedded for the other models, as `PgVectorStore.prepare` does."""
        return await _awaited(lambda: self._store.prepare(records, model=model))

    async def upsert(
        self, records: Sequence[Record] | Prepared, *, connection: AsyncJoinable | None = None, model: str | None = None
    ) -> int:
        """Write rows, as `PgVectorStore.upsert` does; with ``connection``, in the caller's transaction."""
        joined = None if connection is None else to_joinable(connection)
        return await _awaited(lambda: self._store.upsert(records, connection=joined, model=model))

    async def upsert_possible(
        self, records: Sequence[Record] | Prepared, *, connection: AsyncJoinable | None = None, model: str | None = None
    ) -> list[RowError]:
        """Write rows but for those that it returns, as `PgVectorStore.upsert_possible` does."""
        joined = None if connection is None else to_joinable(connection)
        return await _awaited(lambda: self._store.upsert_possible(records, connection=joined, model=model))

    async def delete(self, keys: Sequence[str], *, connection: AsyncJoinable | None = None) -> None:
        """Delete rows, as `PgVectorStore.delete` does; with ``connection``, in the caller's transaction."""
        joined = None if connection is None else to_joinable(connection)
        await _awaited(lambda: self._store.delete(keys, connection=joined))

    async def count(self, *, model: str | None = None) -> int:
        """Return how many rows have a vector."""
        return await _awaited(lambda: self._store.count(model=model))

    async def close(self) -> None:
        """Close the engine's connections, if the engine is the store's own."""
        await _awaited(self._store.close)


async def _awaited(call: Callable[[], Answer]) -> Answer:
    """Make a call whose every wait for an asynchronous engine gives way to the other tasks of the loop.

    It has a task of its own, so that whoever is cancelled again and again, as by a scope of anyio at every wait, still
    lets the statement end and the connection go. It waits `ENDING_SECONDS` at most.
    """
    task = asyncio.ensure_future(greenlet_spawn(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        end = time.monotonic() + ENDING_SECONDS
        while not task.done() and (left := end - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=left)
        if task.done() and not task.cancelled():
            # What was answered, or went wrong, is nobody's any more.
            task.exception()
        raise
