"""What Pinecone publishes of its limits and its cost; needs no client of it."""

from __future__ import annotations

from amprenta_vectors.backends.protocol import Route

PAGE = 100
"""Ids a list call gives at most (Pinecone's published limit)."""


def read_units(route: Route, records: int = 0) -> int:
    """What a request costs at most: 1 a list page, 1 for each 10 records that are fetched, and at least 1.

    https://docs.pinecone.io/guides/manage-cost/understanding-cost#read-units
    """
    return 1 if route == "list" else max(1, -(-records // 10))
