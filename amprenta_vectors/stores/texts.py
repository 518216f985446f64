"""A store that takes texts and is queried by texts: every adapter to a framework builds on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore


class TextEmbedder(Protocol):
    """Embeds texts and queries by one model."""

    @property
    def model(self) -> Model:
        """The model."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)``."""
        ...

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Return ``(dimension,)``."""
        ...


@runtime_checkable
class StoreOfModels(Protocol):
    """A store whose registry says by which model texts are searched."""

    def search(self, text: str, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the hits nearest to a text, by the model that is searched now."""
        ...

    def text_embedder(self, model: str | None = None) -> TextEmbedder | None:
        """Return the embedder of that model; None where the application embeds, by ``model`` if it says so."""
        ...


class TextStore:
    """Adds texts to ``store`` and searches it by text.

    ``embed_texts`` gives ``(n, dimension)``, ``embed_query`` ``(dimension,)``, both by ``model`` if it is named. Where
    the store has models of its own, the one that is searched embeds instead, unless it is that model.
    """

    def __init__(
        self,
        store: VectorStore,
        embed_texts: Callable[[list[str]], ArrayLike],
        embed_query: Callable[[str], ArrayLike],
        model: str | None = None,
    ) -> None:
        self.store = store
        self._embed_texts = embed_texts
        self._embed_query = embed_query
        self._model = model

    def add(
        self,
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Embed and write texts in one go; return their ids, made here if none is given.

        Raises `ConfigError` if there are not as many ``metadatas`` or ``ids`` as texts.
        """
        keys = to_keys(texts, metadatas, ids)
        if texts:
            embedder = self._embedder()
            vectors = self._embed_texts(list(texts)) if embedder is None else embedder.embed(list(texts))
            self.store.upsert(to_records(keys, vectors, texts, metadatas), **self.named(embedder))
        return keys

    def search(self, text: str, k: int, filter: Filter | None = None) -> list[Hit]:
        """Return the ``k`` hits nearest to ``text``."""
        if isinstance(self.store, StoreOfModels) and self._embedder() is not None:
            return self.store.search(text, top_k=k, filter=filter)
        return self.search_with_vector(text, k, filter)[1]

    def search_with_vector(
        self, text: str, k: int, filter: Filter | None = None
    ) -> tuple[ArrayLike, list[Hit], dict[str, str]]:
        """Return the vector of ``text``, the ``k`` hits nearest to it, and the model as the store's methods take it."""
        embedder = self._embedder()
        vector = self._embed_query(text) if embedder is None else embedder.embed_query(text)
        named = self.named(embedder)
        return vector, self.store.query(vector, top_k=k, filter=filter, **named), named

    def _embedder(self) -> TextEmbedder | None:
        return self.store.text_embedder(self._model) if isinstance(self.store, StoreOfModels) else None

    def named(self, embedder: TextEmbedder | None = None) -> dict[str, str]:
        """Return the model of a vector as the store's methods take it; none where nothing says which it is.

        A vector is of ``embedder``, or of the application's own model.
        """
        name = self._model if embedder is None else embedder.model.name
        return {"model": name} if name is not None and isinstance(self.store, StoreOfModels) else {}


def to_keys(
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ids: Sequence[str | None] | None = None,
) -> list[str]:
    """Return a key for each text, made here if none is given.

    Raises `ConfigError` if there are not as many ``metadatas`` or ``ids`` as texts.
    """
    for name, given in (("metadatas", metadatas), ("ids", ids)):
        if given is not None and len(given) != len(texts):
            raise ConfigError(f"{len(texts)} texts and {len(given)} {name}; expected as many")
    return [key or str(uuid.uuid4()) for key in ids or [None] * len(texts)]


def to_records(
    keys: Sequence[str],
    vectors: ArrayLike,
    texts: Sequence[str],
    metadatas: Sequence[Mapping[str, Any] | None] | None = None,
) -> list[Record]:
    """Return texts as records; ``vectors`` are ``(n, dimension)``."""
    rows = np.asarray(vectors, dtype=np.float32)
    extras = metadatas or [None] * len(texts)
    return [
        Record(key, vector, text, dict(extra or {}))
        for key, vector, text, extra in zip(keys, rows, texts, extras, strict=True)
    ]
