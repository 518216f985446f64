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
from typing import Literal, Protocol

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.index import build_deferred, defer_indexes
from amprenta_vectors.backfill.planner import EmptyRows, Keys, Planner
from amprenta_vectors.backfill.progress import Batch, Counts, Outcome, Run, RunSpec
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.sink import Sink
from amprenta_vectors.backfill.states import RunState
from amprenta_vectors.backfill.worker import Worker
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Source

TICK_SECONDS = 0.5

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
    """What a person or a log sees of a run while it goes on. Called from one thread but for `waiting`."""

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
    """How a run stands when this process leaves it."""

    run: Run
    counts: Counts
    errors: dict[str, int]
    seconds: float
    written_here: int
    interrupted: bool
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
        self._retry = Retry(job.retry_seconds, self._halt, observer.waiting)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._written = 0

    def start(self, mode: Mode) -> Run:
        """Begin a run or find the one to go on with. Raises `RunConflict`, `NotUpgraded`."""
        spec = self._job.spec
        with self._engine.begin() as connection:
            progress.require_tables(connection)
            progress.serialize_starts(connection, spec.target)
            run = progress.unfinished_run(connection, spec.target, spec.scope)
            if run is not None and mode == "restart":
                progress.move(connection, run.id, RunState.CANCELLED)
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
            self._refuse_second_model(progress.earlier_models(connection, spec.target, spec.scope))
            return progress.begin_run(connection, spec)

    def _refuse_second_model(self, earlier: set[str]) -> None:
        model = self._job.model
        if model is not None and earlier - {model}:
            raise RunConflict(
                f"{self._job.table.target} holds vectors of model {', '.join(sorted(earlier))}; this run is {model}",
                hint="two models never share a column: set EMBEDDING_MODEL to the one that made the vectors",
            )

    def work(self, run: Run) -> Summary:
        """Work at ``run`` beside any other process that does. Raises what stopped it; the run can be resumed."""
        began = self._clock()
        deferred = defer_indexes(self._engine, self._job.table, force=self._job.defer_index)
        self._observer.started(run, deferred)
        threads = [threading.Thread(target=self._guard, args=(work,), name=name) for name, work in self._roles(run)]
        heartbeat = threading.Thread(target=self._guard, args=(lambda: self._renew(run),), name="heartbeat")
        for thread in (*threads, heartbeat):
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self._watch(run)
        self._halt.set()
        heartbeat.join()
        if self._failure is not None:
            self._leave(run, str(self._failure))
            raise self._failure
        if self._stop.is_set():
            self._leave(run, None)
            return self._summary(run, began, interrupted=True)
        return self._finish(run, began)

    def _roles(self, run: Run) -> list[tuple[str, Callable[[], None]]]:
        job = self._job
        keys: Keys = job.source
        if job.keys_from == "table":
            keys = EmptyRows(self._engine, job.table, job.scope, job.key_map)
        planner = Planner(
            self._engine,
            run,
            keys,
            self._owner,
            batch_size=job.batch_size,
            lease_seconds=job.lease_seconds,
            retry=self._retry,
            stop=self._halt,
        )
        worker = Worker(
            self._engine,
            run,
            job.source,
            Sink(job.table, job.scope, job.model, insert=job.keys_from == "source"),
            job.key_map,
            self._owner,
            cosine=job.table.distance == "cosine",
            lease_seconds=job.lease_seconds,
            retry=self._retry,
            stop=self._halt,
            on_done=self._count,
        )
        return [("planner", planner.run), *((f"worker-{number}", worker.run) for number in range(job.workers))]

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; the first error stops the others and is raised by `work`."""
        try:
            work()
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            self._halt.set()

    def _renew(self, run: Run) -> None:
        while not self._halt.wait(self._job.lease_seconds / 4):
            self._retry.database("renewing leases", lambda: self._renew_once(run))

    def _renew_once(self, run: Run) -> None:
        with self._engine.begin() as connection:
            progress.renew(connection, run.id, self._owner, self._job.lease_seconds)

    def _watch(self, run: Run) -> None:
        if self._stop.wait(TICK_SECONDS):
            self._halt.set()
        counted = self._retry.database("counting", lambda: self._counted(run)) if not self._halt.is_set() else None
        if counted is not None:
            self._observer.advanced(*counted)
        elif self._halt.is_set():
            time.sleep(TICK_SECONDS / 10)

    def _counted(self, run: Run) -> tuple[Run, Counts]:
        with self._engine.connect() as connection:
            return progress.load_run(connection, run.id), progress.count(connection, run.id)

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        with self._lock:
            self._written += outcome.written

    def _leave(self, run: Run, error: str | None) -> None:
        with self._engine.begin() as connection:
            progress.release_plan(connection, run.id, self._owner)
            progress.note_error(connection, run.id, error)

    def _finish(self, run: Run, began: float) -> Summary:
        """Build the index where this is the last run to write, then call the run finished."""
        with self._engine.connect() as connection:
            last = not progress.others_have_work(connection, run.id, run.target)
            waiting = progress.deferred_indexes(connection, run.target)
        built: list[str] = []
        if last and waiting:
            self._observer.building(run.target)
            built = build_deferred(self._engine, self._job.table)
        with self._engine.begin() as connection:
            progress.move(connection, run.id, RunState.FINISHED)
        return self._summary(run, began, interrupted=False, built=built)

    def _summary(self, run: Run, began: float, *, interrupted: bool, built: list[str] | None = None) -> Summary:
        now, counts = self._counted(run)
        with self._engine.connect() as connection:
            errors = progress.errors_by_reason(connection, run.id)
        return Summary(now, counts, errors, self._clock() - began, self._written, interrupted, built or [])
