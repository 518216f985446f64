"""``VECTOR_MODE=hybrid``: both stores are asked, and their hits joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from numpy.typing import ArrayLike

from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.schema.vector_table import Distance
from amprenta_vectors.stores.composites.fallback import CALLERS_FAULT
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore
from amprenta_vectors.stores.vectors import MAX_TOP_K

log = logging.getLogger(__name__)

Join = Literal["union", "intersection"]
CALLS_AT_ONCE = 32
OVERSAMPLING = 4
"""An intersection asks each side for so many times ``top_k``: hits just below one side's last place still meet."""


class HybridStore:
    """Asks both stores at once, and joins their hits by key.

    A key that both found has the nearer of its two scores, and the primary's text and metadata. ``union``: the
    ``top_k`` nearest of all; where one side fails, the other answers alone, and that is logged. ``intersection``: only
    what both found; where one side fails, that is an error. Scores of two distances cannot be compared, so both stores
    must have the same one: `ConfigError`. Writes go to the primary alone.
    """

    def __init__(self, primary: VectorStore, secondary: VectorStore, *, join: Join) -> None:
        self._primary = primary
        self._secondary = secondary
        self._join = join
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="hybrid")

    @property
    def name(self) -> str:
        """``union of primary and secondary``."""
        return f"{self._join} of {self._primary.name} and {self._secondary.name}"

    @property
    def distance(self) -> Distance:
        """That of both."""
        return self._primary.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """The ``top_k`` nearest rows that match ``filter``, nearest first."""
        self._check_comparable()
        asked = top_k if self._join == "union" else min(top_k * OVERSAMPLING, max(MAX_TOP_K, top_k))
        beside = self._pool.submit(self._secondary.query, vector, top_k=asked, filter=filter)
        first = self._of_primary(vector, asked, filter, beside)
        second = self._of_secondary(beside, first)
        return self._joined(first or [], second or [])[:top_k]

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """The rows of ``keys`` by key; the primary's where both have one."""
        return {**self._secondary.fetch(keys), **self._primary.fetch(keys)}

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace rows of the primary."""
        return self._primary.upsert(records)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows of the primary."""
        self._primary.delete(keys)

    def count(self) -> int:
        """How many rows of the primary have a vector."""
        return self._primary.count()

    def close(self) -> None:
        """Close both."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._primary.close()
        self._secondary.close()

    def _check_comparable(self) -> None:
        one, other = self._primary.distance, self._secondary.distance
        if one != other:
            raise ConfigError(
                f"{self._primary.name} measures {one} and {self._secondary.name} {other}: their scores do not compare",
                hint="VECTOR_MODE=fallback, or give both stores the same distance",
            )

    def _of_primary(
        self, vector: ArrayLike, top_k: int, filter: Filter | None, beside: Future[list[Hit]]
    ) -> list[Hit] | None:
        try:
            return self._primary.query(vector, top_k=top_k, filter=filter)
        except CALLERS_FAULT:
            beside.cancel()
            raise
        except AmprentaError as error:
            if self._join == "intersection":
                raise
            log.warning("%s failed, %s answers alone: %s", self._primary.name, self._secondary.name, error.message)
            return None

    def _of_secondary(self, beside: Future[list[Hit]], first: list[Hit] | None) -> list[Hit] | None:
        try:
            return beside.result()
        except AmprentaError as error:
            if self._join == "intersection" or first is None:
                raise
            log.warning("%s failed, %s answers alone: %s", self._secondary.name, self._primary.name, error.message)
            return None

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
