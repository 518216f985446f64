"""The search for products by similarity, with filters on their columns in the same query."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.schema.registry import PRODUCTS
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.protocol import Filter, VectorStore
from amprenta_vectors.stores.top_k import MAX_TOP_K, to_top_k
from amprenta_vectors.systems.products.rows import active_rows
from amprenta_vectors.systems.products.tracing import SearchTracer, open_tracer

log = logging.getLogger(__name__)

ASK_MORE = 4
"""How many times as many hits are asked for if some turn out to be products that are sold no more."""


@dataclass(frozen=True)
class FoundProduct:
    """A product and how near it is to what was asked for; ``row`` has every column of its row but vectors."""

    id: str
    score: float
    row: Mapping[str, Any]


class ProductSearch:
    """Searches ``store`` by texts that ``embedder`` turns into vectors, and gives the products' rows.

    The rows come from ``engine``, whichever store answers, so that a price is never an old one. Only active products
    are found. Make one when the application starts and share it between threads.
    """

    def __init__(
        self, store: VectorStore, embedder: Embedder, engine: sa.Engine, tracer: SearchTracer | None = None
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._engine = engine
        self._tracer = tracer

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Open a search by the environment: ``PRODUCT_SEARCH_STRATEGY``, ``USE_PGVECTOR`` and the thresholds.

        Raises `ConfigError` for settings that are missing or contradict each other, `MissingExtra`.
        """
        settings = settings or product_settings()
        tracer = open_tracer(settings)
        return cls(get_vector_store(settings), open_embedder(settings), create_engine(settings), tracer)

    @property
    def store(self) -> VectorStore:
        """The store that is searched: one, or two joined."""
        return self._store

    def search(
        self,
        text: str,
        limit: int = 10,
        *,
        category: str | Sequence[str] | None = None,
        brand: str | Sequence[str] | None = None,
        min_price: float | None = None,
        max_price: float | None = None,
        min_stock: int | None = None,
    ) -> list[FoundProduct]:
        """Return up to ``limit`` active products, nearest first, that pass every filter; of several names any will do.

        Fewer come back only if no more pass and reach the store's similarity threshold. Raises `FilterError` and
        `ConfigError` for what cannot be asked, `TransientError` if no store answers.
        """
        limit = to_top_k(limit)
        began = datetime.now(UTC)
        vector = self._embedder.embed([text])[0]
        wanted = to_filter(category, brand, min_price, max_price, min_stock)
        asked = limit
        while True:
            hits = self._store.query(vector, top_k=asked, filter=wanted)
            rows = self._rows([hit.key for hit in hits])
            found = [FoundProduct(hit.key, hit.score, rows[hit.key]) for hit in hits if hit.key in rows]
            if len(found) >= limit or len(hits) < asked or asked == MAX_TOP_K:
                log.info("%s search found %d products", self._store.name, min(len(found), limit))
                self._trace(text, wanted, limit, found[:limit], began)
                return found[:limit]
            asked = min(asked * ASK_MORE, MAX_TOP_K)

    def close(self) -> None:
        """Close every connection."""
        if self._tracer is not None:
            self._tracer.close()
        self._store.close()
        self._engine.dispose()

    def _trace(self, text: str, wanted: Filter, limit: int, found: Sequence[FoundProduct], began: datetime) -> None:
        if self._tracer is not None:
            hits = [{"id": each.id, "name": each.row.get("name"), "score": each.score} for each in found]
            self._tracer.record(text, wanted, limit, hits, self._store.name, began, datetime.now(UTC))

    def _rows(self, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        with self._engine.connect() as connection:
            return active_rows(connection, PRODUCTS, ids)


def product_settings(**overrides: Any) -> Settings:
    """Return the environment's settings for the product table; the embedder is ollama if none is set."""
    settings = Settings.load(table=PRODUCTS.name, **overrides)
    return settings if settings.embedder else settings.model_copy(update={"embedder": "ollama"})


def to_filter(
    category: str | Sequence[str] | None = None,
    brand: str | Sequence[str] | None = None,
    min_price: float | None = None,
    max_price: float | None = None,
    min_stock: int | None = None,
) -> Filter:
    """Return the filter of a search, in the one filter language of every store."""
    # "Not false" rather than true: a record in Chroma may lack the field.
    wanted: dict[str, Any] = {"active": {"$ne": False}}
    for field, names in (("category", category), ("brand", brand)):
        if names is not None:
            wanted[field] = {"$in": [names] if isinstance(names, str) else list(names)}
    price = {"$gte": min_price, "$lte": max_price}
    bounds = {operator: float(value) for operator, value in price.items() if value is not None}
    if bounds:
        wanted["price"] = bounds
    if min_stock is not None:
        wanted["stock"] = {"$gte": min_stock}
    return wanted
