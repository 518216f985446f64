"""Texts shared out among requests that an embedding service takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.protocol import EmbeddingService, Limits


def iter_requests(texts: Sequence[str], limits: Limits) -> Iterator[Sequence[str]]:
    """Yield ``texts`` in order, as many a request as its ``limits`` allow; a text alone may pass their bytes."""
    start = size = 0
    most = math.inf if limits.bytes_ is None else limits.bytes_
    for place, text in enumerate(texts):
        length = len(text.encode())
        if place > start and (place - start >= limits.texts or size + length > most):
            yield texts[start:place]
            start, size = place, 0
        size += length
    if start < len(texts):
        yield texts[start:]


def embed_all(service: EmbeddingService, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return ``(n, dimension)`` float32, by as many requests as it takes, one after another."""
    parts = [service.request(asked).vectors for asked in iter_requests(texts, service.limits)]
    return np.concatenate([np.empty((0, service.model.dimension), np.float32), *parts])
