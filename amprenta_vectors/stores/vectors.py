"""The checks that every store makes of the vectors it is given, before anything is sent."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence, Sized

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import ConfigError, DimensionMismatch, RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.stores.protocol import Hit, Record, VectorStore

log = logging.getLogger(__name__)

FEW_ROWS = 10
"""Rows read to find one whose vector is not zero."""


def near_enough(store: VectorStore, hits: list[Hit], threshold: float | None) -> list[Hit]:
    """Return the hits whose score reaches ``threshold``, if there is one; log the search, never its text."""
    if threshold is not None:
        lower = store.distance == "l2"
        hits = [hit for hit in hits if (hit.score <= threshold if lower else hit.score >= threshold)]
    log.info("search backend=%s hits=%d threshold=%s", store.name, len(hits), threshold)
    return hits


def first_with_direction(vectors: Iterable[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """Return the first vector that is not zero, so that a query by it is valid under every distance."""
    return next((vector for vector in vectors if vector.any()), None)


def dimension_of(vector: ArrayLike) -> int | None:
    """Return how many values a vector has; None for what is no list of values."""
    if isinstance(vector, np.ndarray):
        return vector.shape[0] if vector.ndim == 1 else None
    return len(vector) if isinstance(vector, Sized) else None


def to_query_vector(vector: ArrayLike, dimension: int, *, cosine: bool) -> NDArray[np.float32]:
    """Return ``vector`` as ``(dimension,)`` float32.

    Raises `DimensionMismatch`, or `ConfigError` for a vector that has no distance to any other.
    """
    values = _to_float32(vector)
    if values is None:
        raise ConfigError("the query vector is not an array of numbers")
    if values.shape != (dimension,):
        raise DimensionMismatch(f"the query vector has shape {values.shape}; expected ({dimension},)")
    # One pass settles it for nearly every query.
    if 0.0 < float(np.dot(values, values)) < math.inf:
        return values
    if not np.isfinite(values).all():
        raise ConfigError("the query vector has a NaN or infinite value")
    if cosine and not values.any():
        raise ConfigError("all values of the query vector are 0, which has no direction under cosine")
    return values


def to_batch(records: Sequence[Record], dimension: int, *, cosine: bool) -> VectorBatch:
    """Return records, as `latest_records` gives them, as one batch in the order of their keys.

    Raises `RowError` for the first that cannot be stored: wrong length, NaN, infinite, zero under cosine, NUL.
    """
    # Two writers that lock rows in one order do not deadlock.
    ordered = sorted(records, key=lambda record: record.key)
    vectors = np.empty((len(ordered), dimension), dtype=np.float32)
    for row, record in zip(vectors, ordered, strict=True):
        values = _to_float32(record.vector)
        if values is None or values.shape != (dimension,):
            found = "no array of numbers" if values is None else f"shape {values.shape}"
            raise RowError(record.key, Reason.DIMENSION, f"{found}; expected ({dimension},)")
        row[:] = values
    batch = VectorBatch(
        source_keys=[record.key for record in ordered],
        vectors=vectors,
        texts=[record.text for record in ordered],
        metadata=[record.metadata for record in ordered],
    ).validated(cosine=cosine)
    if batch.quarantined:
        raise batch.quarantined[0]
    return batch


def _to_float32(vector: ArrayLike) -> NDArray[np.float32] | None:
    if isinstance(vector, np.ndarray) and vector.dtype == np.float32:
        return vector
    # A value past float32's range becomes infinite, which is refused as such.
    with np.errstate(over="ignore"):
        try:
            return np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            return None
