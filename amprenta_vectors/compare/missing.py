"""Explains every hit that the source's store gives and the table's store does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from amprenta_vectors.compare.queries import Query
from amprenta_vectors.compare.whereabouts import Whereabouts
from amprenta_vectors.compare.why import Why
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.comparison import TIE
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Hit, Record, VectorStore

LISTED = 20
"""Keys listed for each reason, at most."""


AMISS = frozenset({Why.LOST, Why.OTHER_SCOPE, Why.NO_VECTOR, Why.OTHER_VECTOR})
"""The reasons for which the table lacks the vector that the source has: no search setting mends them."""


@dataclass
class Comparison:
    """The result of ``queries``: the source's ``hits``, how many were ``found`` here, the others counted by reason.

    ``keys`` are the source's, at most `LISTED` for each reason, each once.
    """

    queries: int
    top_k: int
    hits: int = 0
    found: int = 0
    missing: dict[Why, int] = field(default_factory=lambda: dict.fromkeys(Why, 0))
    keys: dict[Why, list[str]] = field(default_factory=lambda: {why: [] for why in Why})

    @property
    def amiss(self) -> int:
        """The number of missing hits whose vector the table does not have."""
        return sum(number for why, number in self.missing.items() if why in AMISS)

    def count(self, why: Why, key: str) -> None:
        """Count one more hit that is missing for the reason ``why``."""
        self.missing[why] += 1
        listed = self.keys[why]
        if len(listed) < LISTED and key not in listed:
            listed.append(key)


class Comparer:
    """Asks both stores the same and explains every hit of ``source`` that ``store``, on ``table``, does not give."""

    def __init__(self, source: VectorStore, store: PgVectorStore, whereabouts: Whereabouts, table: VectorTable) -> None:
        self._source = source
        self._store = store
        self._whereabouts = whereabouts
        self._halved = table.storage == "halfvec"
        self._sign = -1 if store.distance == "l2" else 1

    def compare(self, queries: Sequence[Query], top_k: int) -> Comparison:
        """Compare the stores query by query. Rows that change meanwhile may be counted wrongly."""
        found = Comparison(len(queries), top_k)
        absent: dict[str, int] = {}
        for query in queries:
            theirs = self._source.query(query.vector, top_k=top_k, filter=query.filter)
            ours = self._store.query(query.vector, top_k=top_k, filter=query.filter)
            spelled = self._whereabouts.spelled([hit.key for hit in theirs])
            given = {hit.key for hit in ours}
            missing = [hit.key for hit in theirs if spelled.get(hit.key) not in given]
            found.hits += len(theirs)
            found.found += len(theirs) - len(missing)
            for key, why in self._explain(query, ours, missing, spelled, full=len(ours) == top_k).items():
                if why is Why.LOST:
                    absent[key] = absent.get(key, 0) + 1
                else:
                    found.count(why, key)
        self._look_elsewhere(absent, found)
        return found

    def _explain(
        self, query: Query, ours: Sequence[Hit], missing: Sequence[str], spelled: dict[str, str], *, full: bool
    ) -> dict[str, Why]:
        """Return why each of ``missing`` is; a key with no row in the scope is lost, until found in another scope."""
        if not missing:
            return {}
        keys = {key: spelled[key] for key in missing if key in spelled}
        here = self._whereabouts.here(list(keys.values()), query.filter)
        scores = self._store.scores(query.vector, list(here))
        last = self._sign * ours[-1].score if full else -np.inf
        reasons: dict[str, Why] = dict.fromkeys(missing, Why.LOST)
        for key, row in keys.items():
            if row not in here:
                continue
            if row not in scores:
                reasons[key] = Why.NO_VECTOR
            elif not here[row]:
                reasons[key] = Why.FILTERED
            else:
                nearer = self._sign * scores[row] - last
                reasons[key] = Why.RECALL if nearer > TIE else Why.TIE if nearer >= -TIE else Why.FARTHER
        farther = {key: keys[key] for key, why in reasons.items() if why is Why.FARTHER}
        return reasons | dict.fromkeys(self._differing(farther), Why.OTHER_VECTOR)

    def _differing(self, keys: dict[str, str]) -> list[str]:
        """Return those of ``keys``, by the source's spelling, whose vector here differs from the source's."""
        if not keys:
            return []
        theirs, ours = self._source.fetch(list(keys)), self._store.fetch(list(keys.values()))
        return [
            key
            for key, row in keys.items()
            if key in theirs and row in ours and not self._is_same(theirs[key], ours[row])
        ]

    def _is_same(self, theirs: Record, ours: Record) -> bool:
        held = theirs.vector.astype(np.float16).astype(np.float32) if self._halved else theirs.vector
        return np.array_equal(held, ours.vector)

    def _look_elsewhere(self, absent: dict[str, int], found: Comparison) -> None:
        spelled = self._whereabouts.spelled(list(absent))
        elsewhere = self._whereabouts.anywhere(list(spelled.values())) if spelled else set()
        for key, times in absent.items():
            why = Why.OTHER_SCOPE if spelled.get(key) in elsewhere else Why.LOST
            for _ in range(times):
                found.count(why, key)
