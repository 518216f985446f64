"""Exact nearest neighbours with numpy, scored as Pinecone scores them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.sandbox.pinecone.records import Record

METRICS = ("cosine", "dotproduct", "euclidean")

_ROWS_AT_ONCE = 4096
_LARGEST = float(np.finfo(np.float32).max)
_SAFE_NORM = (1e-12, 1e12)
"""Between these, no product of two float32 vectors leaves float32's range."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Searchable:
    """Records with their values as rows of one ``(n, dimension)`` matrix, and the rows' lengths."""

    records: list[Record]
    matrix: NDArray[np.float32]
    norms: Scores

    @classmethod
    def build(cls, records: Iterable[Record], dimension: int) -> Searchable:
        """Build the matrix of those ``records`` that have ``dimension`` values."""
        kept, rows = [], []
        for record in list(records):
            values = record.values
            if len(values) == dimension:
                kept.append(record)
                rows.append(values)
        matrix = np.array(rows, dtype=np.float32).reshape(len(kept), dimension)
        norms = np.empty(len(kept))
        for start in range(0, len(kept), _ROWS_AT_ONCE):
            part = matrix[start : start + _ROWS_AT_ONCE].astype(np.float64)
            norms[start : start + _ROWS_AT_ONCE] = np.sqrt(np.einsum("ij,ij->i", part, part))
        return cls(kept, matrix, norms)

    def nearest(
        self, query: NDArray[np.float32], metric: str, top_k: int, rows: NDArray[np.intp] | None = None
    ) -> list[tuple[Record, float]]:
        """Return the ``top_k`` nearest records, among ``rows`` if given, with their scores, nearest first."""
        chosen = np.arange(len(self.records)) if rows is None else rows
        scores = self._scores(query, metric)[chosen]
        cost = scores if metric == "euclidean" else -scores
        if top_k < len(cost):
            best = np.argpartition(cost, top_k)[:top_k]
            best = best[np.argsort(cost[best], kind="stable")]
        else:
            best = np.argsort(cost, kind="stable")
        return [(self.records[chosen[i]], float(scores[i])) for i in best]

    def _scores(self, query: NDArray[np.float32], metric: str) -> Scores:
        length = float(np.linalg.norm(query.astype(np.float64)))
        score = _squared_distances if metric == "euclidean" else _products
        scores = np.empty(len(self.records))
        for start in range(0, len(self.records), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            scores[part] = score(self.matrix[part], query)
        low, high = _SAFE_NORM
        unsafe = np.flatnonzero((self.norms < low) | (self.norms > high) | (not low <= length <= high))
        scores[unsafe] = score(self.matrix[unsafe].astype(np.float64), query.astype(np.float64))
        if metric == "cosine":
            lengths = self.norms * length
            scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
        # A score is a float32 on the wire, and JSON has no infinity.
        return np.clip(scores, -_LARGEST, _LARGEST)


def _products(matrix: NDArray[np.floating], query: NDArray[np.floating]) -> NDArray[np.floating]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(matrix @ query)


def _squared_distances(matrix: NDArray[np.floating], query: NDArray[np.floating]) -> NDArray[np.floating]:
    with np.errstate(over="ignore", invalid="ignore"):
        differences = matrix - query
        return np.asarray(np.einsum("ij,ij->i", differences, differences))
