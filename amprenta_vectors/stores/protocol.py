"""The protocol of the stores that an application queries, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.pg.types import Distance

Filter = Mapping[str, Any]
"""A metadata filter in Pinecone's language; see :mod:`amprenta_vectors.stores.filters.language`."""


@dataclass(frozen=True)
class Hit:
    """One hit of a query. A higher ``score`` is nearer under cosine and ip; under l2 it is the squared distance."""

    key: str
    score: float
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Record:
    """One stored row. ``vector`` is ``(dimension,)`` float32."""

    key: str
    vector: NDArray[np.float32]
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class VectorStore(Protocol):
    """A backend confined to one scope: no method reads or writes a row of another."""

    @property
    def name(self) -> str:
        """The name for logs and reports."""
        ...

    @property
    def distance(self) -> Distance:
        """The distance that scores are made from; under ``l2`` a lower score is nearer."""
        ...

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, nearest first."""
        ...

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the rows of ``keys`` by key; absent keys are absent."""
        ...

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace whole rows; return how many."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows; an absent key is no error."""
        ...

    def count(self) -> int:
        """Return how many rows have a vector."""
        ...

    def close(self) -> None:
        """Close connections that the store opened itself."""
        ...
