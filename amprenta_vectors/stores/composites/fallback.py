"""``VECTOR_MODE=fallback``: the secondary answers when the primary fails or takes too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as TookTooLong
from typing import TypeVar

from numpy.typing import ArrayLike

from amprenta_vectors.errors import ConfigError, DimensionMismatch, FilterError, FilterUnsupported
from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.composites.breaker import Breaker
from amprenta_vectors.stores.composites.late import distance_of
from amprenta_vectors.stores.daemons import DaemonPool
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 32
CALLERS_FAULT = (ConfigError, FilterError, DimensionMismatch)
"""Errors in the question itself, which would be errors in either store."""

Answer = TypeVar("Answer")


class FallbackStore:
    """Reads from ``primary``, or from ``secondary`` if the primary fails or takes over ``timeout_seconds``.

    After some failures in a row ``breaker`` opens, and the primary is not asked for a while; its ``state`` is for
    monitoring the application. Writes go to the primary alone and fail with it: nothing is written where the primary
    would never learn of it.
    """

    def __init__(
        self, primary: VectorStore, secondary: VectorStore, *, timeout_seconds: float, breaker: Breaker | None = None
    ) -> None:
        self.breaker = breaker or Breaker()
        self._primary = primary
        self._secondary = secondary
        self._timeout_seconds = timeout_seconds
        self._pool = DaemonPool(CALLS_AT_ONCE, "primary")

    @property
    def name(self) -> str:
        """The names of both stores: ``primary, else secondary``."""
        return f"{self._primary.name}, else {self._secondary.name}"

    @property
    def distance(self) -> Distance:
        """The primary's distance; while it was never there, the secondary's."""
        return distance_of(self._primary, self._secondary)

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, nearest first, from the store that answers."""
        return self._read(lambda store: store.query(vector, top_k=top_k, filter=filter))

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the rows of ``keys`` by key, from the store that answers."""
        return self._read(lambda store: store.fetch(keys))

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace rows of the primary; return how many."""
        return self._primary.upsert(records)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows of the primary."""
        self._primary.delete(keys)

    def count(self) -> int:
        """Return how many rows have a vector, in the store that answers."""
        return self._read(lambda store: store.count())

    def close(self) -> None:
        """Close both stores, without waiting for a call that still hangs."""
        self._pool.close()
        self._primary.close()
        self._secondary.close()

    def _read(self, call: Callable[[VectorStore], Answer]) -> Answer:
        if not self.breaker.allows():
            return call(self._secondary)
        try:
            answer = self._ask_primary(call)
        except CALLERS_FAULT:
            self.breaker.succeeded()
            raise
        except FilterUnsupported as error:
            # The primary is well: only what was asked is not for it.
            self.breaker.succeeded()
            why = for_a_log(error)
            log.warning("%s cannot be asked, %s answers: %s", self._primary.name, self._secondary.name, why)
            return call(self._secondary)
        except Exception as error:
            # Any failure of the primary is what the secondary is there for.
            reason = f"no answer in {self._timeout_seconds} s" if isinstance(error, TookTooLong) else for_a_log(error)
            opened = self.breaker.failed()
            log.warning(
                "%s failed, %s answers%s: %s",
                self._primary.name,
                self._secondary.name,
                "; circuit open" if opened else "",
                reason,
            )
            return call(self._secondary)
        except BaseException:
            # Interrupted while it waited, by Ctrl-C say: the next call tries the primary.
            self.breaker.released()
            raise
        self.breaker.succeeded()
        return answer

    def _ask_primary(self, call: Callable[[VectorStore], Answer]) -> Answer:
        running = self._pool.submit(call, self._primary)
        try:
            return running.result(self._timeout_seconds)
        except BaseException:
            running.cancel()
            raise
