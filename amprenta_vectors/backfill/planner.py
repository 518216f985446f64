"""Cutting a run's keys into batches: from the source's list, or from rows without an embedding."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.errors import LeaseLost
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import TokenRefused

KEYSET_PAGE = 10_000


class Keys(Protocol):
    """Where a run's keys are listed: a source, or `EmptyRows`."""

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Pages of keys and the token of the page after each."""
        ...


class EmptyRows:
    """The source keys of rows without an embedding, in the order of the table's own unique index.

    The token is the last row's key as JSON: a keyset, so that rows filled meanwhile shift nothing.
    """

    def __init__(self, engine: Engine, table: VectorTable, scope: Mapping[str, str], key_map: KeyMap) -> None:
        self._engine = engine
        self._table = table
        self._scope = scope
        self._key_map = key_map

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Pages of at most 10,000 keys; each is one short statement, so that no snapshot grows old."""
        last: tuple[str, ...] | None = tuple(json.loads(token)) if token else None
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(self._page(last)).all()
            last = _texts(rows[-1]) if rows else None
            following = json.dumps(last) if len(rows) == KEYSET_PAGE else None
            # Several rows of one source key stand together, because the key is what they are ordered by.
            yield list(dict.fromkeys(self._key_map.to_source(_texts(row)) for row in rows)), following
            if following is None:
                return

    def _page(self, last: tuple[str, ...] | None) -> sa.Select[Any]:
        table = self._table
        types = {name: NamedType(type_name) for name, type_name in table.column_types.items()}
        keys: list[sa.ColumnElement[Any]] = [sa.column(name) for name in table.key]
        columns: list[Any] = [sa.cast(key, sa.Text) for key in keys]
        statement = (
            sa.select(*columns)
            .select_from(sa.table(table.table, schema=table.schema))
            .where(sa.column(table.embedding).is_(None))
            .where(*(sa.column(name) == sa.cast(self._scope[name], types[name]) for name in table.scope))
            .order_by(*(sa.column(name) for name in table.key))
            .limit(KEYSET_PAGE)
        )
        if last is not None:
            after = [sa.cast(value, types[name]) for name, value in zip(table.key, last, strict=True)]
            statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*after))
        return statement


def count_empty(connection: Connection, table: VectorTable, scope: Mapping[str, str]) -> int:
    """How many rows of the scope have no embedding."""
    statement = (
        sa.select(sa.func.count())
        .select_from(sa.table(table.table, schema=table.schema))
        .where(sa.column(table.embedding).is_(None))
        .where(*(sa.column(n) == sa.cast(scope[n], NamedType(table.column_types[n])) for n in table.scope))
    )
    return connection.execute(statement).scalar_one()


class Planner:
    """Lists keys and stores them as batches, each with the token to go on from. One process of a run at a time."""

    def __init__(
        self,
        engine: Engine,
        run: progress.Run,
        keys: Keys,
        owner: str,
        *,
        batch_size: int,
        lease_seconds: float,
        retry: Retry,
        stop: threading.Event,
    ) -> None:
        self._engine = engine
        self._run = run
        self._keys = keys
        self._owner = owner
        self._batch_size = batch_size
        self._lease_seconds = lease_seconds
        self._retry = retry
        self._stop = stop

    def run(self) -> None:
        """Plan until every key is in a batch, another process plans, or ``stop`` is set."""
        while not self._stop.is_set():
            planning, token = self._retry.database("planning", self._claim)
            if not planning:
                if self._retry.database("planning", self._planned):
                    return
                self._stop.wait(1.0)
                continue
            try:
                if self._plan(token):
                    return
            except TokenRefused:
                self._retry.database("planning", self._forget)
            except LeaseLost:
                continue

    def _claim(self) -> tuple[bool, str | None]:
        with self._engine.begin() as connection:
            return progress.claim_plan(connection, self._run.id, self._owner, self._lease_seconds)

    def _planned(self) -> bool:
        with self._engine.connect() as connection:
            run = progress.load_run(connection, self._run.id)
        return run.planned_at is not None or run.state != "running"

    def _forget(self) -> None:
        with self._engine.begin() as connection:
            progress.forget_token(connection, self._run.id, self._owner)

    def _plan(self, token: str | None) -> bool:
        """Store batches from ``token`` on; returns whether the plan is complete."""
        with self._engine.connect() as connection:
            planned = progress.load_run(connection, self._run.id).planned_keys
        limit = self._run.row_limit
        waiting: list[str] = []
        while not self._stop.is_set():
            keys, token = self._retry(partial(first_page, self._keys, token))
            waiting.extend(keys if limit is None else keys[: limit - planned - len(waiting)])
            last = token is None or (limit is not None and planned + len(waiting) >= limit)
            if waiting and (last or len(waiting) >= self._batch_size):
                self._retry.database("planning", partial(self._store, waiting, token))
                planned += len(waiting)
                waiting = []
            if last:
                self._retry.database("planning", self._finish)
                return True
        return False

    def _store(self, keys: Sequence[str], token: str | None) -> None:
        """Cut into even batches; all of them and the token are one transaction, so that none is listed twice."""
        batches = -(-len(keys) // self._batch_size)
        size = -(-len(keys) // batches)
        with self._engine.begin() as connection:
            for start in range(0, len(keys), size):
                progress.add_batch(connection, self._run.id, self._owner, keys[start : start + size], token)

    def _finish(self) -> None:
        with self._engine.begin() as connection:
            progress.finish_plan(connection, self._run.id, self._owner)


def _texts(row: sa.Row[Any]) -> tuple[str, ...]:
    return tuple(map(str, row))


def first_page(keys: Keys, token: str | None) -> tuple[Sequence[str], str | None]:
    """One page after ``token`` and the token of the next; a step that can be tried again by itself."""
    return next(iter(keys.iter_keys(token)))
