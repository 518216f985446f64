"""The choice of the run that a process works at: one that it starts, or the unfinished one that it joins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.progress import batches, events, figures, orders, runs
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import require_tables, serialize_starts, transaction
from amprenta_vectors.backfill.verify.row_sample import models_in_rows
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.kinds import Unit, unit_of

Mode = Literal["new", "resume", "join", "restart"]
"""The ways to start beside an unfinished run: ``new`` refuses to, ``resume`` and ``join`` resume it, ``restart``
cancels it and starts another. If there is none, each starts a run; but ``resume`` returns a like run that has finished,
if it left nothing to do."""


_COST_LIMITS: Mapping[Unit, Sequence[str]] = {"read_units": ("max_read_units",), "tokens": ("token_price", "max_cost")}


def start_or_join(engine: Engine, job: Job, owner: str, mode: Mode, *, queue: bool = False) -> Run:
    """Return the run to work at; one process at a time decides. Raises `RunConflict`, `NotUpgraded`."""
    spec = job.spec
    with transaction(engine) as connection:
        require_tables(connection)
        serialize_starts(connection, spec.target)
        if spec.namespace is not None:
            check_namespace(connection, job.slice.table, spec.namespace, starting=True)
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
                    hint="--resume resumes it; --restart starts anew (rows already filled stay filled)",
                )
            runs.check_same(run, spec)
            if queue:
                return run
            if run.state == RunState.PLANNED:
                run = _begun(connection, runs.start_planned(connection, run.id, job.expected_keys))
            return _join(connection, job, run, owner)
        ended = runs.finished_run(connection, spec.target, spec.fingerprint) if mode == "resume" else None
        if ended is not None and job.kind.finds_nothing(connection, job, ended):
            return ended
        _refuse_second_model(connection, job)
        if mode != "restart":
            _refuse_second_source(connection, job)
        if queue:
            return runs.begin_run(connection, spec, state=RunState.PLANNED)
        run = runs.begin_run(connection, spec, job.expected_keys)
        if job.kind.plan_known(connection, job, run):
            run = runs.load_run(connection, run.id)
        return _join(connection, job, _begun(connection, run), owner)


def _begun(connection: Connection, run: Run) -> Run:
    events.record_event(connection, run.id, Event.BEGUN, {"expected_keys": run.expected_keys})
    return run


def _join(connection: Connection, job: Job, run: Run, owner: str) -> Run:
    detail = {"owner": owner, "workers": job.workers, "batch_size": job.batch_size}
    events.record_event(connection, run.id, Event.JOINED, detail)
    limits = dict(job.limits)
    for name in _COST_LIMITS[unit_of(run.source_kind)]:
        ours = getattr(job.source_limits, name)
        if ours is not None and name not in run.limits:
            # The limit of a run's cost holds for all its processes, also for those whose environment does not set it.
            limits.setdefault(name, ours)
    if limits:
        orders.change_limits(connection, run.id, limits)
    return run


def _refuse_second_model(connection: Connection, job: Job) -> None:
    """Raise `RunConflict` if the slice already holds vectors of another model, as runs recorded or rows name it."""
    named = runs.earlier_models(connection, job.slice.target, job.slice.scope)
    others = (named | models_in_rows(connection, job.slice)) - {job.model}
    if job.model is not None and others and not job.slice.is_unfilled(connection):
        raise RunConflict(
            f"{job.slice.target} holds vectors of model {', '.join(sorted(others))}; this run is {job.model}",
            hint="two models never share a column: set EMBEDDING_MODEL to the one that made the vectors",
        )


def _refuse_second_source(connection: Connection, job: Job) -> None:
    """Raise `RunConflict` if the slice holds vectors of another source; what rows make of their own text is none."""
    if job.source.description.kind == "rows" or job.slice.is_unfilled(connection):
        return
    before = runs.earlier_source(connection, job.slice.target, job.slice.scope)
    if before not in (None, job.spec.source):
        raise RunConflict(
            f"{job.slice.target} holds vectors of {before}; this run is of {job.spec.source}",
            hint="name that source again; --restart takes the other one beside it",
        )
