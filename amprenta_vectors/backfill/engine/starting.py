"""Which run a process works at: one that it begins, or the unfinished one that it joins."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.database.index import column_is_empty
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.keys import has_empty
from amprenta_vectors.backfill.engine.keys_from import all_of, is_known, is_retry, side_of
from amprenta_vectors.backfill.progress import batches, events, figures, orders, plans, quarantine, runs, transactions
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.backfill.verify.row_sample import models_in_rows
from amprenta_vectors.errors import RunConflict

Mode = Literal["new", "resume", "join", "restart"]
"""What becomes of an unfinished run: it is in the way, resumed, or cancelled. Where there is none, ``resume`` also
takes a like run that has finished for the run's end, and ``join`` begins another, as ``new`` does."""


def begin_or_join(engine: Engine, job: Job, owner: str, mode: Mode) -> Run:
    """The run to work at; one process at a time decides. Raises `RunConflict`, `NotUpgraded`."""
    spec = job.spec
    with transaction(engine) as connection:
        transactions.require_tables(connection)
        transactions.serialize_starts(connection, spec.target)
        run = runs.unfinished_run(connection, spec.target, spec.scope)
        if run is not None and mode == "restart":
            batches.end_expired_sessions(connection, run.id)
            runs.cancel(connection, run.id)
            run = None
        if run is not None:
            if mode == "new":
                done = figures.count(connection, run.id).keys_done
                raise RunConflict(
                    f"run {run.id} into {run.target} is unfinished: {done:,} of {run.planned_keys:,} keys are done",
                    hint="--resume resumes it; --restart begins anew (rows already filled stay filled)",
                )
            runs.check_same(run, spec)
            return _join(connection, job, run, owner)
        ended = runs.finished_run(connection, spec.target, spec.fingerprint) if mode == "resume" else None
        if ended is not None and _nothing_new(connection, job, ended):
            return ended
        _refuse_second_model(connection, job)
        run = runs.begin_run(connection, spec, job.expected_keys)
        if is_known(job.keys_from):
            run = _plan_known(connection, job, run)
        events.record_event(connection, run.id, Event.BEGUN, {"expected_keys": run.expected_keys})
        return _join(connection, job, run, owner)


def _join(connection: Connection, job: Job, run: Run, owner: str) -> Run:
    detail = {"owner": owner, "workers": job.workers, "batch_size": job.batch_size}
    events.record_event(connection, run.id, Event.JOINED, detail)
    limits = dict(job.limits)
    if job.source_limits.max_read_units is not None and "max_read_units" not in run.limits:
        # What a run may cost holds for all its processes, also for those whose environment does not say it.
        limits.setdefault("max_read_units", job.source_limits.max_read_units)
    if limits:
        orders.change_limits(connection, run.id, limits)
    return run


def _plan_known(connection: Connection, job: Job, run: Run) -> Run:
    """Store all batches of a run whose keys are given, or are those of rows that were quarantined."""
    if is_retry(job.keys_from):
        origins = all_of(side_of(job.keys_from))
        quarantine.plan_retry(connection, run, origins, job.retry_reason, job.batch_size)
    else:
        plans.plan_given(connection, run.id, job.given_keys, job.batch_size)
    return runs.load_run(connection, run.id)


def _nothing_new(connection: Connection, job: Job, ended: Run) -> bool:
    """Whether a run like the one that ended would find nothing; of the source, that is taken for granted."""
    if is_known(job.keys_from) or job.keys_from == "reconcile" or job.replace:
        return False
    if job.keys_from == "table":
        return not has_empty(connection, job.table, job.scope)
    return ended.keys_from == "source" and ended.row_limit is None


def _refuse_second_model(connection: Connection, job: Job) -> None:
    """By what runs wrote, where the scope still holds a value, and by what some of its rows name."""
    named = runs.earlier_models(connection, job.table.target, job.scope)
    others = (named | models_in_rows(connection, job.table, job.scope)) - {job.model}
    if job.model is not None and others and not column_is_empty(connection, job.table, job.scope):
        raise RunConflict(
            f"{job.table.target} holds vectors of model {', '.join(sorted(others))}; this run is {job.model}",
            hint="two models never share a column: set EMBEDDING_MODEL to the one that made the vectors",
        )
