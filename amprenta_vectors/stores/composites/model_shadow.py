"""``VECTOR_MODE=shadow`` between two models of one table: each embeds the text that is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.composites.shadow import Asked, Shadowing, ShadowLog
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, Record


class ModelShadowStore:
    """Sends every call to ``store``; a text that is searched is then embedded and searched by ``shadow`` in a thread.

    ``record`` keeps the comparison, and never the text. What is asked by vector is not compared: what it says in words
    is not known.
    """

    def __init__(self, store: PgVectorStore, shadow: str, record: ShadowLog) -> None:
        self._store = store
        self._shadow = shadow
        self._shadowing = Shadowing(self._ask_shadow, record)

    @property
    def name(self) -> str:
        """The name of the store, and the model that is asked beside it."""
        return f"{self._store.name}, shadowed by {self._shadow}"

    @property
    def distance(self) -> Distance:
        """The store's distance."""
        return self._store.distance

    @property
    def model(self) -> str | None:
        """The model that is searched now."""
        return self._store.model

    def text_embedder(self, model: str | None = None) -> ModelEmbedder | None:
        """Return the embedder for texts, as the store does."""
        return self._store.text_embedder(model)

    def search(
        self,
        text: str,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the store's answer, and queue the text for the other model."""
        start = time.perf_counter()
        hits = self._store.search(text, top_k=top_k, filter=filter, model=model)
        taken = (time.perf_counter() - start) * 1000
        self._shadowing.offer(Asked(np.empty(0, np.float32), top_k, filter, list(hits), taken, text))
        return hits

    def query(
        self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None, model: str | None = None
    ) -> list[Hit]:
        """Return the store's answer."""
        return self._store.query(vector, top_k=top_k, filter=filter, model=model)

    def fetch(self, keys: Sequence[str], *, model: str | None = None) -> dict[str, Record]:
        """Return the store's rows."""
        return self._store.fetch(keys, model=model)

    def upsert(self, records: Sequence[Record], *, model: str | None = None) -> int:
        """Insert or replace rows; return how many."""
        return self._store.upsert(records, model=model)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows."""
        self._store.delete(keys)

    def count(self) -> int:
        """Return how many rows have a vector."""
        return self._store.count()

    def close(self) -> None:
        """Close the store; the other model is given two seconds for texts that wait."""
        self._shadowing.close()
        self._store.close()
        self._shadowing.close_record()

    def _ask_shadow(self, asked: Asked) -> list[Hit]:
        return self._store.search(asked.text, top_k=asked.top_k, filter=asked.filter, model=self._shadow)
