"""The context of a run in this process: what planner, workers and ending share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.hold import Hold
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import Observer, Waiting
from amprenta_vectors.backfill.limits.ledger import RunLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter
from amprenta_vectors.backfill.progress import events, runs
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.schema.kinds import unit_of
from amprenta_vectors.stores.outbox import Outbox


@dataclass(frozen=True)
class RunContext:
    """A run and what everything that works at it in this process shares.

    ``owner`` names this process among those of the run; ``hold`` says whether it may begin something; ``stop`` is set
    by the person who has this process end.
    """

    engine: Engine
    run: Run
    job: Job
    owner: str
    hold: Hold
    stop: threading.Event
    observer: Observer

    @cached_property
    def retry(self) -> Backoff:
        """The retry of a step; it raises `Held` once the run is held."""
        return self._open_retry(self.hold.held, self.hold.check)

    @cached_property
    def write_retry(self) -> Backoff:
        """The retry of a write; it raises `Held` once the run is held and the grace for a write is over."""
        return self._open_retry(self.hold.held, self.hold.check_write)

    @cached_property
    def final_retry(self) -> Backoff:
        """The retry of a step of the run's end, until ``stop`` is set, whatever is ordered of the run meanwhile."""
        return self._open_retry(self.stop)

    @cached_property
    def outbox(self) -> Outbox:
        """The outbox of the slice."""
        return Outbox(self.engine, self.run.target, self.run.scope)

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[Connection]:
        """Return a transaction on the progress tables; what is not ``durable`` may be lost if the server crashes."""
        return transaction(self.engine, durable=durable)

    def has_work(self) -> bool:
        """Return whether a batch of the run is still to be planned or done."""
        with self.transaction() as connection:
            return runs.work_left(connection, self.run.id)

    def tell_wait(self, reason: str | None) -> None:
        """Tell the observer why the run waits; None says that it waits no longer."""
        self.observer(Waiting(self.run.id, reason))

    def note(self, event: Event, detail: Mapping[str, object]) -> None:
        """Record an event of the run."""
        with self.transaction() as connection:
            events.record_event(connection, self.run.id, event, detail)

    def open_meter(self) -> LeasedMeter:
        """Return the meter of requests to the source, within the limits that all processes of the run share."""
        return LeasedMeter(
            RunLedger(self.engine, self.run.id),
            lambda: self.job.source_limits.under(self.hold.limits),
            self.hold.held,
            self.hold.check,
            self.tell_wait,
            unit=unit_of(self.run.source_kind),
        )

    def _open_retry(self, stop: threading.Event, check: Callable[[], None] | None = None) -> Backoff:
        return open_retry(self.job, stop, self.tell_wait, check)


def open_retry(
    job: Job,
    stop: threading.Event,
    on_wait: Callable[[str | None], None] = lambda _: None,
    check: Callable[[], None] | None = None,
) -> Backoff:
    """Return the retry of a job's steps, until ``stop`` is set."""
    return Backoff(job.retry_seconds, stop, on_wait, check, longest_wait_seconds=job.longest_wait_seconds)
