"""A run from its start to its end in one process: threads that plan, work and renew leases, and what they left."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import PaidSource
from amprenta_vectors.backfill.database.index import build_deferred, defer_indexes
from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.context import RunContext, open_retry
from amprenta_vectors.backfill.engine.ending import BuildIndex, Ended, Ending
from amprenta_vectors.backfill.engine.hold import Held, Hold, WorkLeft
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import BatchDone, Observer, RunAdvanced, RunStarted
from amprenta_vectors.backfill.engine.planner import Planner
from amprenta_vectors.backfill.engine.sharing import RunTexts, shared
from amprenta_vectors.backfill.engine.sizing import BatchSizer
from amprenta_vectors.backfill.engine.starting import Mode, start_or_join
from amprenta_vectors.backfill.engine.steering import Steering
from amprenta_vectors.backfill.engine.threads import Threads
from amprenta_vectors.backfill.engine.worker import Worker
from amprenta_vectors.backfill.limits.meter import metered
from amprenta_vectors.backfill.limits.quarantined_share import QuarantinedShare
from amprenta_vectors.backfill.progress import events, figures, orders, plans, quarantine, runs
from amprenta_vectors.backfill.progress.batches import Batch, Outcome
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.errors import TooManyQuarantined, TransientError
from amprenta_vectors.pg.errors import unless_away


@dataclass(frozen=True)
class Summary:
    """The state of a run when this process leaves it.

    If the database is away, the figures are the last that were seen. ``ended_it`` is True in one of the processes that
    share a run; it alone builds the index.
    """

    run: Run
    counts: Counts
    errors: dict[str, int]
    seconds: float
    written_here: int
    interrupted: bool
    ended_it: bool = False
    indexes_built: list[str] = field(default_factory=list)
    gone: Gone | None = None
    found_finished: bool = False
    """Whether the run had finished before this process came to it."""


class Backfill:
    """Works at one job until it is done, it fails, or ``stop`` is set."""

    def __init__(
        self,
        engine: Engine,
        job: Job,
        observer: Observer,
        stop: threading.Event,
        *,
        before_claim: Callable[[], str | None] = lambda: None,
        build_index: BuildIndex = build_deferred,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hold = Hold()
        self._engine = engine
        self._job = job
        self._observer = observer
        self._stop = stop
        self._before_claim = before_claim
        self._build_index = build_index
        self._clock = clock
        self._owner = f"{socket.gethostname()[:20]}:{os.getpid()}:{secrets.token_hex(3)}"

    def start(self, mode: Mode, *, queue: bool = False) -> Run:
        """Start a run or find the one to resume; with ``queue``, one that would be started is planned and waits.

        A process that comes to resume after the others have finished finds the finished run: nothing is read twice.
        Raises `RunConflict`, `NotUpgraded`.
        """
        retry = open_retry(self._job, self._stop)
        return retry.database("starting", lambda: self._start(mode, queue=queue))

    def _start(self, mode: Mode, *, queue: bool) -> Run:
        return start_or_join(self._engine, self._job, self._owner, mode, queue=queue)

    def work(self, run: Run) -> Summary:
        """Work at ``run`` beside any other process that does. Raises what stopped it; the run can be resumed.

        If the run is finished, only an index that an interrupted build left is built.
        """
        context = self.open_context(run)
        building = 0.0

        def build_index(*arguments: Any) -> list[str]:
            nonlocal building
            began = self._clock()
            try:
                return self._build_index(*arguments)
            finally:
                building += self._clock() - began

        share = RunShare(context, Ending(context, build_index, clock=self._clock), self._before_claim)
        began = self._clock()
        ended = share.repair() if run.state == RunState.FINISHED else share.work()
        # What is told of the rows is by the time that was spent on rows.
        return share.summarize(self._clock() - began - building, ended)

    def open_context(self, run: Run) -> RunContext:
        """Return the context of ``run`` in this process."""
        return RunContext(self._engine, run, self._job, self._owner, self.hold, self._stop, self._observer)


class RunShare:
    """One process's share of a run."""

    def __init__(self, context: RunContext, ending: Ending, before_claim: Callable[[], str | None]) -> None:
        self._context = context
        self._ending = ending
        self._lock = threading.Lock()
        self._written = 0
        self._seen = context.retry.database("counting", self._counted)
        job = context.job
        gate = Gate(before_claim, self._keep_reason, context.tell_wait)
        self._threads = Threads(context.hold, poll_seconds=job.poll_seconds, drain_seconds=job.drain_seconds)
        self._worker = Worker(context, job.kind.open_writer(context), gate, self._count)
        self._steering = Steering(context, self._worker, gate)
        self._quarantined = QuarantinedShare(
            context.engine, context.run, job.most_quarantined, look_seconds=2 * job.figures_seconds
        )

    def repair(self) -> Ended | None:
        """Build the index that an interrupted build left of a finished run; return None if that is interrupted too."""
        self._context.observer(RunStarted(self._context.run, []))
        return self._until_stopped(partial(self._ending.end, repair=True))

    def work(self) -> Ended | None:
        """Plan and work until the run has ended; return None if this process was told to stop before."""
        context, retry = self._context, self._context.retry
        retry.database("counting", self._quarantined.begin)
        retry.database("reading what is ordered of the run", self._steering.obey)
        beside = {"steering": (context.job.poll_seconds, partial(unless_away, self._steering.obey))}
        try:
            with self._threads.ending_on(context.stop), self._threads.beside(beside):
                goes_on = self._prepare()
                while True:
                    if goes_on:
                        self._work_through()
                    if context.hold.ending.is_set():
                        unless_away(self._steering.drain)
                    with suppress(WorkLeft):
                        return self._end()
                    self._worker.begin_again()
                    goes_on = True
        finally:
            unless_away(partial(context.note, Event.LEFT, {"owner": context.owner, "written": self._written}))

    def summarize(self, seconds: float, ended: Ended | None) -> Summary:
        """Return how the run stands; ``ended`` is None if this process was interrupted."""
        errors: dict[str, int] = {}

        def look() -> None:
            nonlocal errors
            self._seen = self._counted()
            with self._context.transaction() as connection:
                errors = quarantine.errors_by_reason(connection, self._context.run.id)

        unless_away(look)
        interrupted, ended = ended is None, ended or Ended()
        return Summary(
            *self._seen,
            errors,
            seconds,
            self._written,
            interrupted,
            ended_it=ended.by_us,
            indexes_built=ended.indexes_built,
            gone=ended.gone,
            found_finished=self._context.run.state == RunState.FINISHED,
        )

    def _prepare(self) -> bool:
        """Defer the index as soon as the run may go on, and return True; return False if this process ends."""
        context, job = self._context, self._context.job
        defer = partial(defer_indexes, context.engine, job.slice.table, force=job.defer_index)
        while context.hold.wait_until_free(job.poll_seconds):
            with suppress(Held):
                deferred = context.retry.database("deferring the index", defer)
                if deferred:
                    unless_away(partial(context.note, Event.INDEX_DEFERRED, {"indexes": deferred}))
                context.observer(RunStarted(self._seen[0], deferred))
                return True
        return False

    def _work_through(self) -> None:
        """Plan and work until nothing is left, the process is to end, or a thread has failed."""
        job, meter = self._context.job, self._context.open_meter()
        doing = {"planner": self._open_planner().run}
        doing |= {f"worker-{number}": partial(self._worker.run, number) for number in range(job.workers)}
        beside = {
            "leases": (job.lease_seconds / 4, self._renew),
            "figures": (job.figures_seconds, self._show),
            "read units": (job.poll_seconds, meter.tidy),
        }
        run_texts = RunTexts(self._context)
        if isinstance(job.source, PaidSource):
            beside["texts"] = (job.lease_seconds / 4, run_texts.renew)
        with metered(job.source, meter), shared(job.source, run_texts), self._threads.beside(beside):
            self._threads.run(doing)
        unless_away(self._look)
        try:
            # A last check at the end: what came after the last look counts too.
            unless_away(partial(self._quarantined.check, self._seen[1], last=True))
        except TooManyQuarantined as error:
            self._threads.fail(error)

    def _open_planner(self) -> Planner:
        context, job = self._context, self._context.job
        size = BatchSizer(
            context.engine,
            context.run.id,
            job.batch_size,
            wanted_seconds=job.batch_seconds,
            dimension=job.slice.table.dimension,
        )
        return Planner(context, job.kind.open_keys(context), size)

    def _end(self) -> Ended | None:
        """Finish the run, or leave it and raise what stopped it; return None if this process was told to stop."""
        failure = self._threads.failure
        if failure is not None:
            self._leave(str(failure))
            if isinstance(failure, TransientError) and not failure.hint:
                failure.hint = (
                    f"it was tried again for {self._context.job.retry_seconds:.0f} s (AMPRENTA_RETRY_SECONDS); "
                    "--resume resumes the run"
                )
            raise failure
        if self._context.stop.is_set():
            self._leave(None)
            return None
        return self._until_stopped(self._ending.end)

    def _until_stopped(self, end: Callable[[], Ended]) -> Ended | None:
        try:
            return end()
        except (TransientError, Held):
            if self._context.stop.is_set():
                return None
            raise

    def _leave(self, error: str | None) -> None:
        """Release the plan and record ``error`` if the database can be reached; otherwise the plan's lease runs out."""
        context = self._context

        def leave() -> None:
            with context.transaction() as connection:
                plans.release_plan(connection, context.run.id, context.owner)
                runs.note_error(connection, context.run.id, error)
                if error is not None:
                    detail = {"owner": context.owner, "error": error}
                    events.record_event(connection, context.run.id, Event.FAILED, detail)

        unless_away(leave)

    def _renew(self) -> None:
        """Renew the leases, also while the last batches are drained."""
        if self._context.hold.may_begin or self._worker.busy:
            unless_away(self._worker.renew)

    def _show(self) -> None:
        """Show the figures; raise `TooManyQuarantined` if they have too many quarantined rows."""
        unless_away(self._look)
        unless_away(partial(self._quarantined.check, self._seen[1]))

    def _look(self) -> None:
        self._seen = self._counted()
        self._context.observer(RunAdvanced(*self._seen))

    def _counted(self) -> tuple[Run, Counts]:
        run_id = self._context.run.id
        with self._context.transaction() as connection:
            return runs.load_run(connection, run_id), figures.count(connection, run_id)

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        with self._lock:
            self._written += outcome.written
        self._context.observer(BatchDone(self._context.run.id, batch.number, outcome))

    def _keep_reason(self, reason: str | None) -> None:
        """Record with the run why claims wait. Raises `Held` if the run is to be paused."""
        with self._context.transaction() as connection:
            noted = orders.note_throttle(connection, self._context.run.id, reason)
        if not noted:
            raise Held
