"""A search as one message to the server and one answer, without the extra statements of an ORM or a driver."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg2
import sqlalchemy as sa
from numpy.typing import NDArray

from amprenta_vectors.pg.types import IndexMethod
from amprenta_vectors.stores.filters.language import Condition
from amprenta_vectors.stores.pgvector.search_settings import ITERATIVE_SCAN, SearchSettings
from amprenta_vectors.stores.pgvector.sql import Statements, to_text

_INDEX_SETTINGS: dict[IndexMethod, str] = {
    "hnsw": "SET LOCAL hnsw.iterative_scan = %(iterative_scan)s; SET LOCAL hnsw.ef_search = %(ef_search)s; ",
    "ivfflat": "SET LOCAL ivfflat.iterative_scan = %(iterative_scan)s; SET LOCAL ivfflat.probes = %(probes)s; ",
}
_TIME_OUT = "SET LOCAL statement_timeout = %(timeout_ms)s; "
_EXPLAIN = "EXPLAIN (FORMAT JSON) "

_MOST_KEPT = 256
_LARGEST_KEPT = 4096
_MOST_CHARACTERS = 128 * 1024
"""Filters whose statements are kept: so many, none longer than that when written down, and so many characters in all. A
compiled statement takes some hundred times as many bytes."""

Row = tuple[str, float, str | None, Mapping[str, Any] | None]
"""One row of an answer: key, distance, text and metadata."""
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """The rows of an answer.

    ``first`` is how many the first search gave; if they were too few, the search was ``repeated`` exactly.
    """

    rows: list[Row]
    first: int
    repeated: bool


class Searcher:
    """The searches of one table and scope, on connections of ``engine``.

    Statements that are sent together, without BEGIN, are one transaction
    (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT). So the settings of a
    search hold for it alone, cost no round trip, and are safe behind a pooler. What one search finds comes from one
    statement, and so from one snapshot. A search, its repetition included, may take PostgreSQL ``timeout_seconds``.

    A connection that turns out to be lost is replaced, once: a search is safe to repeat.
    """

    def __init__(
        self,
        engine: sa.Engine,
        statements: Statements,
        settings: SearchSettings,
        timeout_seconds: float | None,
    ) -> None:
        self._engine = engine
        self.statements = statements
        self.settings = settings
        self._index_settings = "".join(_INDEX_SETTINGS[method] for method in sorted(settings.methods))
        self._timeout_seconds = timeout_seconds
        self._texts: dict[tuple[str, bool], tuple[str, Values]] = {}
        self._compiled: dict[Any, Any] = {}
        self._characters = 0

    def nearest(self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool) -> Found:
        """Return at most ``top_k`` rows in any order, fewer only if no more match. Raises psycopg2's errors."""
        started = time.monotonic()
        rows = self._nearest(vector, top_k, condition, exact=exact)
        if exact or len(rows) == top_k:
            return Found(rows, len(rows), repeated=False)
        # All rows anew, not only the missing ones, so that the answer is of one snapshot.
        spent = time.monotonic() - started
        return Found(self._nearest(vector, top_k, condition, exact=True, spent=spent), len(rows), repeated=True)

    def explain(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool
    ) -> dict[str, Any]:
        """Return the plan of the same search, as ``EXPLAIN (FORMAT JSON)`` gives it."""
        settings, text, values = self._message(vector, top_k, condition, exact)
        ((plans,),) = self._ask(settings + _EXPLAIN + text, values)
        found: dict[str, Any] = plans[0]["Plan"]
        return found

    def _nearest(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool, spent: float = 0.0
    ) -> list[Row]:
        settings, text, values = self._message(vector, top_k, condition, exact, spent)
        return with_distance(self._ask(settings + text, values))

    def _message(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, exact: bool, spent: float = 0.0
    ) -> tuple[str, str, Values]:
        text, bound = self._text(condition, exact)
        limits = {} if self._timeout_seconds is None else {"timeout_ms": to_ms(self._timeout_seconds - spent)}
        settings = ("" if exact else self._index_settings) + (_TIME_OUT if limits else "")
        values: dict[str, Any] = {
            "iterative_scan": ITERATIVE_SCAN,
            "ef_search": self.settings.kept(top_k),
            "probes": self.settings.lists_read,
            "vector": to_text(vector),
            "top_k": top_k,
            "candidates": self.settings.candidates(top_k),
        }
        return settings, text, {**bound, **limits, **values}

    def _text(self, condition: Condition | None, exact: bool) -> tuple[str, Values]:
        """Return the statement in psycopg2's spelling, and the values bound in it beside vector and number."""
        # Not the condition itself: to Python, a field that is true equals a field that is 1.
        key = (repr(condition), exact)
        # Looked up once: another thread may clear the cache at any moment.
        found = self._texts.get(key)
        if found is not None:
            return found
        if len(key[0]) > _LARGEST_KEPT:
            statement = self.statements.nearest(condition, by=None if exact else self.settings.storage)
            compiled = statement.compile(dialect=self._engine.dialect)
            return str(compiled), compiled.construct_params(_check=False)
        self._characters += len(key[0])
        if len(self._texts) >= _MOST_KEPT or self._characters > _MOST_CHARACTERS:
            self._characters = len(key[0])
            self._texts.clear()
            self._compiled.clear()
        found = self._texts[key] = self._compiled_text(condition, exact)
        return found

    def _compiled_text(self, condition: Condition | None, exact: bool) -> tuple[str, Values]:
        """Compile once for each shape of a filter, which takes ten times as long as finding its values."""
        statement = self.statements.nearest(condition, by=None if exact else self.settings.storage)
        shape = statement._generate_cache_key()
        assert shape is not None  # noqa: S101 - all that it is made of has one
        compiled = self._compiled.get(shape.key)
        if compiled is None:
            if len(self._compiled) >= _MOST_KEPT:
                self._compiled.clear()
            compiled = statement.compile(dialect=self._engine.dialect, cache_key=shape)
            self._compiled[shape.key] = compiled
        return str(compiled), compiled.construct_params(extracted_parameters=shape.bindparams, _check=False)

    def _ask(self, message: str, values: Values) -> list[Any]:
        rows = self._ask_once(message, values, may_be_lost=True)
        if rows is None:
            # Whatever lost this connection, a restart say, has most likely lost those that wait in the pool.
            self._engine.dispose()
            rows = self._ask_once(message, values, may_be_lost=False)
        return rows or []

    def _ask_once(self, message: str, values: Values, *, may_be_lost: bool) -> list[Any] | None:
        """Return the rows; None if the connection was lost and ``may_be_lost``."""
        pooled = self._engine.raw_connection()
        driver: Any = pooled.driver_connection
        before = driver.autocommit
        try:
            # A snapshot of this store leaves them set, and psycopg2 would then set and reset them around autocommit: a
            # round trip each, and for the session.
            driver.set_session(isolation_level="DEFAULT", readonly="DEFAULT")
            driver.autocommit = True
            with driver.cursor() as cursor:
                cursor.execute(message, values)
                return list(cursor.fetchall())
        except psycopg2.Error:
            if not (driver.closed and may_be_lost):
                raise
            return None
        finally:
            if driver.closed:
                pooled.invalidate()
            else:
                driver.autocommit = before
            pooled.close()


def to_ms(seconds: float) -> int:
    """Return a time limit in milliseconds, at least 1: PostgreSQL takes 0 for no limit."""
    return max(1, round(seconds * 1000))


def with_distance(rows: Iterable[Any]) -> list[Any]:
    """Return the rows whose second value, their distance, is not NaN.

    A zero vector has no distance under cosine: a scan gives NaN for it, an index does not give it.
    """
    return [row for row in rows if not math.isnan(row[1])]
