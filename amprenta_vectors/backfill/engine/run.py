"""A run from its start to its end in one process: threads that plan, work and renew leases, and what they left."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.database.index import build_deferred, defer_indexes
from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.hold import Control, Held
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.keys import Keys
from amprenta_vectors.backfill.engine.observer import (
    BatchDone,
    IndexBuilding,
    Observer,
    RunAdvanced,
    RunStarted,
    Waiting,
)
from amprenta_vectors.backfill.engine.planner import Planner
from amprenta_vectors.backfill.engine.retry import Retry
from amprenta_vectors.backfill.engine.sizing import BatchSizer
from amprenta_vectors.backfill.engine.starting import Mode, begin_or_join
from amprenta_vectors.backfill.engine.steering import Steering
from amprenta_vectors.backfill.engine.worker import Worker, Writer
from amprenta_vectors.backfill.limits.ledger import RunLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter, metered
from amprenta_vectors.backfill.limits.quarantined_share import QuarantinedShare
from amprenta_vectors.backfill.progress import events, figures, indexes, plans, quarantine, runs, seen, transactions
from amprenta_vectors.backfill.progress.batches import Batch, Outcome
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.orders import note_throttle, read_orders
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.backfill.reconcile.dry_run import keys_to_reconcile
from amprenta_vectors.backfill.reconcile.gone import Gone, GoneRows, RunOver, WorkLeft
from amprenta_vectors.backfill.reconcile.reconciler import Reconciler
from amprenta_vectors.backfill.writing.replacing import ReplacingSink
from amprenta_vectors.backfill.writing.sink import Sink
from amprenta_vectors.errors import RunConflict, TooManyQuarantined, TransientError
from amprenta_vectors.pg.errors import is_transient
from amprenta_vectors.schema.row_keys import EmptyRows
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.outbox import Outbox


@dataclass(frozen=True)
class Summary:
    """How a run stands when this process leaves it.

    The figures are those last seen where the database is away. One process of all that share a run has
    ``ended_it``; it alone builds the index.
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
        build_index: Callable[[Engine, VectorTable, threading.Event], list[str]] = build_deferred,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._job = job
        self._observer = observer
        self._stop = stop
        self._clock = clock
        self._owner = f"{socket.gethostname()[:20]}:{os.getpid()}:{secrets.token_hex(3)}"
        self._gate = Gate(before_claim, self._keep_reason, self._wait)
        self._build_index = build_index
        self.control = Control()
        self._over = threading.Event()
        """Set when planner and workers have ended, and nothing needs a lease or is worth watching any more."""
        self._left = threading.Event()
        """Set when this process no longer cares what is ordered of the run."""
        self._retry = self._to_retry(self.control.hold, self.control.check)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._written = 0
        self._run_id: int | None = None
        self._seen: tuple[Run, Counts]

    def start(self, mode: Mode) -> Run:
        """Begin a run or find the one to resume.

        A process that comes to resume when its fellows have finished finds the finished run: nothing is read twice.
        Raises `RunConflict`, `NotUpgraded`.
        """
        retry = self._to_retry(self._stop)
        return retry.database("starting", lambda: begin_or_join(self._engine, self._job, self._owner, mode))

    def work(self, run: Run) -> Summary:
        """Work at ``run`` beside any other process that does. Raises what stopped it; the run can be resumed.

        Of a run that is finished, only an index that an interrupted build left is made good.
        """
        began = self._clock()
        self._run_id = run.id
        if run.state == RunState.FINISHED:
            self._observer(RunStarted(run, []))
            self._seen = self._retry.database("counting", partial(self._counted, run))
            return self._finish(began, repair=True)
        self._seen = self._retry.database("counting", partial(self._counted, run))
        share = QuarantinedShare(
            self._engine, run, self._job.most_quarantined, look_seconds=2 * self._job.figures_seconds
        )
        self._retry.database("counting", share.begin)
        worker = self._worker(run)
        steering = self._steering(run, worker)
        self._retry.database("reading what is ordered of the run", steering.obey)
        obeying = [
            self._thread("steering", partial(steering.run, self._left)),
            self._thread("signals", self._heed_stop),
        ]
        for thread in obeying:
            thread.start()
        try:
            if self._prepare():
                self._work_through(run, worker, share)
            while True:
                if self.control.halt.is_set():
                    self._unless_away(steering.drain)
                with suppress(WorkLeft):
                    return self._conclude(began)
                worker.begin_again()
                self._work_through(run, worker, share)
        finally:
            self._left.set()
            for thread in obeying:
                thread.join(self._job.drain_seconds)
            self._unless_away(partial(self._note, Event.LEFT, {"owner": self._owner, "written": self._written}))

    def _work_through(self, run: Run, worker: Worker, share: QuarantinedShare) -> None:
        """Plan and work until nothing is left, the process is to end, or a thread has failed."""
        planner = self._planner(run)
        doing = [self._thread("planner", planner.run)]
        doing += [self._thread(f"worker-{number}", partial(worker.run, number)) for number in range(self._job.workers)]
        meter = self._meter(run)
        self._over.clear()
        beside = [
            self._thread("leases", partial(self._keep, worker)),
            self._thread("figures", partial(self._show, share)),
            self._thread("read units", partial(self._tidy, meter)),
        ]
        try:
            with metered(self._job.source, meter):
                for thread in (*doing, *beside):
                    thread.start()
                self._wait_for(doing)
        finally:
            self._over.set()
        for thread in beside:
            # Where the process is to end, a database that does not answer keeps it no longer.
            thread.join(self._job.drain_seconds if self.control.halt.is_set() else None)
        self._unless_away(self._look)
        self._check_share(share)

    def _check_share(self, share: QuarantinedShare) -> None:
        """Once more at the end: what came after the last look counts too."""
        try:
            self._unless_away(partial(share.check, self._seen[1], last=True))
        except TooManyQuarantined as error:
            self._failure = self._failure or error

    def _conclude(self, began: float) -> Summary:
        """Finish the run, or leave it as it is; raises what stopped it."""
        if self._failure is not None:
            self._leave(str(self._failure))
            if isinstance(self._failure, TransientError) and not self._failure.hint:
                self._failure.hint = (
                    f"it was tried again for {self._job.retry_seconds:.0f} s (AMPRENTA_RETRY_SECONDS); "
                    "--resume resumes the run"
                )
            raise self._failure
        if self._stop.is_set():
            self._leave(None)
            return self._summary(began, interrupted=True)
        return self._finish(began)

    def _prepare(self) -> bool:
        """Defer the index as soon as the run may go on; returns whether it does, or this process ends."""
        defer = partial(defer_indexes, self._engine, self._job.table, force=self._job.defer_index)
        while self._wait_while_held():
            with suppress(Held):
                deferred = self._retry.database("deferring the index", defer)
                if deferred:
                    self._unless_away(partial(self._note, Event.INDEX_DEFERRED, {"indexes": deferred}))
                self._observer(RunStarted(self._seen[0], deferred))
                return True
        return False

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        # A daemon, so that neither a second Ctrl-C nor a call that hangs keeps the process from ending.
        return threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)

    def _wait_for(self, threads: list[threading.Thread]) -> None:
        """Until they have ended, or ``drain_seconds`` after ``stop`` or a failure of one of them told them to."""
        for thread in threads:
            while thread.is_alive():
                thread.join(self._job.poll_seconds)
                if self.control.halt.is_set() and self.control.held_seconds >= self._job.drain_seconds:
                    return

    def _wait_while_held(self) -> bool:
        """Until the run may go on; returns whether it does, or this process ends."""
        while self.control.hold.is_set():
            if self.control.halt.wait(self._job.poll_seconds):
                return False
        return True

    def _heed_stop(self) -> None:
        while not self._left.is_set():
            if self._stop.wait(self._job.poll_seconds):
                self.control.end()
                return

    def _steering(self, run: Run, worker: Worker) -> Steering:
        return Steering(
            self._engine,
            run.id,
            self._owner,
            self.control,
            worker,
            self._gate,
            drain_seconds=self._job.drain_seconds,
            poll_seconds=self._job.poll_seconds,
            on_pause=self._wait,
        )

    def _wait(self, reason: str | None) -> None:
        self._observer(Waiting(self._run_id, reason))

    def _keep_reason(self, reason: str | None) -> None:
        """Have the run say why claims wait."""
        with transaction(self._engine) as connection:
            noted = note_throttle(connection, self._seen[0].id, reason)
        if not noted:
            raise Held("the run is to be paused")

    def _note(self, event: Event, detail: Mapping[str, object]) -> None:
        with transaction(self._engine) as connection:
            events.record_event(connection, self._seen[0].id, event, detail)

    def _to_retry(self, stop: threading.Event, check: Callable[[], None] | None = None) -> Retry:
        return Retry(
            self._job.retry_seconds,
            stop,
            self._wait,
            check,
            longest_wait_seconds=self._job.longest_wait_seconds,
        )

    def _planner(self, run: Run) -> Planner:
        job = self._job
        keys: Keys = job.source
        if job.keys_from == "table":
            keys = EmptyRows(self._engine, job.table, job.scope, job.key_map)
        elif job.keys_from == "reconcile":
            keys = keys_to_reconcile(self._engine, job)
        return Planner(
            self._engine,
            run,
            keys,
            self._owner,
            batch_size=BatchSizer(
                self._engine,
                run.id,
                job.batch_size,
                wanted_seconds=job.batch_seconds,
                dimension=job.table.dimension,
            ),
            lease_seconds=job.lease_seconds,
            poll_seconds=job.poll_seconds,
            retry=self._retry,
            stop=self.control.halt,
        )

    def _worker(self, run: Run) -> Worker:
        job = self._job
        return Worker(
            self._engine,
            run,
            job.source,
            self._sink(run),
            job.key_map,
            self._owner,
            cosine=job.table.distance == "cosine",
            storage=job.table.storage,
            sparse_dimension=job.table.sparse_dimension,
            lease_seconds=job.lease_seconds,
            poll_seconds=job.poll_seconds,
            retry=self._retry,
            write_retry=self._to_retry(self.control.hold, self.control.check_write),
            control=self.control,
            gate=self._gate,
            on_done=self._count,
        )

    def _sink(self, run: Run) -> Writer:
        job = self._job
        computed = job.source.description.computed
        outbox = Outbox(self._engine, run.target, run.scope)
        record_for = run.id if job.records_inserts else None
        if job.keys_from == "reconcile":
            return Reconciler(
                job.table,
                job.scope,
                job.model,
                job.key_map,
                outbox,
                insert=job.inserts,
                computed=computed,
                record_for=record_for,
            )
        if job.replace:
            return ReplacingSink(
                job.table, job.scope, job.model, job.key_map, outbox, insert=job.inserts, computed=computed
            )
        return Sink(job.table, job.scope, job.model, insert=job.inserts, computed=computed, record_for=record_for)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; the first error stops the others and is raised by `work`.

        To leave off waiting for what passes, because the threads are to end, is no error.
        """
        try:
            work()
        except BaseException as error:
            if isinstance(error, TransientError | Held) and self.control.halt.is_set():
                return
            with self._lock:
                self._failure = self._failure or error
            self.control.end()

    def _keep(self, worker: Worker) -> None:
        """Renew the leases, also while the last batches are drained."""
        while not self._over.wait(self._job.lease_seconds / 4):
            if self.control.may_begin or worker.busy:
                self._unless_away(worker.renew)

    def _meter(self, run: Run) -> LeasedMeter:
        return LeasedMeter(
            RunLedger(self._engine, run.id),
            lambda: self._job.source_limits.under(self.control.limits),
            self.control.hold,
            self.control.check,
            self._wait,
        )

    def _tidy(self, meter: LeasedMeter) -> None:
        """Give back read units that this process has reserved and does not want."""
        while not self._over.wait(self._job.poll_seconds):
            meter.tidy()

    def _show(self, share: QuarantinedShare) -> None:
        """Show the figures now and then, and fail where they show too many quarantined rows."""
        while not self._over.wait(self._job.figures_seconds):
            self._unless_away(self._look)
            self._unless_away(partial(share.check, self._seen[1]))

    def _look(self) -> None:
        self._seen = self._counted(self._seen[0])
        self._observer(RunAdvanced(*self._seen))

    @staticmethod
    def _unless_away(step: Callable[[], None]) -> None:
        """Where the database is away, leave a turn out: to wait for it or to give up is for the workers."""
        try:
            step()
        except DBAPIError as error:
            if not is_transient(error):
                raise

    def _counted(self, run: Run) -> tuple[Run, Counts]:
        with transaction(self._engine) as connection:
            return runs.load_run(connection, run.id), figures.count(connection, run.id)

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        with self._lock:
            self._written += outcome.written
        self._observer(BatchDone(self._seen[0].id, batch.number, outcome))

    def _leave(self, error: str | None) -> None:
        """Best effort: where the database is away, the planner's lease runs out by itself."""
        run = self._seen[0]

        def leave() -> None:
            with transaction(self._engine) as connection:
                plans.release_plan(connection, run.id, self._owner)
                runs.note_error(connection, run.id, error)
                if error is not None:
                    events.record_event(connection, run.id, Event.FAILED, {"owner": self._owner, "error": error})

        self._unless_away(leave)

    def _finish(self, began: float, *, repair: bool = False) -> Summary:
        """Call the run finished, and build the index where it was the last one into the column."""
        retry = self._to_retry(self._stop)
        gone: Gone | None = None
        try:
            if not repair:
                gone = self._settle_gone(retry)
            ended_it, to_build = self._end(retry, repair=repair)
            built: list[str] = []
            if to_build:
                built = self._build(retry)
        except (TransientError, Held):
            if self._stop.is_set():
                return self._summary(began, interrupted=True)
            raise
        return self._summary(began, interrupted=False, ended_it=ended_it, built=built, gone=gone)

    def _settle_gone(self, retry: Retry) -> Gone | None:
        """What the source no longer has, of a run that reconciles with a source of its own; None where it has ended."""
        job, run = self._job, self._seen[0]
        if job.keys_from != "reconcile" or job.source.description.computed:
            return None
        rows = GoneRows(
            self._engine,
            run,
            job.table,
            job.scope,
            job.source,
            job.key_map,
            retry=retry,
            until_free=self._until_free,
        )
        try:
            self._until_free()
            if retry.database("looking for work", self._has_work):
                raise WorkLeft
            with metered(job.source, self._meter(run)):
                return rows.settle(delete=job.delete)
        except RunOver:
            if retry.database("looking for work", self._goes_on):
                self._refuse_to_go_on()
                raise WorkLeft from None
            return None

    def _until_free(self) -> None:
        """Until the run may go on. Raises `Held` where this process is to stop, `RunOver` where the run is to end."""
        goes_on = self._wait_while_held()
        if self._stop.is_set():
            raise Held("the run is held")
        if not goes_on:
            raise RunOver

    def _goes_on(self) -> bool:
        with transaction(self._engine) as connection:
            orders = read_orders(connection, self._seen[0].id)
        return (orders.state, orders.desired_state) == (RunState.RUNNING, RunState.RUNNING)

    def _build(self, retry: Retry) -> list[str]:
        self._observer(IndexBuilding(self._seen[0].id, self._job.table.target))
        self._unless_away(partial(self._note, Event.INDEX_BUILDING, {}))
        began = self._clock()
        build = partial(self._build_index, self._engine, self._job.table, self._stop)
        built = retry.database("building the index", build)
        detail = {"indexes": built, "seconds": round(self._clock() - began, 1)}
        self._unless_away(partial(self._note, Event.INDEX_BUILT, detail))
        return built

    def _end(self, retry: Retry, *, repair: bool) -> tuple[bool, bool]:
        """Whether the run ended by this process, and whether an index waits for it to be built.

        A run that is paused is not ended before it goes on. Raises `Held` where the process is to stop meanwhile, and
        `WorkLeft`.
        """
        run = self._seen[0]
        while True:
            state, ended_it, to_build = retry.database("finishing the run", self._ending(repair=repair))
            if state == RunState.FINISHED:
                return ended_it, to_build
            if state == RunState.RUNNING and retry.database("looking for work", self._has_work):
                self._refuse_to_go_on()
                raise WorkLeft
            if state not in (RunState.RUNNING, RunState.PAUSED):
                raise RunConflict(
                    f"run {run.id} was {state} by somebody else; what it wrote stays",
                    hint="amprenta-vectors status shows it; amprenta-vectors backfill --resume begins a new run",
                )
            if self._stop.wait(self._job.poll_seconds) or (not self._wait_while_held() and self._stop.is_set()):
                raise Held("the run is held")

    def _has_work(self) -> bool:
        with transaction(self._engine) as connection:
            return runs.work_left(connection, self._seen[0].id)

    def _refuse_to_go_on(self) -> None:
        if self.control.halt.is_set():
            raise RunConflict(
                f"run {self._seen[0].id} was to be cancelled, and then was not; this process has left it",
                hint="amprenta-vectors backfill --resume resumes it",
            )

    def _ending(self, *, repair: bool) -> Callable[[], tuple[str, bool, bool]]:
        """A step that ends the run where it may: the state after it, whether it did, whether an index waits."""
        run = self._seen[0]
        tries = 0

        def end() -> tuple[str, bool, bool]:
            nonlocal tries
            tries += 1
            with transaction(self._engine) as connection:
                # One after another, so that of all processes of all runs into the column exactly one comes last.
                transactions.serialize_starts(connection, run.target)
                moved = runs.finish(connection, run.id)
                if moved and self._job.keys_from == "reconcile":
                    seen.forget_seen(connection, run.id)
                state = runs.load_run(connection, run.id).state
                # A try whose commit went through, its answer lost, was this process's own.
                ended_it = moved or (tries > 1 and state == RunState.FINISHED)
                last = (ended_it or repair) and not runs.others_unfinished(connection, run.id, run.target)
                return state, ended_it, last and bool(indexes.deferred_indexes(connection, run.target))

        return end

    def _summary(
        self,
        began: float,
        *,
        interrupted: bool,
        ended_it: bool = False,
        built: list[str] | None = None,
        gone: Gone | None = None,
    ) -> Summary:
        errors: dict[str, int] = {}

        def look() -> None:
            nonlocal errors
            self._seen = self._counted(self._seen[0])
            with transaction(self._engine) as connection:
                errors = quarantine.errors_by_reason(connection, self._seen[0].id)

        self._unless_away(look)
        seconds = self._clock() - began
        return Summary(*self._seen, errors, seconds, self._written, interrupted, ended_it, built or [], gone)
