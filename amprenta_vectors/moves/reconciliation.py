"""A pass of a reconciliation: its result, and a dry run of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.engine.context import open_retry
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.limits.ledger import OwnLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter, metered
from amprenta_vectors.backfill.reconcile.dry_run import DryRun, deletes, refusal_of
from amprenta_vectors.errors import ExitCode, TransientError, worst
from amprenta_vectors.moves.events import PassEnded
from amprenta_vectors.moves.verification import go_on_until
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.kinds import unit_of

HASH_COLUMN = "embedding_hash"


def try_passes(engine: Engine, jobs: Sequence[Job], stop: threading.Event, observer: Observer = ignore) -> ExitCode:
    """Tell the observer what a pass of each job would come to, and change nothing; return how the passes would end."""
    codes = [ExitCode.CLEAN]
    for job in jobs:
        try:
            found = _try_pass(engine, job, stop)
        except TransientError:
            if not stop.is_set():
                raise
            return ExitCode.INTERRUPTED
        observer(found)
        codes.append(found.code)
    return worst(codes)


def _try_pass(engine: Engine, job: Job, stop: threading.Event) -> PassEnded:
    goes_on = go_on_until(stop, "the dry run was interrupted", "amprenta-vectors reconcile --dry-run")
    unit = unit_of(job.source.description.kind)
    meter = LeasedMeter(OwnLedger(unit=unit), lambda: job.source_limits, stop, goes_on, unit=unit)
    with metered(job.source, meter):
        found = DryRun(engine, job, retry=open_retry(job, stop)).run()
    return PassEnded(
        run=None,
        equal=found.equal,
        written=found.written,
        replaced=found.replaced,
        quarantined=found.quarantined,
        gone=found.gone,
        refused=refusal_of(found.gone, delete=deletes(job)),
        advice=_advice(job, found.quarantined),
    )


def pass_ended(job: Job, summary: Summary) -> PassEnded:
    """Return the event of a pass that has ended, from the summary of its run."""
    counts = summary.counts
    return PassEnded(
        run=summary.run.id,
        equal=counts.skipped,
        written=counts.written,
        replaced=counts.replaced,
        quarantined=summary.errors,
        gone=summary.gone,
        refused=refusal_of(summary.gone, delete=deletes(job)),
        advice=_advice(job, summary.errors),
        interrupted=summary.interrupted,
    )


def _advice(job: Job, quarantined: Mapping[str, int]) -> str | None:
    if job.slice.table.hash is not None or not quarantined.get(Reason.CHANGED_HERE):
        return None
    name = job.slice.table.qualified_name
    return (
        f"{name} has no column in which the engine could keep what it wrote, so that no row is known to be unchanged: "
        f"ALTER TABLE {name} ADD COLUMN {HASH_COLUMN} bigint"
        + (f' and hash = "{HASH_COLUMN}" in amprenta.toml' if job.slice.table.declared else "")
        + "; it holds for what is written from then on"
    )
