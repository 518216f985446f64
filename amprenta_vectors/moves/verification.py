"""The verification of a job: every vector compared, and the result recorded with the last run that finished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import datetime

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.protocol import SourceDescription, TextSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.context import open_retry
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.limits.ledger import Ledger, OwnLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter, metered
from amprenta_vectors.backfill.progress import proof
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.backfill.verify.compare import Difference, Verifier
from amprenta_vectors.backfill.verify.resample import SampleVerifier
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import TransientError
from amprenta_vectors.moves.events import ComparisonStarted, Differed, Verified
from amprenta_vectors.pg.errors import sqlstate
from amprenta_vectors.schema.kinds import unit_of
from amprenta_vectors.schema.registry import PRODUCTS

READ_ONLY = ("42501", "25006")
"""The SQLSTATEs of a missing privilege and of a read-only transaction."""


def verify_job(
    engine: Engine,
    job: Job,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
    *,
    known: Collection[str] = (),
    ledger: Ledger | None = None,
) -> Verified:
    """Compare one job's source and slice; ``known`` keys have been quarantined and are expected to be missing.

    Requests to the source are counted in ``ledger``, by default in one for this process alone, within the job's
    limits. Raises `TransientError` once ``stop`` is set.
    """
    stop = stop or threading.Event()
    described = job.source.description
    unexpected = 0

    def tell(difference: Difference) -> None:
        nonlocal unexpected
        aside = difference.kind == "missing" and difference.key in known
        unexpected += not aside
        observer(Differed(difference.kind, difference.key, difference.detail, aside))

    verifier = _open_verifier(engine, job, open_retry(job, stop))
    with engine.connect() as connection:
        began = proof.now(connection)
    observer(ComparisonStarted(described.computed, described.lists))
    goes_on = go_on_until(stop, "the verification was interrupted", "amprenta-vectors verify")
    unit = unit_of(described.kind)
    meter = LeasedMeter(ledger or OwnLedger(unit=unit), lambda: job.source_limits, stop, goes_on, unit=unit)
    with metered(job.source, meter):
        found = verifier.run(tell)
    result = Verified(described.identity, described.computed, found.compared, found.counts, unexpected)
    _record(engine, job, began, result)
    observer(result)
    return result


def verify_command(settings: Settings, source: SourceDescription) -> str:
    """Return the command that compares the table with a source, with the variables that commands of products imply."""
    table = f"AMPRENTA_TABLE={settings.table} " if settings.table == PRODUCTS.name else ""
    if not source.computed:
        return f"{table}amprenta-vectors verify"
    return f"{table}AMPRENTA_EMBEDDER={settings.embedder} amprenta-vectors verify --source {source.kind}"


def go_on_until(stop: threading.Event, message: str, hint: str) -> Callable[[], None]:
    """Return a check that raises `TransientError` once ``stop`` is set."""

    def check() -> None:
        if stop.is_set():
            raise TransientError(message, hint=hint)

    return check


def _open_verifier(engine: Engine, job: Job, retry: Backoff) -> Verifier | SampleVerifier:
    if isinstance(job.source, TextSource):
        return SampleVerifier(engine, job.slice, job.source, retry=retry)
    return Verifier(engine, job.slice, job.source, batch_size=job.batch_size, workers=job.workers, retry=retry)


def _record(engine: Engine, job: Job, began: datetime, found: Verified) -> None:
    """Keep the result with the run that it looked at. A role that may only read leaves no record."""
    detail = {"compared": found.compared, **found.counts, "unexpected": found.unexpected}
    try:
        with transaction(engine) as connection:
            proof.record(connection, job.slice.target, job.slice.scope, began, detail)
    except DBAPIError as error:
        if sqlstate(error) not in READ_ONLY:
            raise
