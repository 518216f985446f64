"""A side of two stores that was away when it was to be opened: it is opened once it answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from numpy.typing import ArrayLike

from amprenta_vectors.errors import AmprentaError, TransientError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Seconds between two attempts to open the store; calls in between fail with the last attempt's error."""


def open_late(name: str, open_store: Callable[[], VectorStore]) -> VectorStore:
    """Open a store, or return a `LateStore` in its place if it is away. What waiting cannot mend is raised."""
    try:
        return open_store()
    except TransientError as error:
        log.warning("%s is opened once it answers: %s", name, error.message)
        return LateStore(name, open_store, error)


def distance_of(primary: VectorStore, secondary: VectorStore) -> Distance:
    """Return the primary's distance; while it was never there, the secondary's, which answers in its place."""
    try:
        return primary.distance
    except TransientError:
        return secondary.distance


class LateStore:
    """Every call opens the store that ``open_store`` opens, if it is not open, or raises why it cannot be opened."""

    def __init__(self, name: str, open_store: Callable[[], VectorStore], error: TransientError) -> None:
        self.name = name
        self._open_store = open_store
        self._why, self._hint = error.message, error.hint
        self._tried_at = time.monotonic()
        self._opening = threading.Lock()
        self._opened: VectorStore | None = None
        self._closed = False

    @property
    def distance(self) -> Distance:
        """The store's distance. Raises `TransientError` while it was never there; only a call opens it."""
        if self._opened is None:
            raise self._away()
        return self._opened.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the store's answer."""
        return self._store().query(vector, top_k=top_k, filter=filter)

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the store's rows."""
        return self._store().fetch(keys)

    def upsert(self, records: Sequence[Record]) -> int:
        """Write to the store."""
        return self._store().upsert(records)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete from the store."""
        self._store().delete(keys)

    def count(self) -> int:
        """Return the store's count."""
        return self._store().count()

    def close(self) -> None:
        """Close the store, if it was ever opened."""
        self._closed = True
        # One that is being opened is closed by whoever opens it.
        if self._opened is not None:
            self._opened.close()

    def _away(self) -> TransientError:
        # Anew each time: one that is raised again holds the frames of whoever got it before.
        return TransientError(f"{self.name} is not open: {self._why}", hint=self._hint)

    def _store(self) -> VectorStore:
        if self._opened is not None:
            return self._opened
        # While one thread opens it, others do not wait.
        if not self._opening.acquire(blocking=False):
            raise self._away()
        try:
            return self._opened or self._try_to_open()
        finally:
            self._opening.release()

    def _try_to_open(self) -> VectorStore:
        if self._closed or time.monotonic() < self._tried_at + RETRY_SECONDS:
            raise self._away()
        try:
            opened = self._open_store()
        except AmprentaError as error:
            # The other store answers for this one, whatever it lacks.
            self._why, self._hint = error.message, error.hint
            raise self._away() from error
        finally:
            self._tried_at = time.monotonic()
        self._opened = opened
        if self._closed:
            opened.close()
        log.warning("%s answers, and is open", self.name)
        return opened
