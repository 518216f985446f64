"""One small search by the settings, made as an application makes it, for a scheduler to watch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.factory import BACKENDS, check_mode, get_vector_store

NO_SUCH_KEY = "amprenta-canary"


@dataclass(frozen=True)
class Song:
    """The result of one search.

    ``connect_ms`` is the time before it, in which the store is opened and asked for a key that it lacks. ``mean_score``
    is the hits' mean, None without hits: if it changes for the same text or data, the model or the data changed.
    """

    backend: str
    connect_ms: float
    latency_ms: float
    hits: int
    mean_score: float | None


@runtime_checkable
class Stored(Protocol):
    """A store that can give one of its vectors."""

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return a stored vector to query with, ``(dimension,)``; None if none is found at once."""
        ...


def stored_question(settings: Settings) -> NDArray[np.float32]:
    """Return a vector that the store for ``VECTOR_BACKEND`` holds. Raises `ConfigError` if none is found."""
    check_mode(settings)
    with closing(BACKENDS[settings.vector_backend](settings)) as store:
        vector = store.stored_vector() if isinstance(store, Stored) else None
    if vector is None:
        raise ConfigError(
            f"{settings.vector_backend} has no stored vector at hand to search for",
            hint="run the backfill, check PINECONE_NAMESPACE, or give a text: AMPRENTA_EMBEDDER=… canary --text …",
        )
    return vector


def sing(
    settings: Settings, question: NDArray[np.float32], *, top_k: int, clock: Callable[[], float] = time.perf_counter
) -> Song:
    """Search once for ``question``, ``(dimension,)``, by `get_vector_store`; the store's errors are raised.

    In the modes dual and shadow, whose primary answers alone, only the primary is asked: no write is drained and no
    shadow query recorded.
    """
    check_mode(settings)
    started = clock()
    with closing(get_vector_store(_answering(settings))) as store:
        # An application has its connections open when it searches.
        store.fetch([NO_SUCH_KEY])
        connected = clock()
        hits = store.query(question, top_k=top_k)
        answered = clock()
        return Song(
            backend=store.name,
            connect_ms=round((connected - started) * 1000, 3),
            latency_ms=round((answered - connected) * 1000, 3),
            hits=len(hits),
            mean_score=fmean(hit.score for hit in hits) if hits else None,
        )


def _answering(settings: Settings) -> Settings:
    """Return settings that query without side effects: no dual write, no shadow record."""
    if settings.vector_mode not in ("dual", "shadow"):
        return settings
    return settings.model_copy(update={"vector_mode": "single", "vector_secondary": None})
