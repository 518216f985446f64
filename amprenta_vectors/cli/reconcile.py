"""``amprenta-vectors reconcile``: what changed at the source since, brought to the table."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.gone import Gone
from amprenta_vectors.backfill.index import build_deferred
from amprenta_vectors.backfill.job import Job
from amprenta_vectors.backfill.ledger import OwnLedger
from amprenta_vectors.backfill.preflight import check_target
from amprenta_vectors.backfill.quota import LeasedMeter, metered
from amprenta_vectors.backfill.reconcile import DryRun, refusal_of
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.run import Backfill
from amprenta_vectors.backfill.stats_view import refresh_stats
from amprenta_vectors.backfill.throttle import Throttle
from amprenta_vectors.batch import Reason
from amprenta_vectors.cli.backfill import CLEAN, FAILED, INTERRUPTED, SET_ASIDE, WORST_FIRST, open_ends, open_job
from amprenta_vectors.cli.display import open_display
from amprenta_vectors.cli.index_text import build_settings, say_plan
from amprenta_vectors.cli.model_check import declare_model
from amprenta_vectors.cli.options import (
    choose_namespaces,
    namespace_options,
    run_options,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.cli.rates import orders_of, rate_options
from amprenta_vectors.cli.readiness import open_throttle, say_notices
from amprenta_vectors.cli.report import leave_report
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, TransientError
from amprenta_vectors.schema.vector_table import SourceKind, VectorTable
from amprenta_vectors.sources.protocol import Origin


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what a pass would come to, and change nothing.")
@click.option("--delete", is_flag=True, help="Delete rows that the source no longer has; without, they are listed.")
@click.option("--batch-size", type=int, help="Keys a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@source_option
@namespace_options
@rate_options
@run_options
@click.pass_context
def reconcile(
    ctx: click.Context,
    dry_run: bool,
    delete: bool,
    batch_size: int | None,
    workers: int | None,
    source: SourceKind | None,
    namespace: str | None,
    all_namespaces: bool,
    rates: dict[str, str | None],
    model: str | None,
    report: Path | None,
    log_format: str | None,
) -> None:
    """Bring the table to what the source has by now: new rows, changed ones, and with --delete those that are gone.

    Run it again and again until the switch. A row that was changed here stays as it is, and is listed: exit 3. A pass
    that was interrupted goes on by the same command.
    """
    settings = Settings.load(
        batch_size=batch_size,
        workers=workers,
        source=source,
        embedding_model=model,
        report=report,
        log_format=log_format,
        **rates,
    )
    engine, table, origin = open_ends(settings)
    if not origin.lists:
        raise ConfigError(
            f"{origin.name} cannot list its ids, so that nobody can tell which are new",
            hint="amprenta-vectors verify compares the rows that are there",
        )
    names = choose_namespaces(settings, origin, table, namespace, all_namespaces)
    jobs = [
        replace(_open_job(settings, engine, table, origin, name), delete=delete, limits=orders_of(settings, rates))
        for name in names
    ]
    if delete and any(job.key_map.makes_keys for job in jobs):
        with engine.connect() as connection:
            check_target(connection, table, insert=True, delete=True)
    if dry_run:
        ctx.exit(_worst([_look(engine, settings, job) for job in jobs]))
    throttle = open_throttle(engine, settings, table, insert=any(job.inserts for job in jobs))
    for name, job in zip(names, jobs, strict=True):
        declare_model(engine, settings, origin, name, job)
    with stop_on_signal() as stop:
        ctx.exit(_worst([_work(engine, settings, job, throttle, stop) for job in jobs]))


def _open_job(settings: Settings, engine: Engine, table: VectorTable, origin: Origin, namespace: str) -> Job:
    return open_job(settings, engine, table, origin, namespace, "resume", "reconcile")


def _worst(codes: list[int]) -> int:
    return next(code for code in WORST_FIRST if code in codes)


def _look(engine: Engine, settings: Settings, job: Job) -> int:
    with stop_on_signal() as stop:
        retry = Retry(settings.retry_seconds, stop, lambda _: None)
        meter = LeasedMeter(OwnLedger(), lambda: job.ceilings, stop, partial(_go_on, stop))
        try:
            with metered(job.source, meter):
                found = DryRun(engine, job, retry=retry).run()
        except TransientError:
            if not stop.is_set():
                raise
            click.echo("the dry run was interrupted", err=True)
            return INTERRUPTED
    figures = {"equal": found.equal, "written": found.written, "replaced": found.replaced}
    return _say(settings, job, {"event": "dry_run"}, figures, found.set_aside, found.gone)


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise TransientError("the dry run was interrupted", hint="amprenta-vectors reconcile --dry-run")


def _work(engine: Engine, settings: Settings, job: Job, throttle: Throttle, stop: threading.Event) -> int:
    if stop.is_set():
        return INTERRUPTED
    job = replace(job, expected_keys=None if job.source.description.computed else job.source.description.count)
    with closing(open_display(settings.log_format)) as display:
        say = partial(say_plan, log_format=settings.log_format)
        build = partial(build_deferred, settings=build_settings(settings), say=say)
        work = Backfill(engine, job, display, stop, before_claim=throttle.reason, build_index=build)
        summary = work.work(work.start("resume"))
    counts = summary.counts
    figures = {"equal": counts.skipped, "written": counts.written, "replaced": counts.replaced}
    about = {"event": "interrupted" if summary.interrupted else "reconciled", "run": summary.run.id}
    code = _say(settings, job, about, figures, summary.errors, summary.gone)
    if summary.interrupted:
        if settings.log_format == "text":
            click.echo("  interrupted; go on with: amprenta-vectors reconcile")
        return INTERRUPTED
    if summary.ended_it:
        stale = refresh_stats(engine, job.table)
        if stale is not None:
            say_notices(settings, [stale])
        leave_report(engine, summary.run.id, settings)
    return code


def _say(
    settings: Settings,
    job: Job,
    about: Mapping[str, object],
    figures: Mapping[str, int],
    set_aside: Mapping[str, int],
    gone: Gone | None,
) -> int:
    """Print how a pass ended, or would end; returns the exit code."""
    refusal = refusal_of(gone, delete=job.delete)
    ends = {"gone": gone.gone, "deleted": gone.deleted, "emptied": gone.emptied} if gone is not None else {}
    if settings.log_format == "json":
        click.echo(json.dumps({**about, **figures, **ends, "set_aside": dict(set_aside), "refused": refusal}))
    else:
        _say_in_words(job, about, figures, set_aside, gone)
    if refusal is not None:
        click.echo(
            f"error: {refusal}\n  hint: look whether it is the right source and namespace; if it is, delete the rows "
            "by a statement of your own",
            err=True,
        )
        return FAILED
    return SET_ASIDE if set_aside else CLEAN


def _say_in_words(
    job: Job,
    about: Mapping[str, object],
    figures: Mapping[str, int],
    set_aside: Mapping[str, int],
    gone: Gone | None,
) -> None:
    begin = f"run {about['run']}" if "run" in about else "dry run, nothing was changed"
    click.echo(
        f"{begin}: {figures['equal']:,} rows equal, {figures['written']:,} written, "
        f"of them {figures['replaced']:,} replaced"
    )
    if gone is not None and gone.gone:
        click.echo(
            f"  gone at the source: {gone.gone:,} rows, {gone.deleted:,} deleted, "
            f"{gone.emptied:,} of the application's own emptied"
        )
    for reason, number in set_aside.items():
        click.echo(f"  listed: {number:,} {reason}")
    if set_aside and "run" in about:
        click.echo(f"  row by row: amprenta-vectors errors {about['run']}")
    if job.table.hash is None and set_aside.get(Reason.CHANGED_HERE):
        column = "embedding_hash"
        click.echo(
            f"  {job.table.qualified_name} has no column in which the engine could keep what it wrote, so that no row "
            f"is known to be unchanged: ALTER TABLE {job.table.qualified_name} ADD COLUMN {column} bigint"
            + (f' and hash = "{column}" in amprenta.toml' if job.table.declared else "")
            + "; it holds for what is written from then on"
        )
