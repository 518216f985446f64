"""A run from its start to its end in one process: threads that plan, work and renew leases, and what they left."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.index import build_deferred, column_is_empty, defer_indexes
from amprenta_vectors.backfill.planner import EmptyRows, Keys, Planner, has_empty
from amprenta_vectors.backfill.progress import Batch, Counts, Outcome, Run, RunSpec
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.sink import Sink
from amprenta_vectors.backfill.states import RunState
from amprenta_vectors.backfill.worker import Worker
from amprenta_vectors.db import is_transient
from amprenta_vectors.errors import RunConflict, TransientError
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Source

TICK_SECONDS = 0.5
FIGURES_SECONDS = 0.5

KeysFrom = Literal["table", "source"]
Mode = Literal["new", "resume", "restart"]


@dataclass(frozen=True)
class Job:
    """One source into one scope of one table, and how hard to work at it. ``table`` must come from the catalogue."""

    table: VectorTable
    scope: Mapping[str, str]
    source: Source
    key_map: KeyMap
    keys_from: KeysFrom
    model: str | None
    batch_size: int
    workers: int
    lease_seconds: float
    retry_seconds: float
    limit: int | None = None
    defer_index: bool = False

    @property
    def spec(self) -> RunSpec:
        """The job as a run records it; the fingerprint has no count, batch size or number of workers in it."""
        described = self.source.description
        identity = {
            "source": [described.kind, described.identity],
            "target": self.table.target,
            "scope": dict(self.scope),
            "dimension": self.table.dimension,
            "distance": described.distance,
            "model": self.model,
            "key_map": self.key_map.name,
        }
        return RunSpec(
            vector_table=self.table.name,
            target=self.table.target,
            scope=self.scope,
            source_kind=described.kind,
            source=described.identity,
            keys_from=self.keys_from,
            key_map=self.key_map.name,
            model=self.model,
            dimension=self.table.dimension,
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            row_limit=self.limit,
        )


class Observer(Protocol):
    """What a person or a log sees of a run while it goes on. `advanced` and `waiting` are called from any thread."""

    def started(self, run: Run, deferred: list[str]) -> None:
        """The run was begun, or is gone on with; ``deferred`` indexes were put off."""
        ...

    def advanced(self, run: Run, counts: Counts) -> None:
        """The figures of the run, from all its processes."""
        ...

    def waiting(self, reason: str | None) -> None:
        """A step failed in passing and will be tried again; None once it went through."""
        ...

    def building(self, target: str) -> None:
        """Every row is written; the deferred index is being built."""
        ...


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


class Backfill:
    """Works at one job until it is done, it fails, or ``stop`` is set."""

    def __init__(
        self,
        engine: Engine,
        job: Job,
        observer: Observer,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._job = job
        self._observer = observer
        self._stop = stop
        self._clock = clock
        self._owner = f"{socket.gethostname()[:20]}:{os.getpid()}:{secrets.token_hex(3)}"
        self._halt = threading.Event()
        """Set to have the planner and the workers end."""
        self._over = threading.Event()
        """Set when they have ended, and nothing needs a lease or is worth watching any more."""
        self._retry = Retry(job.retry_seconds, self._halt, observer.waiting)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._written = 0
        self._seen: tuple[Run, Counts]

    def start(self, mode: Mode) -> Run:
        """Begin a run or find the one to go on with.

        A process that comes to resume when its fellows have finished finds the finished run: nothing is read twice.
        Raises `RunConflict`, `NotUpgraded`.
        """
        return self._retry.database("starting", lambda: self._start(mode))

    def _start(self, mode: Mode) -> Run:
        spec = self._job.spec
        with progress.transaction(self._engine) as connection:
            progress.require_tables(connection)
            progress.serialize_starts(connection, spec.target)
            run = progress.unfinished_run(connection, spec.target, spec.scope)
            if run is not None and mode == "restart":
                progress.end_expired_sessions(connection, run.id)
                progress.cancel(connection, run.id)
                run = None
            if run is not None:
                if mode == "new":
                    done = progress.count(connection, run.id).keys_done
                    raise RunConflict(
                        f"run {run.id} into {run.target} is unfinished: {done:,} of {run.planned_keys:,} keys are done",
                        hint="--resume goes on with it; --restart begins anew (rows already filled stay filled)",
                    )
                progress.check_same(run, spec)
                return run
            ended = progress.finished_run(connection, spec.target, spec.fingerprint) if mode == "resume" else None
            if ended is not None and self._nothing_new(connection, ended):
                return ended
            self._refuse_second_model(connection)
            return progress.begin_run(connection, spec)

    def _nothing_new(self, connection: Connection, ended: Run) -> bool:
        """Whether a run like the one that ended would find nothing; of the source, that is taken for granted."""
        job = self._job
        if job.keys_from == "table":
            return not has_empty(connection, job.table, job.scope)
        return ended.keys_from == "source" and ended.row_limit is None

    def _refuse_second_model(self, connection: Connection) -> None:
        """By what runs wrote, where the scope still holds a value."""
        job = self._job
        others = progress.earlier_models(connection, job.table.target, job.scope) - {job.model}
        if job.model is not None and others and not column_is_empty(connection, job.table, job.scope):
            raise RunConflict(
                f"{job.table.target} holds vectors of model {', '.join(sorted(others))}; this run is {job.model}",
                hint="two models never share a column: set EMBEDDING_MODEL to the one that made the vectors",
            )

    def work(self, run: Run) -> Summary:
        """Work at ``run`` beside any other process that does. Raises what stopped it; the run can be resumed.

        Of a run that is finished, only an index that an interrupted build left is made good.
        """
        began = self._clock()
        if run.state == RunState.FINISHED:
            self._observer.started(run, [])
            self._seen = self._retry.database("counting", partial(self._counted, run))
            return self._finish(began, repair=True)
        defer = partial(defer_indexes, self._engine, self._job.table, force=self._job.defer_index)
        self._observer.started(run, self._retry.database("putting the index off", defer))
        self._seen = self._retry.database("counting", partial(self._counted, run))
        planner, worker = self._planner(run), self._worker(run)
        doing = [self._thread("planner", planner.run)]
        doing += [self._thread(f"worker-{number}", worker.run) for number in range(self._job.workers)]
        beside = [self._thread("leases", partial(self._keep, worker)), self._thread("figures", self._show)]
        try:
            for thread in (*doing, *beside):
                thread.start()
            self._wait_for(doing)
        finally:
            self._halt.set()
            self._over.set()
        for thread in beside:
            thread.join()
        self._unless_away(self._look)
        if self._failure is not None:
            self._leave(str(self._failure))
            if isinstance(self._failure, TransientError) and not self._failure.hint:
                self._failure.hint = (
                    f"it was tried again for {self._job.retry_seconds:.0f} s (AMPRENTA_RETRY_SECONDS); "
                    "--resume goes on with the run"
                )
            raise self._failure
        if self._stop.is_set():
            self._leave(None)
            return self._summary(began, interrupted=True)
        return self._finish(began)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        # A daemon, so that a second Ctrl-C ends the process without it.
        return threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)

    def _wait_for(self, threads: list[threading.Thread]) -> None:
        """Until they have ended; they are told to by a failure of any of them, or by ``stop``."""
        for thread in threads:
            while thread.is_alive():
                thread.join(TICK_SECONDS)
                if self._stop.is_set():
                    self._halt.set()

    def _planner(self, run: Run) -> Planner:
        job = self._job
        keys: Keys = job.source
        if job.keys_from == "table":
            keys = EmptyRows(self._engine, job.table, job.scope, job.key_map)
        return Planner(
            self._engine,
            run,
            keys,
            self._owner,
            batch_size=job.batch_size,
            lease_seconds=job.lease_seconds,
            retry=self._retry,
            stop=self._halt,
        )

    def _worker(self, run: Run) -> Worker:
        job = self._job
        return Worker(
            self._engine,
            run,
            job.source,
            Sink(job.table, job.scope, job.model, insert=job.keys_from == "source"),
            job.key_map,
            self._owner,
            cosine=job.table.distance == "cosine",
            storage=job.table.storage,
            lease_seconds=job.lease_seconds,
            retry=self._retry,
            stop=self._halt,
            on_done=self._count,
        )

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; the first error stops the others and is raised by `work`.

        To leave off waiting for what passes, because the threads are to end, is no error.
        """
        try:
            work()
        except BaseException as error:
            if isinstance(error, TransientError) and self._halt.is_set():
                return
            with self._lock:
                self._failure = self._failure or error
            self._halt.set()

    def _keep(self, worker: Worker) -> None:
        """Renew the leases, also while the last batches are drained."""
        while not self._over.wait(self._job.lease_seconds / 4):
            self._unless_away(worker.renew)

    def _show(self) -> None:
        """Show the figures now and then."""
        while not self._over.wait(FIGURES_SECONDS):
            self._unless_away(self._look)

    def _look(self) -> None:
        self._seen = self._counted(self._seen[0])
        self._observer.advanced(*self._seen)

    @staticmethod
    def _unless_away(step: Callable[[], None]) -> None:
        """Where the database is away, leave a turn out: to wait for it or to give up is for the workers."""
        try:
            step()
        except DBAPIError as error:
            if not is_transient(error):
                raise

    def _counted(self, run: Run) -> tuple[Run, Counts]:
        with progress.transaction(self._engine) as connection:
            return progress.load_run(connection, run.id), progress.count(connection, run.id)

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        with self._lock:
            self._written += outcome.written

    def _leave(self, error: str | None) -> None:
        """Best effort: where the database is away, the planner's lease runs out by itself."""
        run = self._seen[0]

        def leave() -> None:
            with progress.transaction(self._engine) as connection:
                progress.release_plan(connection, run.id, self._owner)
                progress.note_error(connection, run.id, error)

        self._unless_away(leave)

    def _finish(self, began: float, *, repair: bool = False) -> Summary:
        """Call the run finished, and build the index where it was the last one into the column."""
        retry = Retry(self._job.retry_seconds, self._stop, self._observer.waiting)
        try:
            ended_it, to_build = self._end(retry, repair=repair)
            built: list[str] = []
            if to_build:
                self._observer.building(self._job.table.target)
                build = partial(build_deferred, self._engine, self._job.table, self._stop)
                built = retry.database("building the index", build)
        except TransientError:
            if self._stop.is_set():
                return self._summary(began, interrupted=True)
            raise
        return self._summary(began, interrupted=False, ended_it=ended_it, built=built)

    def _end(self, retry: Retry, *, repair: bool) -> tuple[bool, bool]:
        """Whether the run ended by this process, and whether an index waits for it to be built."""
        run = self._seen[0]
        tries = 0

        def end() -> tuple[str, bool, bool]:
            nonlocal tries
            tries += 1
            with progress.transaction(self._engine) as connection:
                # One after another, so that of all processes of all runs into the column exactly one comes last.
                progress.serialize_starts(connection, run.target)
                moved = progress.move(connection, run.id, RunState.FINISHED)
                state = progress.load_run(connection, run.id).state
                # A try whose commit went through, its answer lost, was this process's own.
                ended_it = moved or (tries > 1 and state == RunState.FINISHED)
                last = (ended_it or repair) and not progress.others_unfinished(connection, run.id, run.target)
                return state, ended_it, last and bool(progress.deferred_indexes(connection, run.target))

        state, ended_it, to_build = retry.database("finishing the run", end)
        if state != RunState.FINISHED:
            raise RunConflict(
                f"run {run.id} was {state} by somebody else; what it wrote stays", hint="amprenta-vectors status"
            )
        return ended_it, to_build

    def _summary(
        self, began: float, *, interrupted: bool, ended_it: bool = False, built: list[str] | None = None
    ) -> Summary:
        errors: dict[str, int] = {}

        def look() -> None:
            nonlocal errors
            self._seen = self._counted(self._seen[0])
            with progress.transaction(self._engine) as connection:
                errors = progress.errors_by_reason(connection, self._seen[0].id)

        self._unless_away(look)
        seconds = self._clock() - began
        return Summary(*self._seen, errors, seconds, self._written, interrupted, ended_it, built or [])
