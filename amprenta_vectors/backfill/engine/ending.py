"""How a run ends: its kind concludes it, it is recorded as finished, and the deferred index is built."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from amprenta_vectors.backends.protocol import PaidSource
from amprenta_vectors.backfill.database.index import build_deferred
from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.engine.hold import Held, RunOver, WorkLeft
from amprenta_vectors.backfill.engine.observer import IndexBuilding
from amprenta_vectors.backfill.progress import indexes, orders, runs, seen, texts
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import serialize_starts
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.pg.errors import unless_away

BuildIndex = Callable[..., list[str]]
"""A function that builds a table's deferred indexes, as `build_deferred` does, until an event is set, and returns
their names."""


@dataclass(frozen=True)
class Ended:
    """How a run ended; ``by_us`` is True in the one of its processes that ended it."""

    by_us: bool = False
    indexes_built: list[str] = field(default_factory=list)
    gone: Gone | None = None


class Ending:
    """Ends a run whose batches are done; a run that is paused is not ended before it is resumed."""

    def __init__(
        self,
        context: RunContext,
        build_index: BuildIndex = build_deferred,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._retry = context.final_retry
        self._build_index = build_index
        self._clock = clock

    def end(self, *, repair: bool = False) -> Ended:
        """Record the run as finished, and build the index if the run was the last one into the column.

        With ``repair`` the run has finished before, and only the index is built. Raises `WorkLeft` if there are
        batches to do after all, `Held` or `TransientError` if the person stopped it, and `RunConflict` if somebody
        else cancelled it, or ordered that and took the order back.
        """
        gone = None if repair else self._conclude()
        by_us, to_build = self._finish(repair=repair)
        paid = isinstance(self._context.job.source, PaidSource)
        while by_us and paid and self._retry.database("deleting the texts of ended runs", self._forget_texts):
            pass
        return Ended(by_us, self._build() if to_build and self._context.job.builds_index else [], gone)

    def _forget_texts(self) -> bool:
        with self._context.transaction() as connection:
            return texts.forget_ended(connection)

    def _conclude(self) -> Gone | None:
        try:
            return self._context.job.kind.conclude(self._context, self._until_free)
        except RunOver:
            if self._retry.database("looking for work", self._goes_on):
                self._refuse_to_go_on()
                raise WorkLeft from None
            return None

    def _until_free(self) -> None:
        """Wait until the run may go on. Raises `Held` if this process is to stop, `RunOver` if the run is to end."""
        goes_on = self._wait_while_held()
        if self._context.stop.is_set():
            raise Held
        if not goes_on:
            raise RunOver

    def _wait_while_held(self) -> bool:
        return self._context.hold.wait_until_free(self._context.job.poll_seconds)

    def _goes_on(self) -> bool:
        with self._context.transaction() as connection:
            ordered = orders.read_orders(connection, self._context.run.id)
        return (ordered.state, ordered.desired_state) == (RunState.RUNNING, RunState.RUNNING)

    def _finish(self, *, repair: bool) -> tuple[bool, bool]:
        """Return whether this process ended the run, and whether an index waits to be built by it."""
        run, stop = self._context.run, self._context.stop
        while True:
            state, by_us, to_build = self._retry.database("finishing the run", self._finishing(repair=repair))
            if state == RunState.FINISHED:
                return by_us, to_build
            if state == RunState.RUNNING and self._retry.database("looking for work", self._context.has_work):
                self._refuse_to_go_on()
                raise WorkLeft
            if state not in (RunState.RUNNING, RunState.PAUSED):
                raise RunConflict(
                    f"run {run.id} was {state} by somebody else; what it wrote stays",
                    hint="amprenta-vectors status shows it; amprenta-vectors backfill --resume starts a new run",
                )
            if stop.wait(self._context.job.poll_seconds) or (not self._wait_while_held() and stop.is_set()):
                raise Held

    def _refuse_to_go_on(self) -> None:
        if self._context.hold.ending.is_set():
            raise RunConflict(
                f"run {self._context.run.id} was to be cancelled, and then was not; this process has left it",
                hint="amprenta-vectors backfill --resume resumes it",
            )

    def _finishing(self, *, repair: bool) -> Callable[[], tuple[str, bool, bool]]:
        """Return a step that ends the run if it may.

        The step returns the state after it, whether this process ended the run, and whether an index waits to be built.
        """
        run, tries = self._context.run, 0

        def finish() -> tuple[str, bool, bool]:
            nonlocal tries
            tries += 1
            with self._context.transaction() as connection:
                # One after another, so that of all processes of all runs into the column exactly one comes last.
                serialize_starts(connection, run.target)
                moved = runs.finish(connection, run.id)
                if moved and run.keys_from == "reconcile":
                    seen.forget_seen(connection, run.id)
                state = runs.load_run(connection, run.id).state
                # The commit of an earlier try succeeded but its reply was lost: this process finished the run.
                by_us = moved or (tries > 1 and state == RunState.FINISHED)
                last = (by_us or repair) and not runs.others_unfinished(connection, run.id, run.target)
                return state, by_us, last and bool(indexes.deferred_indexes(connection, run.target))

        return finish

    def _build(self) -> list[str]:
        context, table = self._context, self._context.job.slice.table
        context.observer(IndexBuilding(context.run.id, table.target))
        unless_away(partial(context.note, Event.INDEX_BUILDING, {}))
        began = self._clock()
        build = partial(self._build_index, context.engine, table, context.stop)
        built = self._retry.database("building the index", build)
        detail = {"indexes": built, "seconds": round(self._clock() - began, 1)}
        unless_away(partial(context.note, Event.INDEX_BUILT, detail))
        return built
