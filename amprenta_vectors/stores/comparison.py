"""Compares stores on the same queries: do they find the same hits, do they find the nearest, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, VectorStore

TIE = 1e-6
"""How much farther than the k-th nearest row a hit may be and still count: near-duplicates are not misses."""

PERTURBATION = 0.1
"""The length of the noise on a perturbed vector, relative to the vector's own."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class StoreReport:
    """One store's answers to all queries, asked one at a time. ``recall`` is None if there was nothing to find."""

    name: str
    recall: float | None
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queries_per_second: float
    hits: int


@dataclass(frozen=True)
class ComparisonReport:
    """All stores on the same queries. ``overlap`` is the mean share of hits, by key, that all stores have in common."""

    queries: int
    top_k: int
    overlap: float | None
    stores: tuple[StoreReport, ...]


@dataclass(frozen=True)
class Nearest:
    """The result of an exact search: how many ``rows``, and the score of the last; times ``sign``, higher is nearer."""

    rows: int
    last: float
    sign: int

    def reached_by(self, score: float) -> bool:
        """Return whether a row of that score is among the nearest, or as near as the last of them."""
        return self.sign * (score - self.last) >= -TIE


def nearest_rows(reference: PgVectorStore, query: Vectors, top_k: int, filter: Filter | None = None) -> Nearest:
    """Return what an exact search finds for ``query``, ``(dimension,)``."""
    hits = reference.query(query, top_k=top_k, filter=filter, exact=True)
    return Nearest(len(hits), hits[-1].score if hits else 0.0, -1 if reference.distance == "l2" else 1)


def compare_stores(
    stores: Mapping[str, VectorStore],
    reference: PgVectorStore,
    queries: Vectors,
    *,
    top_k: int,
    clock: Callable[[], float] = time.perf_counter,
) -> ComparisonReport:
    """Ask every store every one of ``queries``, ``(n, dimension)`` float32, in turn.

    ``recall`` is measured against an exact search of ``reference`` and by its distances, whatever score a store gives:
    a hit counts if its row is no farther than the k-th nearest.
    """
    if not len(queries):
        raise ConfigError("there is nothing to compare: no stored vector to make queries of", hint="run the backfill")
    for store in stores.values():
        # The first query opens connections, which are not to be measured.
        store.query(queries[0], top_k=top_k)
    answers: dict[str, list[list[Hit]]] = {name: [] for name in stores}
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    for query in queries:
        # In turn, so that a slow moment of the machine affects every store.
        for name, store in stores.items():
            start = clock()
            answers[name].append(store.query(query, top_k=top_k))
            seconds[name].append(clock() - start)
    found, wanted = _recall(reference, queries, answers, top_k)
    reports = []
    for name in stores:
        p50, p95, p99 = np.percentile(seconds[name], [50, 95, 99]) * 1000
        reports.append(
            StoreReport(
                name=name,
                recall=found[name] / wanted if wanted else None,
                p50_ms=float(p50),
                p95_ms=float(p95),
                p99_ms=float(p99),
                queries_per_second=len(queries) / sum(seconds[name]),
                hits=sum(map(len, answers[name])),
            )
        )
    return ComparisonReport(len(queries), top_k, _overlap(list(answers.values())), tuple(reports))


def perturbed(vectors: Vectors, *, seed: int) -> Vectors:
    """Return each vector moved by `PERTURBATION` of its length in a random direction.

    The results are near stored vectors and equal to none.
    """
    noise = np.random.default_rng(seed).normal(size=vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    noise *= PERTURBATION * lengths / np.linalg.norm(noise, axis=1, keepdims=True)
    return (vectors + noise).astype(np.float32)


def _recall(
    reference: PgVectorStore, queries: Vectors, answers: Mapping[str, list[list[Hit]]], top_k: int
) -> tuple[dict[str, int], int]:
    """Return how many hits of each store are among the nearest rows, and how many nearest rows there are."""
    found = dict.fromkeys(answers, 0)
    wanted = 0
    for i, query in enumerate(queries):
        nearest = nearest_rows(reference, query, top_k)
        if not nearest.rows:
            continue
        wanted += nearest.rows
        keys = {name: {hit.key for hit in hits[i]} for name, hits in answers.items()}
        scores = reference.scores(query, sorted(set().union(*keys.values())))
        for name in answers:
            found[name] += sum(nearest.reached_by(scores[key]) for key in keys[name] if key in scores)
    return found, wanted


def _overlap(answers: Sequence[list[list[Hit]]]) -> float | None:
    shares = []
    for hits in zip(*answers, strict=True):
        keys = [{hit.key for hit in store} for store in hits]
        largest = max(map(len, keys))
        if largest:
            shares.append(len(set.intersection(*keys)) / largest)
    return float(np.mean(shares)) if shares else None
