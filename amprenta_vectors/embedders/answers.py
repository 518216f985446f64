"""Checks the vectors that a service answered with, and makes them a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.errors import SourceError


def to_matrix(found: Sequence[Any], texts: int, dimension: int, provider: str) -> NDArray[np.float32]:
    """Return ``found``, a vector a text in order, as ``(texts, dimension)`` float32.

    Raises `SourceError` if there are more or fewer vectors, or one has another length, or a value that is no finite
    number.
    """
    if len(found) != texts:
        raise SourceError(f"{provider} gave {len(found)} vectors for {texts} texts")
    lengths = {len(vector) if isinstance(vector, list) else 0 for vector in found}
    if lengths - {dimension}:
        raise SourceError(f"{provider} gave vectors of {sorted(lengths)} dimensions; expected {dimension}")
    try:
        with np.errstate(over="ignore"):
            matrix = np.array(found, dtype=np.float32).reshape(texts, dimension)
    except (TypeError, ValueError):
        matrix = np.full((texts, dimension), np.nan, dtype=np.float32)
    if not np.isfinite(matrix).all():
        raise SourceError(f"{provider} gave a vector with a value that is no finite number")
    return matrix
