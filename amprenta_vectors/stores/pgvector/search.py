"""A search and its answer, without the extra statements of an ORM or a driver."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from amprenta_vectors.pg.names import compose
from amprenta_vectors.stores.filters.language import Condition
from amprenta_vectors.stores.pgvector.search_settings import ITERATIVE_SCAN, SearchSettings
from amprenta_vectors.stores.pgvector.senders import Compiled, Sender
from amprenta_vectors.stores.pgvector.sql import Statements, to_text

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

    The settings of a search hold for it alone, and are safe behind a pooler: ``sender`` makes it one transaction. What
    one search finds comes from one statement, and so from one snapshot. A search, its repetition included, may take
    PostgreSQL ``timeout_seconds``.

    A connection that turns out to be lost is replaced, once: a search is safe to repeat.
    """

    def __init__(
        self,
        engine: sa.Engine,
        sender: Sender,
        statements: Statements,
        settings: SearchSettings,
        timeout_seconds: float | None,
    ) -> None:
        self._engine = engine
        self.statements = statements
        self.settings = settings
        self._timeout_seconds = timeout_seconds
        self._sender = sender
        self._statements: dict[tuple[str, bool], Compiled] = {}
        self._shapes: dict[Any, Any] = {}
        self._characters = 0

    def nearest(self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool) -> Found:
        """Return at most ``top_k`` rows in any order, fewer only if no more match. Raises the driver's errors."""
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
        settings, statement, values = self._message(vector, top_k, condition, exact)
        explained = replace(statement, text=_EXPLAIN + statement.text)
        ((plans,),) = self._ask(settings, explained, values)
        found: dict[str, Any] = plans[0]["Plan"]
        return found

    def _nearest(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool, spent: float = 0.0
    ) -> list[Row]:
        return with_distance(self._ask(*self._message(vector, top_k, condition, exact, spent)))

    def _message(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, exact: bool, spent: float = 0.0
    ) -> tuple[list[str], Compiled, Values]:
        statement = self._compiled(condition, exact)
        settings = [] if exact else self._index_settings(top_k)
        if self._timeout_seconds is not None:
            settings.append(_set_local("statement_timeout", to_ms(self._timeout_seconds - spent)))
        given = {"vector": to_text(vector), "top_k": top_k, "candidates": self.settings.candidates(top_k)}
        return settings, statement, {**statement.bound, **given}

    def _index_settings(self, top_k: int) -> list[str]:
        amounts = {"hnsw": ("ef_search", self.settings.kept(top_k)), "ivfflat": ("probes", self.settings.lists_read)}
        return [
            _set_local(f"{method}.{name}", value)
            for method in sorted(self.settings.methods)
            for name, value in (("iterative_scan", ITERATIVE_SCAN), amounts[method])
        ]

    def _compiled(self, condition: Condition | None, exact: bool) -> Compiled:
        """Return the statement in the driver's spelling, and the values bound in it beside vector and number."""
        # Not the condition itself: to Python, a field that is true equals a field that is 1.
        key = (repr(condition), exact)
        # Looked up once: another thread may clear the cache at any moment.
        found = self._statements.get(key)
        if found is not None:
            return found
        if len(key[0]) > _LARGEST_KEPT:
            statement = self.statements.nearest(condition, by=None if exact else self.settings.storage)
            return _to_compiled(statement.compile(dialect=self._engine.dialect))
        self._characters += len(key[0])
        if len(self._statements) >= _MOST_KEPT or self._characters > _MOST_CHARACTERS:
            self._characters = len(key[0])
            self._statements.clear()
            self._shapes.clear()
        found = self._statements[key] = self._compiled_by_shape(condition, exact)
        return found

    def _compiled_by_shape(self, condition: Condition | None, exact: bool) -> Compiled:
        """Compile once for each shape of a filter, which takes ten times as long as finding its values."""
        statement = self.statements.nearest(condition, by=None if exact else self.settings.storage)
        shape = statement._generate_cache_key()
        assert shape is not None  # noqa: S101 - all that it is made of has one
        compiled = self._shapes.get(shape.key)
        if compiled is None:
            if len(self._shapes) >= _MOST_KEPT:
                self._shapes.clear()
            compiled = statement.compile(dialect=self._engine.dialect, cache_key=shape)
            self._shapes[shape.key] = compiled
        return _to_compiled(compiled, shape.bindparams)

    def _ask(self, settings: Sequence[str], statement: Compiled, values: Values) -> list[Any]:
        rows = self._ask_once(settings, statement, values, may_be_lost=True)
        if rows is None:
            # Whatever lost this connection, a restart say, has most likely lost those that wait in the pool.
            self._engine.dispose()
            rows = self._ask_once(settings, statement, values, may_be_lost=False)
        return rows or []

    def _ask_once(
        self, settings: Sequence[str], statement: Compiled, values: Values, *, may_be_lost: bool
    ) -> list[Any] | None:
        """Return the rows; None if the connection was lost and ``may_be_lost``."""
        pooled = self._engine.raw_connection()
        driver: Any = pooled.driver_connection
        # A search that was cancelled midway leaves its connection in no known state.
        usable = False
        try:
            rows: list[Any] | None = self._sender.ask(driver, settings, statement, values)
            usable = True
        except self._sender.errors:
            usable = not self._sender.is_closed(driver)
            if usable or not may_be_lost:
                raise
            rows = None
        finally:
            if not usable:
                pooled.invalidate()
            pooled.close()
        return rows


def _set_local(name: str, value: int | str) -> str:
    return compose("SET LOCAL {name} = {value}", name=name, value=str(value))


def _to_compiled(compiled: Any, bindparams: Any = None) -> Compiled:
    bound = compiled.construct_params(extracted_parameters=bindparams, _check=False)
    return Compiled(str(compiled), tuple(compiled.positiontup or ()), bound)


def to_ms(seconds: float) -> int:
    """Return a time limit in milliseconds, at least 1: PostgreSQL takes 0 for no limit."""
    return max(1, round(seconds * 1000))


def with_distance(rows: Iterable[Any]) -> list[Any]:
    """Return the rows whose second value, their distance, is not NaN.

    A zero vector has no distance under cosine: a scan gives NaN for it, an index does not give it.
    """
    return [row for row in rows if not math.isnan(row[1])]
