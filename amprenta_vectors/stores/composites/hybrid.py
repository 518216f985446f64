"""``VECTOR_MODE=hybrid``: both stores are asked, and their hits are joined."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any, Literal, TypeVar

from numpy.typing import ArrayLike

from amprenta_vectors.errors import ConfigError, TimedOut, TransientError
from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.composites.fallback import CALLERS_FAULT
from amprenta_vectors.stores.composites.late import distance_of
from amprenta_vectors.stores.daemons import DaemonPool
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore
from amprenta_vectors.stores.top_k import MAX_TOP_K

log = logging.getLogger(__name__)

Join = Literal["union", "intersection"]
Answer = TypeVar("Answer")
CALLS_AT_ONCE = 32
OVERSAMPLING = 4
"""Hits an intersection asks of each side for each hit wanted, so that hits just below one side's last still meet."""


class HybridStore:
    """Asks both stores at once, and joins their hits by key.

    A key that both found has the nearer of its two scores, and the primary's text and metadata. ``union``: the
    ``top_k`` nearest of all; if one side fails, the other answers alone, and that is logged. ``intersection``: only
    hits that both found; if one side fails, that is an error. A side that takes over ``timeout_seconds`` has failed.
    Scores of two distances cannot be compared, so a query raises `ConfigError` unless both stores have the same one.
    Writes go to the primary alone.
    """

    def __init__(self, primary: VectorStore, secondary: VectorStore, *, join: Join, timeout_seconds: float) -> None:
        self._primary = primary
        self._secondary = secondary
        self._join = join
        self._timeout_seconds = timeout_seconds
        # One pool a side: calls that hang on one side leave the other its threads.
        self._pools = tuple(DaemonPool(CALLS_AT_ONCE, f"hybrid-{side}") for side in ("primary", "secondary"))

    @property
    def name(self) -> str:
        """The names of both stores, and how they are joined: ``union of primary and secondary``."""
        return f"{self._join} of {self._primary.name} and {self._secondary.name}"

    @property
    def distance(self) -> Distance:
        """The distance both stores share."""
        return distance_of(self._primary, self._secondary)

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, nearest first."""
        self._check_comparable()
        asked = top_k if self._join == "union" else min(top_k * OVERSAMPLING, max(MAX_TOP_K, top_k))
        first, second = self._both(
            lambda store: store.query(vector, top_k=asked, filter=filter), either=self._join == "union"
        )
        # Once more: a side that was away until now may have been opened by this very query.
        self._check_comparable()
        return self._joined(first or [], second or [])[:top_k]

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the rows of ``keys`` by key, the primary's if both have one. Either side's failure is an error.

        Otherwise a row that only the failing side has would seem not to exist.
        """
        first, second = self._both(lambda store: store.fetch(keys), either=False)
        return {**(second or {}), **(first or {})}

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace rows of the primary; return how many."""
        return self._primary.upsert(records)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows of the primary."""
        self._primary.delete(keys)

    def count(self) -> int:
        """Return how many rows of the primary have a vector."""
        return self._primary.count()

    def close(self) -> None:
        """Close both stores, without waiting for a call that still hangs."""
        for pool in self._pools:
            pool.close()
        self._primary.close()
        self._secondary.close()

    def _check_comparable(self) -> None:
        try:
            one, other = self._primary.distance, self._secondary.distance
        except TransientError:
            # A side that was never there has no score to compare, and fails by itself.
            return
        if one != other:
            raise ConfigError(
                f"{self._primary.name} measures {one} and {self._secondary.name} {other}: their scores do not compare",
                hint="VECTOR_MODE=fallback, or give both stores the same distance",
            )

    def _both(self, call: Callable[[VectorStore], Answer], *, either: bool) -> tuple[Answer | None, Answer | None]:
        """Return what each side answers; with ``either``, None for a side that fails while the other does not."""
        deadline = time.monotonic() + self._timeout_seconds
        sides = (self._primary, self._secondary)
        running = [pool.submit(call, store) for pool, store in zip(self._pools, sides, strict=True)]
        (first, failure), (second, other_failure) = (
            self._outcome(store, each, deadline) for store, each in zip(sides, running, strict=True)
        )
        error = failure or other_failure
        if error is not None:
            if not either or (failure and other_failure) or isinstance(error, CALLERS_FAULT):
                raise error
            failed, other = sides if failure else sides[::-1]
            # The type and our own message: another library's may quote the query.
            log.warning("%s failed, %s answers alone: %s", failed.name, other.name, for_a_log(error))
        return first, second

    def _outcome(
        self, store: VectorStore, running: Future[Any], deadline: float
    ) -> tuple[Any | None, Exception | None]:
        try:
            return running.result(max(0.0, deadline - time.monotonic())), None
        except TookTooLong:
            running.cancel()
            took = f"{store.name} gave no answer in {self._timeout_seconds:g} s"
            return None, TimedOut(took, hint="raise VECTOR_TIMEOUT_SECONDS")
        except Exception as error:
            # Any failure of one side is what the other is there for.
            return None, error

    def _joined(self, first: Sequence[Hit], second: Sequence[Hit]) -> list[Hit]:
        nearness = -1 if self.distance == "l2" else 1
        of_first, of_second = ({hit.key: hit for hit in hits} for hits in (first, second))
        keys = of_first.keys() | of_second.keys() if self._join == "union" else of_first.keys() & of_second.keys()
        joined = []
        for key in keys:
            found = [hits[key] for hits in (of_first, of_second) if key in hits]
            score = max((hit.score for hit in found), key=lambda score: nearness * score)
            joined.append(Hit(key, score, found[0].text, found[0].metadata))
        return sorted(joined, key=lambda hit: (-nearness * hit.score, hit.key))
