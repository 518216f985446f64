"""``VECTOR_MODE=shadow``: the primary answers; the secondary is asked beside it, and the comparison is recorded."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.agreement import Agreement, agreement
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore

log = logging.getLogger(__name__)

THREADS = 2
MOST_WAITING = 64
"""Queries that may wait for the secondary; those that come while so many wait are counted and not compared."""
CLOSING_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Asked:
    """A query that was answered; ``vector`` is ``(dimension,)`` float32, empty where only the ``text`` is known."""

    vector: NDArray[np.float32]
    top_k: int
    filter: Filter | None
    hits: list[Hit]
    primary_ms: float
    text: str = ""


@dataclass(frozen=True)
class Answered:
    """The secondary's answer to the same query: how far it agrees, or an error."""

    secondary_ms: float
    agreement: Agreement | None = None
    error: str | None = None


class Shadowing:
    """Asks a second time, in threads, what was answered, and records how far the answers agree.

    ``ask`` gives the second answer. Whatever it does, hang, fail or answer garbage, no caller notices.
    """

    def __init__(self, ask: Callable[[Asked], list[Hit]], record: ShadowLog) -> None:
        self.dropped = 0
        """Queries that were not compared, because the second answer was too slow for them."""
        self._dropped_kept = 0
        self._counting = threading.Lock()
        self._ask = ask
        self._record = record
        self._waiting: queue.Queue[Asked] = queue.Queue(MOST_WAITING)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"shadow-{i}", daemon=True) for i in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def offer(self, asked: Asked) -> None:
        """Queue a query for its second answer, unless too many wait."""
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            with self._counting:
                self.dropped += 1

    def close(self) -> None:
        """End the threads, two seconds given for queries that wait."""
        deadline = time.monotonic() + CLOSING_SECONDS
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        self._closing.set()

    def close_record(self) -> None:
        """Close the record's connections."""
        self._record.close()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                asked = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                answered = self._compare(asked)
                self._record.keep(asked, answered, self._dropped_since())
            except Exception as error:
                log.warning("a shadow query was not kept: %s", for_a_log(error))
            finally:
                self._waiting.task_done()

    def _dropped_since(self) -> int:
        """Return how many queries were dropped since the last call."""
        with self._counting:
            dropped = self.dropped - self._dropped_kept
            self._dropped_kept += dropped
        return dropped

    def _compare(self, asked: Asked) -> Answered:
        start = time.perf_counter()
        try:
            hits = self._ask(asked)
            taken = (time.perf_counter() - start) * 1000
            return Answered(taken, agreement(asked.hits, hits))
        except Exception as error:
            # The type and our own message: another library's may quote the query.
            return Answered((time.perf_counter() - start) * 1000, error=for_a_log(error))


class ShadowStore:
    """Sends every call to ``primary`` alone, at its own speed; each query is then sent to ``secondary`` in a thread.

    ``record`` keeps the comparison.
    """

    def __init__(self, primary: VectorStore, secondary: VectorStore, record: ShadowLog) -> None:
        self._primary = primary
        self._secondary = secondary
        self._shadowing = Shadowing(self._ask_secondary, record)

    @property
    def dropped(self) -> int:
        """Queries that were not compared, because the secondary was too slow for them."""
        return self._shadowing.dropped

    @property
    def name(self) -> str:
        """The names of both stores: ``primary, shadowed by secondary``."""
        return f"{self._primary.name}, shadowed by {self._secondary.name}"

    @property
    def distance(self) -> Distance:
        """The primary's distance."""
        return self._primary.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the primary's answer, and queue the query for the secondary."""
        start = time.perf_counter()
        hits = self._primary.query(vector, top_k=top_k, filter=filter)
        taken = (time.perf_counter() - start) * 1000
        self._shadowing.offer(Asked(np.array(vector, dtype=np.float32), top_k, filter, list(hits), taken))
        return hits

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the primary's rows."""
        return self._primary.fetch(keys)

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace rows of the primary; return how many."""
        return self._primary.upsert(records)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows of the primary."""
        self._primary.delete(keys)

    def count(self) -> int:
        """Return the primary's count."""
        return self._primary.count()

    def close(self) -> None:
        """Close both stores; the secondary is given two seconds for queries that wait."""
        self._shadowing.close()
        self._primary.close()
        self._secondary.close()
        self._shadowing.close_record()

    def _ask_secondary(self, asked: Asked) -> list[Hit]:
        return self._secondary.query(asked.vector, top_k=asked.top_k, filter=asked.filter)


class ShadowLog:
    """Keeps comparisons in ``shadow_query``, with the query's vector and never its text. Disposes of ``engine``."""

    def __init__(self, engine: sa.Engine, primary: str, secondary: str) -> None:
        self._engine = engine
        self._primary = primary
        self._secondary = secondary

    def keep(self, asked: Asked, answered: Answered, dropped: int) -> None:
        """Store one comparison, and how many queries before it were not compared."""
        found = answered.agreement
        with self._engine.begin() as connection:
            connection.execute(
                _INSERT,
                {
                    "primary": self._primary,
                    "secondary": self._secondary,
                    "query": asked.vector.tolist(),
                    "top_k": asked.top_k,
                    "filter": json.dumps(dict(asked.filter)) if asked.filter else None,
                    "hits": len(asked.hits),
                    "primary_ms": asked.primary_ms,
                    "secondary_ms": answered.secondary_ms,
                    "overlap": found.overlap if found else None,
                    "rank_agreement": found.rank_agreement if found else None,
                    "score_drift": found.score_drift if found else None,
                    "missing": list(found.missing) if found else [],
                    "error": answered.error,
                    "dropped": dropped,
                },
            )

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


_INSERT = sa.text("""
    INSERT INTO shadow_query (
        primary_store, secondary_store, query, top_k, filter, hits, primary_ms, secondary_ms, overlap, rank_agreement,
        score_drift, missing, error, dropped
    ) VALUES (
        :primary, :secondary, :query, :top_k, CAST(:filter AS jsonb), :hits, :primary_ms, :secondary_ms, :overlap,
        :rank_agreement, :score_drift, CAST(:missing AS text[]), :error, :dropped
    )
""")
