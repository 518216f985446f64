"""Cutting a run's keys into batches: from the source's list, or from rows without an embedding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.hold import Held
from amprenta_vectors.backfill.engine.keys import Keys, Pages
from amprenta_vectors.backfill.engine.retry import Retry
from amprenta_vectors.backfill.progress import plans, runs
from amprenta_vectors.backfill.progress.plans import Plan
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.errors import LeaseLost, SourceError

MOST_PENDING = 200
"""Batches that wait to be claimed, at which the planner lists no further ahead, so that neither the table nor a process
grows with the source, and a size that batches turn out to need is soon used: at 1000 keys a batch and the 20,000 that
Pinecone lists in a second, work for 10 seconds."""
MOST_REFUSALS = 5
"""Times that a listing starts over in one process before its source is taken to be broken."""


class Planner:
    """Lists keys and stores them as batches, each with the token to go on from. One process of a run at a time."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        keys: Keys,
        owner: str,
        *,
        batch_size: Callable[[], int],
        lease_seconds: float,
        poll_seconds: float,
        retry: Retry,
        stop: threading.Event,
    ) -> None:
        self._engine = engine
        self._run = run
        self._keys = keys
        self._owner = owner
        self._batch_size = batch_size
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._retry = retry
        self._stop = stop
        self._refusals = 0
        self._full = False

    def run(self) -> None:
        """Plan until every key is in a batch, another process plans, or ``stop`` is set; wait while the run is held.

        Raises `SourceError` where the source keeps refusing the tokens that it gave.
        """
        while not self._stop.is_set():
            try:
                if not self._turn():
                    return
            except Held:
                self._stop.wait(self._poll_seconds)

    def _turn(self) -> bool:
        """Plan what can be planned now; returns whether there may be more."""
        plan = self._retry.database("planning", self._claim)
        if plan is None:
            if not self._retry.database("planning", self._unplanned):
                return False
            self._stop.wait(self._poll_seconds)
            return True
        try:
            self._extend(plan)
        except TokenRefused as error:
            self._refusals += 1
            if self._refusals > MOST_REFUSALS:
                raise SourceError(f"the source refuses its own page tokens: {error}") from error
            self._retry.database("planning", self._forget)
        except LeaseLost:
            pass
        except Held:
            self._release()
            raise
        return True

    def _release(self) -> None:
        """Best effort: where the database is away, the lease runs out by itself."""
        with suppress(sa.exc.DBAPIError), transaction(self._engine) as connection:
            plans.release_plan(connection, self._run.id, self._owner)

    def _claim(self) -> Plan | None:
        with transaction(self._engine) as connection:
            return plans.claim_plan(connection, self._run.id, self._owner, self._lease_seconds)

    def _unplanned(self) -> bool:
        with transaction(self._engine) as connection:
            run = runs.load_run(connection, self._run.id)
        return run.planned_at is None and run.state in (RunState.RUNNING, RunState.PAUSED)

    def _forget(self) -> None:
        with transaction(self._engine) as connection:
            plans.forget_token(connection, self._run.id, self._owner)

    def _extend(self, plan: Plan) -> None:
        """Store batches from where ``plan`` stands until it is complete or ``stop`` is set.

        A batch is filled with pages for as long as they fit, and never with a part of one: the token that is stored
        with a batch stands after a whole page.
        """
        limit = self._run.row_limit
        size = self._batch_size()
        with closing(Pages(self._keys, plan.token)) as pages:
            token, waiting = plan.token, list[str]()
            complete = False
            while not complete and self._has_room():
                keys, following = self._retry.database("listing keys", pages.next)
                if limit is not None:
                    keys = keys[: limit - plan.planned_keys - len(waiting)]
                if waiting and len(waiting) + len(keys) > size:
                    plan, waiting = self._stored(plan, waiting, token), []
                    size = self._batch_size()
                waiting.extend(keys)
                token = following
                complete = token is None or (limit is not None and plan.planned_keys + len(waiting) >= limit)
                if complete or len(waiting) >= size:
                    plan, waiting = self._stored(plan, waiting, token, complete=complete), []
                    size = self._batch_size()

    def _has_room(self) -> bool:
        """Wait while there is work enough ahead; returns False where ``stop`` is set."""
        while not self._stop.is_set():
            if not self._full:
                return True
            self._full = self._retry.database("planning", self._many_pending)
            if self._full:
                self._stop.wait(self._poll_seconds)
        return False

    def _many_pending(self) -> bool:
        with transaction(self._engine) as connection:
            return plans.many_pending(connection, self._run.id, MOST_PENDING)

    def _stored(self, plan: Plan, keys: Sequence[str], token: str | None, *, complete: bool = False) -> Plan:
        plan = self._retry.database("planning", partial(self._store, plan, keys, token, complete))
        self._full = not complete and self._retry.database("planning", self._many_pending)
        return plan

    def _store(self, plan: Plan, keys: Sequence[str], token: str | None, complete: bool) -> Plan:
        """Cut into even batches; all of them and the token are one transaction, so that none is listed twice."""
        batches = -(-len(keys) // self._batch_size())
        size = -(-len(keys) // batches) if keys else 1
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        with transaction(self._engine) as connection:
            return plans.extend_plan(connection, self._run.id, self._owner, plan, parts, token, complete=complete)
