"""The number of hits that may be requested."""

from __future__ import annotations

from amprenta_vectors.errors import ConfigError

MAX_TOP_K = 10_000
"""The largest ``top_k`` that Pinecone takes, and so every store."""


def check_top_k(top_k: int) -> None:
    """Raise `ConfigError` for a number of hits that no store gives."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise ConfigError(f"top_k is {top_k}; expected 1 to {MAX_TOP_K}")
