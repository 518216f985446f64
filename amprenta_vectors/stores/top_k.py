"""The number of hits that may be requested."""

from __future__ import annotations

from numbers import Integral

from amprenta_vectors.errors import ConfigError

MAX_TOP_K = 10_000
"""The largest ``top_k`` that Pinecone takes, and so every store."""


def to_top_k(top_k: object) -> int:
    """Return a number of hits as int. Raises `ConfigError` for what is none, or one that no store gives."""
    if isinstance(top_k, Integral) and not isinstance(top_k, bool) and 1 <= int(top_k) <= MAX_TOP_K:
        return int(top_k)
    raise ConfigError(f"top_k is {top_k!r}; expected a whole number from 1 to {MAX_TOP_K}")
