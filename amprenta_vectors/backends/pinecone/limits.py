"""The limits and costs that Pinecone publishes; needs none of its clients."""

from __future__ import annotations

from amprenta_vectors.backends.protocol import Route

PAGE = 100
"""Ids in a page of a list call, at most (Pinecone's published limit)."""


def read_units(route: Route, records: int = 0) -> int:
    """Return what a request costs at most: 1 a list page, 1 for every 10 records fetched, and at least 1.

    https://docs.pinecone.io/guides/manage-cost/understanding-cost#read-units
    """
    return 1 if route == "list" else max(1, -(-records // 10))
