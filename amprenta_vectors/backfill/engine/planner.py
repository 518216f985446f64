"""Cutting a run's keys into batches: from the source's list, or from rows without an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial

import sqlalchemy as sa

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.engine.hold import Held
from amprenta_vectors.backfill.engine.keys import Keys, Pages
from amprenta_vectors.backfill.progress import plans, runs
from amprenta_vectors.backfill.progress.plans import Plan
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.errors import LeaseLost, SourceError

MOST_PENDING = 200
"""The planner stops listing ahead when so many batches wait to be claimed, so that neither the table nor a
process grows with the source, and a size that batches turn out to need is soon used: at 1000 keys a batch and the
20,000 that Pinecone lists in a second, work for 10 seconds."""
MOST_REFUSALS = 5
"""A source is taken to be broken when its listing has started over so many times in one process."""


class Planner:
    """Lists keys and stores them as batches, each with the token to go on from; one process of a run at a time."""

    def __init__(self, context: RunContext, keys: Keys, batch_size: Callable[[], int]) -> None:
        self._context = context
        self._run = context.run
        self._retry = context.retry
        self._keys = keys
        self._batch_size = batch_size
        self._refusals = 0
        self._full = False

    def run(self) -> None:
        """Plan until every key is in a batch, another process plans, or the process ends; wait while the run is held.

        Raises `SourceError` if the source keeps refusing the tokens that it gave.
        """
        while not self._context.hold.ending.is_set():
            try:
                if not self._turn():
                    return
            except Held:
                self._context.hold.wait_until_free(self._context.job.poll_seconds)

    def _turn(self) -> bool:
        """Plan what can be planned now; return whether there may be more."""
        plan = self._retry.database("planning", self._claim)
        if plan is None or plan.planned_keys:
            # There may be batches that this process did not plan.
            self._context.hold.bell.ring()
        if plan is None:
            if not self._retry.database("planning", self._unplanned):
                return False
            self._context.hold.ending.wait(self._context.job.poll_seconds)
            return True
        try:
            return not self._extend(plan)
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
        """Release the plan if the database can be reached; otherwise the lease runs out by itself."""
        with suppress(sa.exc.DBAPIError), self._context.transaction() as connection:
            plans.release_plan(connection, self._run.id, self._context.owner)

    def _claim(self) -> Plan | None:
        with self._context.transaction() as connection:
            return plans.claim_plan(connection, self._run.id, self._context.owner, self._context.job.lease_seconds)

    def _unplanned(self) -> bool:
        with self._context.transaction() as connection:
            run = runs.load_run(connection, self._run.id)
        return run.planned_at is None and run.state in (RunState.RUNNING, RunState.PAUSED)

    def _forget(self) -> None:
        with self._context.transaction() as connection:
            plans.forget_token(connection, self._run.id, self._context.owner)

    def _extend(self, plan: Plan) -> bool:
        """Store batches from where ``plan`` stands until it is complete or the process ends; return if it is complete.

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
        return complete

    def _has_room(self) -> bool:
        """Wait while there is work enough ahead; return False if the process ends."""
        while not self._context.hold.ending.is_set():
            if not self._full:
                return True
            self._full = self._retry.database("planning", self._many_pending)
            if self._full:
                self._context.hold.ending.wait(self._context.job.poll_seconds)
        return False

    def _many_pending(self) -> bool:
        with self._context.transaction() as connection:
            return plans.many_pending(connection, self._run.id, MOST_PENDING)

    def _stored(self, plan: Plan, keys: Sequence[str], token: str | None, *, complete: bool = False) -> Plan:
        plan = self._retry.database("planning", partial(self._store, plan, keys, token, complete))
        self._full = not complete and self._retry.database("planning", self._many_pending)
        return plan

    def _store(self, plan: Plan, keys: Sequence[str], token: str | None, complete: bool) -> Plan:
        """Store keys as even batches, together with the token in one transaction, so that no key is listed twice."""
        batches = -(-len(keys) // self._batch_size())
        size = -(-len(keys) // batches) if keys else 1
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        with self._context.transaction() as connection:
            extended = plans.extend_plan(
                connection, self._run.id, self._context.owner, plan, parts, token, complete=complete
            )
        bell = self._context.hold.bell
        if parts:
            bell.offer(len(parts))
        else:
            # That the plan is complete is news for whoever found nothing to do.
            bell.ring()
        return extended
