"""The number of hits that may be requested."""

from __future__ import annotations

from numbers import Integral
from typing import cast

from amprenta_vectors.errors import ConfigError

MAX_TOP_K = 10_000
"""The largest ``top_k`` that Pinecone takes, and so every store."""


def check_top_k(top_k: object) -> None:
    """Raise `ConfigError` for what is no number of hits, or one that no store gives."""
    whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if not (whole and 1 <= int(cast("Integral", top_k)) <= MAX_TOP_K):
        raise ConfigError(f"top_k is {top_k!r}; expected a whole number from 1 to {MAX_TOP_K}")
