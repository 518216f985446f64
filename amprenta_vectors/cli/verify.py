"""``amprenta-vectors verify``: every vector of the source against the table."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import partial
from typing import IO, Literal

import click
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.job import Job
from amprenta_vectors.backfill.ledger import Ledger, OwnLedger
from amprenta_vectors.backfill.progress import Event
from amprenta_vectors.backfill.quota import LeasedMeter, metered
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.verify import Difference, Verification, Verifier
from amprenta_vectors.backfill.verify_computed import SampleVerifier
from amprenta_vectors.cli.options import (
    check_dimensions,
    choose_namespaces,
    key_map_for,
    namespace_options,
    open_database,
    open_table,
    scope_of,
    source_option,
)
from amprenta_vectors.cli.rates import ceilings_of
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import TransientError
from amprenta_vectors.pg.errors import sqlstate
from amprenta_vectors.schema.vector_table import SourceKind
from amprenta_vectors.sources.opening import open_origin
from amprenta_vectors.sources.protocol import TextSource

READ_ONLY = ("42501", "25006")
"""SQLSTATEs of a missing privilege and of a read-only transaction."""
SHOWN = 20
"""Differing keys of a kind that are printed; `--output` gets them all."""


@click.command()
@source_option
@namespace_options
@click.option("--workers", type=int, help="Threads that fetch.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--output", type=click.File("w"), help="Write every differing key there, one JSON object a line.")
@click.pass_context
def verify(
    ctx: click.Context,
    source: SourceKind | None,
    namespace: str | None,
    all_namespaces: bool,
    workers: int | None,
    output: IO[str] | None,
) -> None:
    """Compare every vector of the source with the table, bit for bit; exit 1 if any is missing, extra or different.

    Of rows that are their own source, 200 chosen by chance are embedded again and compared within what one model's
    vectors of a text differ by; of all rows, those with a text and without a vector are missing.
    """
    settings = Settings.load(workers=workers, source=source)
    engine = open_database(settings, 2)
    with engine.connect() as connection:
        table = open_table(settings, connection)
    origin = open_origin(settings, table, engine)
    check_dimensions(origin, table)
    clean = True
    for name in choose_namespaces(settings, origin, table, namespace, all_namespaces):
        job = Job(
            table=table,
            scope=scope_of(table, name),
            source=origin.open(table, name, with_metadata=False),
            key_map=key_map_for(engine, table, scope_of(table, name), origin.kind),
            keys_from="source",
            model=None,
            batch_size=settings.batch_size,
            workers=settings.workers,
            lease_seconds=settings.lease_seconds,
            retry_seconds=settings.retry_seconds,
            ceilings=ceilings_of(settings),
        )
        clean &= verify_job(engine, job, settings.log_format, threading.Event(), output=output)
    ctx.exit(0 if clean else 1)


def verify_job(
    engine: Engine,
    job: Job,
    log_format: Literal["text", "json"],
    stop: threading.Event,
    *,
    known: set[str] | None = None,
    ledger: Ledger | None = None,
    output: IO[str] | None = None,
) -> bool:
    """Compare and report one job; returns whether nothing differs but what is ``known`` to have been set aside.

    The source is asked within what ``ledger`` allows, else within the job's ceilings for this process alone.
    """
    known = known or set()
    shown: Counter[str] = Counter()
    unexpected = 0

    def on_difference(difference: Difference) -> None:
        nonlocal unexpected
        aside = difference.kind == "missing" and difference.key in known
        unexpected += not aside
        if output is not None:
            line = {"kind": difference.kind, "key": difference.key, "detail": difference.detail, "set_aside": aside}
            output.write(json.dumps(line) + "\n")
        shown[difference.kind] += 1
        if shown[difference.kind] <= SHOWN and log_format == "text":
            note = " (set aside)" if aside else ""
            detail = f": {difference.detail}" if difference.detail else ""
            click.echo(f"  {difference.kind}: {difference.key!r}{detail}{note}")

    verifier = _open_verifier(engine, job, Retry(job.retry_seconds, stop, lambda _: None))
    if log_format == "text":
        computed = job.source.description.computed
        click.echo("embedding a sample again" if computed else "comparing every vector with the source", err=True)
        if not job.source.description.lists:
            click.echo("the source cannot list its ids: it is asked for those of the table's rows", err=True)
    meter = LeasedMeter(ledger or OwnLedger(), lambda: job.ceilings, stop, partial(_go_on, stop))
    with metered(job.source, meter):
        found = verifier.run(on_difference)
    _record(engine, job, found, unexpected)
    _print_result(job, found, unexpected, log_format)
    return not unexpected


def _open_verifier(engine: Engine, job: Job, retry: Retry) -> Verifier | SampleVerifier:
    if isinstance(job.source, TextSource):
        return SampleVerifier(engine, job.table, job.scope, job.source, job.key_map, retry=retry)
    return Verifier(
        engine,
        job.table,
        job.scope,
        job.source,
        job.key_map,
        batch_size=job.batch_size,
        workers=job.workers,
        retry=retry,
    )


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise TransientError("the verification was interrupted", hint="amprenta-vectors verify")


def _record(engine: Engine, job: Job, found: Verification, unexpected: int) -> None:
    """Keep the result with the run that it looked at. A role that may only read leaves no record."""
    detail = {"compared": found.compared, **found.counts, "unexpected": unexpected}
    try:
        with progress.transaction(engine) as connection:
            run_id = progress.last_finished(connection, job.table.target, job.scope)
            if run_id is not None:
                progress.record_event(connection, run_id, Event.VERIFIED, detail)
    except DBAPIError as error:
        if sqlstate(error) not in READ_ONLY:
            raise


def _print_result(job: Job, found: Verification, unexpected: int, log_format: str) -> None:
    if log_format == "json":
        values = {"event": "verified", "compared": found.compared, **found.counts, "unexpected": unexpected}
        click.echo(json.dumps(values))
        return
    for kind, number in found.counts.items():
        if number > SHOWN:
            click.echo(f"  … {number - SHOWN:,} more {kind}; --output FILE lists them all")
    differing = ", ".join(f"{number:,} {kind}" for kind, number in found.counts.items())
    equal, how = "every vector is equal, bit for bit", ""
    if job.source.description.computed:
        equal, how = "each is as near as one model's are, and no row with a text lacks its vector", ", embedded again"
    verdict = equal if found.clean else differing
    click.echo(f"verified {found.compared:,} vectors of {job.source.description.identity}{how}: {verdict}")
