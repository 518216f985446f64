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
from amprenta_vectors.backfill.progress import Plan
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.states import RunState
from amprenta_vectors.errors import LeaseLost, SourceError
from amprenta_vectors.schema.expressions import in_scope, to_clause, to_column_value
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import TokenRefused

KEYSET_PAGE = 10_000
POLL_SECONDS = 1.0
MOST_REFUSALS = 5
"""Times that a listing starts over in one process before its source is taken to be broken."""


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
        target = to_clause(table)
        keys = [target.c[name] for name in table.key]
        columns: list[Any] = [sa.cast(key, sa.Text) for key in keys]
        statement = (
            sa.select(*columns)
            .where(target.c[table.embedding].is_(None), *in_scope(table, target, self._scope))
            .order_by(*keys)
            .limit(KEYSET_PAGE)
        )
        if last is not None:
            after = [to_column_value(table, name, value) for name, value in zip(table.key, last, strict=True)]
            statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*after))
        return statement


def count_empty(connection: Connection, table: VectorTable, scope: Mapping[str, str]) -> int:
    """How many rows of the scope have no embedding."""
    target = to_clause(table)
    empty = target.c[table.embedding].is_(None)
    statement = sa.select(sa.func.count()).select_from(target).where(empty, *in_scope(table, target, scope))
    return connection.execute(statement).scalar_one()


def has_empty(connection: Connection, table: VectorTable, scope: Mapping[str, str]) -> bool:
    """Whether any row of the scope has no embedding."""
    target = to_clause(table)
    empty = sa.select(sa.literal(1)).select_from(target).where(target.c[table.embedding].is_(None))
    return connection.execute(empty.where(*in_scope(table, target, scope)).limit(1)).first() is not None


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
        """Plan until every key is in a batch, another process plans, or ``stop`` is set.

        Raises `SourceError` where the source keeps refusing the tokens that it gave.
        """
        refusals = 0
        while not self._stop.is_set():
            plan = self._retry.database("planning", self._claim)
            if plan is None:
                if not self._retry.database("planning", self._unplanned):
                    return
                self._stop.wait(POLL_SECONDS)
                continue
            try:
                self._extend(plan)
            except TokenRefused as error:
                refusals += 1
                if refusals > MOST_REFUSALS:
                    raise SourceError(f"the source refuses its own page tokens: {error}") from error
                self._retry.database("planning", self._forget)
            except LeaseLost:
                continue

    def _claim(self) -> Plan | None:
        with progress.transaction(self._engine) as connection:
            return progress.claim_plan(connection, self._run.id, self._owner, self._lease_seconds)

    def _unplanned(self) -> bool:
        with progress.transaction(self._engine) as connection:
            run = progress.load_run(connection, self._run.id)
        return run.planned_at is None and run.state == RunState.RUNNING

    def _forget(self) -> None:
        with progress.transaction(self._engine) as connection:
            progress.forget_token(connection, self._run.id, self._owner)

    def _extend(self, plan: Plan) -> None:
        """Store batches from where ``plan`` stands until it is complete or ``stop`` is set."""
        limit = self._run.row_limit
        token, complete = plan.token, False
        waiting: list[str] = []
        while not complete and not self._stop.is_set():
            keys, token = self._retry.database("listing keys", partial(first_page, self._keys, token))
            waiting.extend(keys if limit is None else keys[: limit - plan.planned_keys - len(waiting)])
            complete = token is None or (limit is not None and plan.planned_keys + len(waiting) >= limit)
            if complete or len(waiting) >= self._batch_size:
                plan = self._retry.database("planning", partial(self._store, plan, waiting, token, complete))
                waiting = []

    def _store(self, plan: Plan, keys: Sequence[str], token: str | None, complete: bool) -> Plan:
        """Cut into even batches; all of them and the token are one transaction, so that none is listed twice."""
        batches = -(-len(keys) // self._batch_size)
        size = -(-len(keys) // batches) if keys else 1
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        with progress.transaction(self._engine) as connection:
            return progress.extend_plan(connection, self._run.id, self._owner, plan, parts, token, complete=complete)


def _texts(row: sa.Row[Any]) -> tuple[str, ...]:
    return tuple(map(str, row))


def first_page(keys: Keys, token: str | None) -> tuple[Sequence[str], str | None]:
    """One page after ``token`` and the token of the next; a step that can be tried again by itself."""
    return next(iter(keys.iter_keys(token)), ((), None))
