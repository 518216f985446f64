"""A move of one source into one slice: plan, run, verify, conclude."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, Unpack

from amprenta_vectors.backfill.database.index import build_deferred
from amprenta_vectors.backfill.database.stats_view import refresh_stats
from amprenta_vectors.backfill.database.throttle import Throttle
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import MoveEvent, Observer, ignore
from amprenta_vectors.backfill.engine.run import Backfill, Summary
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.limits.ledger import RunLedger
from amprenta_vectors.backfill.progress import figures, indexes, proof, quarantine, runs
from amprenta_vectors.backfill.progress.keys_from import KeysFrom
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.backfill.reconcile.dry_run import deletes, refusal_of
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ExitCode, RunConflict, TransientError, worst
from amprenta_vectors.moves.ends import Ends, choose_namespaces, open_ends
from amprenta_vectors.moves.events import ComparisonInterrupted, Noticed, RunEnded, Verified
from amprenta_vectors.moves.indexing import build_settings, telling_plans, watching_builds
from amprenta_vectors.moves.jobs import JobOptions, expected_keys, open_comparison, open_job
from amprenta_vectors.moves.model_check import check_one_model
from amprenta_vectors.moves.plan import Plan, plan_job
from amprenta_vectors.moves.readiness import open_throttle
from amprenta_vectors.moves.reconciliation import pass_ended
from amprenta_vectors.moves.reports import leave_report
from amprenta_vectors.moves.verification import verify_command, verify_job
from amprenta_vectors.reasons import ASKED_FOR


class Move:
    """One source into one slice of a vector table, as the settings name both; nothing is connected before it is needed.

    ``namespace`` is by default the settings' own. With ``mode`` ``resume``, the default, a move resumes a run that was
    started, also by other processes, and does nothing if that has ended and left nothing to do. Further options are
    those of a job: ``keys_from``, ``limit``, ``replace`` and what `JobOptions` lists. Several moves may share ``ends``.
    Once ``stop`` is set, a run commits what is in hand and returns.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        namespace: str | None = None,
        mode: Mode = "resume",
        keys_from: KeysFrom | None = None,
        ends: Ends | None = None,
        stop: threading.Event | None = None,
        check_model: bool = True,
        **options: Unpack[JobOptions],
    ) -> None:
        self.stop = stop or threading.Event()
        self.summary: Summary | None = None
        self._settings = settings
        self._namespace = namespace
        self._mode: Mode = mode
        self._keys_from = keys_from
        self._ends = ends
        self._owns_ends = ends is None
        self._check_model = check_model
        self._options = options
        self._job: Job | None = None
        self._throttle: Throttle | None = None

    def __enter__(self) -> Self:
        """Return the move itself; on leaving, the connections that it opened are closed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owns_ends and self._ends is not None:
            self._ends.origin.close()
            self._ends.engine.dispose()
            self._ends = self._job = self._throttle = None

    def plan(self, observer: Observer = ignore) -> Plan:
        """Look at both ends, count and estimate; change nothing."""
        return plan_job(self.open_ends(observer).engine, self.open_job(observer))

    def queue(self, observer: Observer = ignore) -> None:
        """Plan the run, if one would be started, so that runs before it into the column know that it comes."""
        ends, job = self.open_ends(observer), self.open_job(observer)
        if job.kind.keys_from not in ("table", "source"):
            return
        Backfill(ends.engine, job, observer, self.stop).start(self._mode, queue=True)
        if self._mode in ("new", "restart"):
            self._mode = "resume"

    def run(self, observer: Observer = ignore) -> Summary | None:
        """Start or resume the run; work until it ends, fails or ``stop`` is set. Returns None if that was set before.

        Raises `AmprentaError` for what stopped it; the run can be resumed.
        """
        if self.stop.is_set():
            return None
        throttle = self.prepare(observer)
        ends, job = self.open_ends(observer), self.open_job(observer)
        job = replace(job, expected_keys=expected_keys(ends.engine, job))
        build = partial(build_deferred, settings=build_settings(self._settings), say=telling_plans(observer))
        work = Backfill(ends.engine, job, observer, self.stop, before_claim=throttle.recent_reason, build_index=build)
        with watching_builds(ends.engine, job.slice.table, observer):
            self.summary = work.work(work.start(self._mode))
        observer(self._ended(job, self.summary))
        if self.summary.ended_it and not job.builds_index:
            self._tell_deferred(ends, job, observer)
        return self.summary

    def verify(self, observer: Observer = ignore) -> Verified:
        """Compare every vector of the source with the table, whatever runs there were; rows are only read."""
        ends = self.open_ends(observer)
        return verify_job(ends.engine, open_comparison(self._settings, ends, self._name(ends)), observer, self.stop)

    def conclude(self, observer: Observer = ignore, *, verify: bool = True) -> ExitCode:
        """Refresh the statistics, compare every vector and leave the report; return how the move ended.

        Of all processes that share a run, the one that ended it does so; where that one was killed, whoever comes to
        resume. A move that has not run here concludes the last run into its slice; raises `RunConflict` where that is
        unfinished, or there is none.
        """
        if self.summary is None and self.stop.is_set():
            return ExitCode.INTERRUPTED
        ends, job = self.open_ends(observer), self.open_job(observer)
        summary = self.summary or _last_run(ends, job)
        code = _code_of(job, summary)
        report = partial(leave_report, ends.engine, summary.run.id, self._settings.report, observer)
        unproven = summary.found_finished and verify and not self._is_verified(ends, job)
        if not (summary.ended_it or unproven):
            if summary.indexes_built:
                # The run had ended before, and its index was still to be built.
                report()
            return code
        stale = refresh_stats(ends.engine, job.slice.table)
        if stale is not None:
            observer(Noticed(stale))
        try:
            if verify and self._compare(ends, job, summary, observer).unexpected:
                code = ExitCode.FAILED
        except TransientError:
            if not self.stop.is_set():
                raise
            observer(ComparisonInterrupted(verify_command(self._settings, job.source.description)))
            code = ExitCode.INTERRUPTED
        finally:
            report()
        return code

    def complete(self, observer: Observer = ignore, *, verify: bool = True) -> ExitCode:
        """Run and conclude the move; return how it ended."""
        self.run(observer)
        return self.conclude(observer, verify=verify)

    def prepare(self, observer: Observer = ignore, throttle: Throttle | None = None) -> Throttle:
        """Tell the observer, once, what to know before the run; return its throttle. `run` calls this if nobody has.

        Raises `ModelMismatch`, and `ConfigError` for a throttle that cannot be asked.
        """
        if self._throttle is not None:
            return self._throttle
        ends, job = self.open_ends(observer), self.open_job(observer)
        self._throttle = throttle or open_throttle(self._settings, ends, observer, insert=job.inserts)
        if self._check_model:
            check_one_model(self._settings, ends, self._name(ends), job, observer)
        return self._throttle

    def open_ends(self, observer: Observer = ignore) -> Ends:
        """Return both ends, opened at the first call."""
        if self._ends is None:
            self._ends = open_ends(self._settings, observer)
        return self._ends

    def open_job(self, observer: Observer = ignore) -> Job:
        """Return the job, opened at the first call."""
        if self._job is None:
            ends = self.open_ends(observer)
            name = self._name(ends)
            self._job = open_job(self._settings, ends, name, self._mode, self._keys_from, **self._options)
        return self._job

    def _name(self, ends: Ends) -> str:
        [name] = choose_namespaces(self._settings, ends, self._namespace)
        return name

    def _ended(self, job: Job, summary: Summary) -> MoveEvent:
        if job.kind.keys_from == "reconcile":
            return pass_ended(job, summary)
        return RunEnded(summary, job.source.description.count)

    @staticmethod
    def _tell_deferred(ends: Ends, job: Job, observer: Observer) -> None:
        with ends.engine.connect() as connection:
            names = [index.index_name for index in indexes.deferred_indexes(connection, job.slice.target)]
        if names:
            text = (
                f"index {', '.join(names)} stays deferred for the rows to come; amprenta-vectors index build builds it"
            )
            observer(Noticed(text))

    @staticmethod
    def _is_verified(ends: Ends, job: Job) -> bool:
        with ends.engine.connect() as connection:
            return proof.last_verified(connection, job.slice.target, job.slice.scope) is not None

    def _compare(self, ends: Ends, job: Job, summary: Summary, observer: Observer) -> Verified:
        """Compare at the cost of the run, within the limits that its processes share."""
        with ends.engine.connect() as connection:
            known = quarantine.quarantined_keys(connection, job.slice.target, job.slice.scope)
        limited = replace(job, source_limits=job.source_limits.under(summary.run.limits))
        ledger = RunLedger(ends.engine, summary.run.id)
        return verify_job(ends.engine, limited, observer, self.stop, known=known, ledger=ledger)


def plan(settings: Settings, ends: Ends, moves: Sequence[Move], observer: Observer = ignore) -> list[Plan]:
    """Return the plans of moves between the same ends; change nothing."""
    _open_throttle(settings, ends, moves, observer)
    return [move.plan(observer) for move in moves]


def prepare(settings: Settings, ends: Ends, moves: Sequence[Move], observer: Observer = ignore) -> None:
    """Prepare moves between the same ends: whatever can be refused is refused before the first of them starts."""
    throttle = _open_throttle(settings, ends, moves, observer)
    for move in moves:
        move.prepare(observer, throttle)


def _open_throttle(settings: Settings, ends: Ends, moves: Sequence[Move], observer: Observer) -> Throttle:
    inserts = any(move.open_job(observer).inserts for move in moves)
    return open_throttle(settings, ends, observer, insert=inserts)


def complete(moves: Sequence[Move], observer: Observer = ignore, *, verify: bool = True) -> ExitCode:
    """Run and conclude moves one after another; return the worst code.

    The runs are all planned first: the index that the first of them defers is built by the last.
    """
    if len(moves) > 1:
        for move in moves:
            move.queue(observer)
    return worst([move.complete(observer, verify=verify) for move in moves])


def _code_of(job: Job, summary: Summary) -> ExitCode:
    if summary.interrupted:
        return ExitCode.INTERRUPTED
    if refusal_of(summary.gone, delete=deletes(job)) is not None:
        return ExitCode.FAILED
    return ExitCode.QUARANTINED if set(summary.errors) - ASKED_FOR else ExitCode.CLEAN


def _last_run(ends: Ends, job: Job) -> Summary:
    """Return how the last run into the slice stands, at which other processes have worked."""
    with transaction(ends.engine) as connection:
        unfinished = runs.unfinished_run(connection, job.slice.target, job.slice.scope)
        run_id = runs.last_finished(connection, job.slice.target, job.slice.scope)
        if unfinished is not None or run_id is None:
            found = f"run {unfinished.id} is unfinished" if unfinished is not None else "there was no run"
            raise RunConflict(
                f"{found} into {job.slice.target}: there is nothing to conclude",
                hint="run the move to its end first: amprenta-vectors backfill --resume",
            )
        run, counts = runs.load_run(connection, run_id), figures.count(connection, run_id)
        errors = quarantine.errors_by_reason(connection, run_id)
    return Summary(run, counts, errors, seconds=0.0, written_here=0, interrupted=False, ended_it=True)
