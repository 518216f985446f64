"""One small search by the settings, as an application makes it, for a scheduler to watch."""

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
    """What one search gave. ``connect_ms`` is before it: the store is opened, and a key asked for that it lacks.

    ``mean_score`` is that of the hits, None without any: where the same text or data give another one, the model or the
    data changed.
    """

    backend: str
    connect_ms: float
    latency_ms: float
    hits: int
    mean_score: float | None


@runtime_checkable
class Stored(Protocol):
    """A store that has a vector at hand."""

    def stored_vector(self) -> NDArray[np.float32] | None:
        """One that can be asked for, ``(dimension,)``."""
        ...


def stored_question(settings: Settings) -> NDArray[np.float32]:
    """A vector that the store for ``VECTOR_BACKEND`` holds. Raises `ConfigError` where none is found."""
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

    Where the mode has the primary answer alone, it is asked alone: the application's own work is left as it is.
    """
    check_mode(settings)
    started = clock()
    with closing(get_vector_store(_answering(settings))) as store:
        # An application's connections are open when it searches.
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
    """Without what is beside the answer: comparisons that are kept as the application's, writes that are brought."""
    if settings.vector_mode not in ("dual", "shadow"):
        return settings
    return settings.model_copy(update={"vector_mode": "single", "vector_secondary": None})
