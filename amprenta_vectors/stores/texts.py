"""A store that takes texts and is queried by texts: every adapter to a framework builds on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore


class TextStore:
    """Adds texts to ``store`` and searches it by text.

    ``embed_texts`` gives ``(n, dimension)``, ``embed_query`` ``(dimension,)``.
    """

    def __init__(
        self,
        store: VectorStore,
        embed_texts: Callable[[list[str]], ArrayLike],
        embed_query: Callable[[str], ArrayLike],
    ) -> None:
        self.store = store
        self._embed_texts = embed_texts
        self._embed_query = embed_query

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
            self.store.upsert(to_records(keys, self._embed_texts(list(texts)), texts, metadatas))
        return keys

    def search(self, text: str, k: int, filter: Filter | None = None) -> list[Hit]:
        """Return the ``k`` hits nearest to ``text``."""
        return self.store.query(self._embed_query(text), top_k=k, filter=filter)


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
