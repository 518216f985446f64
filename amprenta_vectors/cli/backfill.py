"""``amprenta-vectors backfill``, which is also ``scripts/backfill.py``."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.allocator import reuse_freed_memory
from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.index import build_deferred
from amprenta_vectors.backfill.job import Job
from amprenta_vectors.backfill.keys import count_empty
from amprenta_vectors.backfill.keys_from import KeysFrom, is_known, side_of
from amprenta_vectors.backfill.ledger import RunLedger
from amprenta_vectors.backfill.preflight import check_target
from amprenta_vectors.backfill.progress import Run
from amprenta_vectors.backfill.run import Backfill, Summary
from amprenta_vectors.backfill.starting import Mode
from amprenta_vectors.backfill.stats_view import refresh_stats
from amprenta_vectors.backfill.throttle import Throttle
from amprenta_vectors.cli.display import open_display, showing_index_progress
from amprenta_vectors.cli.dry_run import describe_offline, describe_run
from amprenta_vectors.cli.index_text import build_settings, say_plan
from amprenta_vectors.cli.model_check import declare_model
from amprenta_vectors.cli.options import (
    check_dimensions,
    choose_namespaces,
    key_map_for,
    namespace_options,
    open_database,
    open_table,
    run_options,
    scope_of,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.cli.rates import ceilings_of, orders_of, rate_options
from amprenta_vectors.cli.readiness import open_throttle, say_notices
from amprenta_vectors.cli.report import leave_report
from amprenta_vectors.cli.verify import verify_job
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, TransientError
from amprenta_vectors.schema.registry import PRODUCTS
from amprenta_vectors.schema.vector_table import SourceKind, VectorTable
from amprenta_vectors.sources.opening import open_origin
from amprenta_vectors.sources.protocol import Origin, SourceDescription

CLEAN, FAILED, SET_ASIDE, INTERRUPTED = 0, 1, 3, 130
WORST_FIRST = (INTERRUPTED, FAILED, SET_ASIDE, CLEAN)
"""Of several namespaces' exit codes the worst is the command's."""
KEPT_BYTES = 16 * 1024 * 1024
"""Freed memory that is kept for the next batch; one of 1000 × 1536 is 6 MB, as it comes and as it is kept."""
SPARE_CONNECTIONS = 6
"""Connections beside those of the workers: planner, leases, figures, orders, read units, and one to spare."""


@click.command()
@click.option("--resume", is_flag=True, help="Start what is queued, or go on with what was begun.")
@click.option("--restart", is_flag=True, help="Begin anew; rows already filled stay filled.")
@click.option("--dry-run", is_flag=True, help="Look at both ends, estimate, and change nothing.")
@click.option("--offline", is_flag=True, help="With --dry-run: only read the settings, connect to nothing.")
@click.option("--batch-size", type=int, help="Keys a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@source_option
@namespace_options
@click.option(
    "--keys-from",
    type=click.Choice(["table", "source"]),
    help="Fill the rows that have no embedding, or list the source and insert the rows that are not there.  "
    "[default: table; with --resume, as the run was begun]",
)
@click.option(
    "--drain-seconds",
    type=float,
    help="On a pause or a signal, give back what is in hand after so long.  "
    "[env var: AMPRENTA_DRAIN_SECONDS; default: 10]",
)
@click.option(
    "--max-bad-share",
    type=float,
    help="Stop once more than this share of the keys was set aside, 0 to 1.  "
    "[env var: AMPRENTA_MAX_BAD_SHARE; default: 0.05]",
)
@click.option(
    "--force", is_flag=True, help="List the source, and replace what is there where the source has another vector."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many keys, to try it out.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every vector afterwards.")
@click.option("--defer-index", is_flag=True, help="Drop the ANN index for the load though the column holds values.")
@rate_options
@run_options
@click.pass_context
def backfill(
    ctx: click.Context,
    resume: bool,
    restart: bool,
    dry_run: bool,
    offline: bool,
    batch_size: int | None,
    workers: int | None,
    source: SourceKind | None,
    namespace: str | None,
    all_namespaces: bool,
    keys_from: KeysFrom | None,
    force: bool,
    drain_seconds: float | None,
    max_bad_share: float | None,
    limit: int | None,
    verify: bool,
    defer_index: bool,
    rates: dict[str, str | None],
    model: str | None,
    report: Path | None,
    log_format: str | None,
) -> None:
    """Fill the embedding column from its source; stop it and go on with it at will, from any number of processes.

    It waits while the database has no room for more; docs/throttling.md has the settings.
    """
    settings = Settings.load(
        batch_size=batch_size,
        workers=workers,
        source=source,
        drain_seconds=drain_seconds,
        max_bad_share=max_bad_share,
        embedding_model=model,
        report=report,
        log_format=log_format,
        **rates,
    )
    if resume and restart:
        raise ConfigError("--resume and --restart contradict each other", hint="give one of them")
    if force and keys_from == "table":
        raise ConfigError(
            "--force and --keys-from table contradict each other: rows without an embedding have nothing to replace",
            hint="--force takes the keys that the source lists",
        )
    if offline and not dry_run:
        raise ConfigError("--offline goes with --dry-run", hint="add --dry-run, or leave --offline out")
    if dry_run and offline:
        describe_offline(settings, keys_from or ("source" if force else "table"))
        return
    mode: Mode = "resume" if resume else "restart" if restart else "new"
    engine, table, origin = open_ends(settings)
    names = choose_namespaces(settings, origin, table, namespace, all_namespaces)
    jobs = [
        replace(
            open_job(
                settings, engine, table, origin, name, mode, keys_from, limit, defer_index=defer_index, replace=force
            ),
            limits=orders_of(settings, rates),
        )
        for name in names
    ]
    throttle = open_throttle(engine, settings, table, insert=any(job.inserts for job in jobs))
    if dry_run:
        for job in jobs:
            describe_run(engine, settings, job)
        return
    for name, job in zip(names, jobs, strict=True):
        declare_model(engine, settings, origin, name, job)
    with stop_on_signal() as stop:
        codes = [work_at(engine, settings, job, mode, throttle, stop, verify and limit is None) for job in jobs]
    ctx.exit(next(code for code in WORST_FIRST if code in codes))


def open_ends(settings: Settings) -> tuple[Engine, VectorTable, Origin]:
    """The database, the vector table in it and what its vectors come from, which suit each other."""
    reuse_freed_memory(KEPT_BYTES)
    engine = open_database(settings, settings.workers + SPARE_CONNECTIONS)
    with engine.connect() as connection:
        progress.require_tables(connection)
        table = open_table(settings, connection)
    origin = open_origin(settings, table, engine)
    check_dimensions(origin, table)
    _warn_of_other_distance(origin, table)
    return engine, table, origin


def open_job(
    settings: Settings,
    engine: Engine,
    table: VectorTable,
    origin: Origin,
    namespace: str,
    mode: Mode,
    keys_from: KeysFrom | None,
    limit: int | None = None,
    *,
    defer_index: bool = False,
    given_keys: Sequence[str] = (),
    replace: bool = False,
) -> Job:
    """The job for one namespace; a run that is gone on with keeps the options that are not given again.

    With ``given_keys`` it is for these source keys alone. It may ``replace`` values that are there.
    """
    scope = scope_of(table, namespace)
    with engine.connect() as connection:
        begun = progress.unfinished_run(connection, table.target, scope) if mode in ("resume", "join") else None
        if begun is not None:
            keys_from = keys_from or begun.keys_from
            limit = limit or begun.row_limit
            replace = replace or begun.replaces
        keys_from = "given" if given_keys else keys_from or ("source" if replace else "table")
        key_map = key_map_for(engine, table, scope, origin.kind)
        inserts = side_of(keys_from) == "source" and key_map.makes_keys
        if keys_from == "source" and not origin.lists:
            raise ConfigError(
                f"{origin.name} cannot list its ids: there are no keys from the source",
                hint="--keys-from table fills the rows that are there; their own keys are the ids",
            )
        check_target(connection, table, insert=inserts)
    return Job(
        table=table,
        scope=scope,
        source=origin.open(table, namespace, with_metadata=inserts),
        key_map=key_map,
        keys_from=keys_from,
        model=settings.embedding_model or origin.model,
        batch_size=settings.batch_size,
        batch_seconds=settings.batch_seconds,
        workers=settings.workers,
        lease_seconds=settings.lease_seconds,
        retry_seconds=settings.retry_seconds,
        drain_seconds=settings.drain_seconds,
        poll_seconds=settings.poll_seconds,
        ceilings=ceilings_of(settings),
        limit=limit,
        defer_index=defer_index,
        given_keys=given_keys,
        replace=replace,
        max_bad_share=settings.max_bad_share,
    )


def work_at(
    engine: Engine,
    settings: Settings,
    job: Job,
    mode: Mode,
    throttle: Throttle,
    stop: threading.Event,
    verify: bool,
) -> int:
    """Begin or go on with one job and say how it ended; returns the exit code."""
    if stop.is_set():
        return INTERRUPTED
    return conclude(engine, settings, job, conduct(engine, settings, job, mode, throttle, stop), stop, verify=verify)


def conduct(
    engine: Engine, settings: Settings, job: Job, mode: Mode, throttle: Throttle, stop: threading.Event
) -> Summary:
    """Begin or go on with one job, and say how its run stands when this process leaves it."""
    job = replace(job, expected_keys=_expected(engine, job))
    with (
        closing(open_display(settings.log_format)) as display,
        _index_shown(settings, engine, job),
    ):
        build = partial(
            build_deferred, settings=build_settings(settings), say=partial(say_plan, log_format=settings.log_format)
        )
        work = Backfill(engine, job, display, stop, before_claim=throttle.reason, build_index=build)
        summary = work.work(work.start(mode))
    _print_summary(settings, summary, job.source.description.count)
    return summary


def conclude(
    engine: Engine, settings: Settings, job: Job, summary: Summary, stop: threading.Event, *, verify: bool
) -> int:
    """Look at what a run has brought, and leave its report; returns the exit code."""
    code = INTERRUPTED if summary.interrupted else SET_ASIDE if summary.errors else CLEAN
    # Of all processes that share a run, the one that ended it looks at the result.
    if not summary.ended_it:
        if summary.indexes_built:
            # Of a run that had ended before, whose index was still to be built.
            leave_report(engine, summary.run.id, settings)
        return code
    stale = refresh_stats(engine, job.table)
    if stale is not None:
        say_notices(settings, [stale])
    try:
        if verify and not _verify(engine, settings, job, summary.run, stop):
            code = FAILED
    except TransientError:
        if not stop.is_set():
            raise
        click.echo(f"the comparison was interrupted; make it with: {verify_command(settings, job.source.description)}")
        code = INTERRUPTED
    finally:
        leave_report(engine, summary.run.id, settings)
    return code


def verify_command(settings: Settings, source: SourceDescription) -> str:
    """What compares the table with such a source; with the variables that commands of products do without."""
    table = f"AMPRENTA_TABLE={settings.table} " if settings.table == PRODUCTS.name else ""
    if not source.computed:
        return f"{table}amprenta-vectors verify"
    return f"{table}AMPRENTA_EMBEDDER={settings.embedder} amprenta-vectors verify --source {source.kind}"


def _verify(engine: Engine, settings: Settings, job: Job, run: Run, stop: threading.Event) -> bool:
    """Compare at the cost of the run, within what its processes may ask together."""
    return verify_job(
        engine,
        replace(job, ceilings=job.ceilings.under(run.limits)),
        settings.log_format,
        stop,
        known=set(_set_aside(engine, job)),
        ledger=RunLedger(engine, run.id),
    )


def _index_shown(settings: Settings, engine: Engine, job: Job) -> AbstractContextManager[None]:
    return showing_index_progress(engine, job.table) if settings.log_format == "text" else nullcontext()


def _expected(engine: Engine, job: Job) -> int | None:
    if job.keys_from == "source":
        return job.source.description.count
    if is_known(job.keys_from):
        return None
    with engine.connect() as connection:
        return count_empty(connection, job.table, job.scope)


def _set_aside(engine: Engine, job: Job) -> dict[str, str]:
    with engine.connect() as connection:
        return progress.set_aside_keys(connection, job.table.target, job.scope)


def _print_summary(settings: Settings, summary: Summary, source_count: int | None) -> None:
    counts, run = summary.counts, summary.run
    if settings.log_format == "json":
        values: dict[str, Any] = {
            "event": "interrupted" if summary.interrupted else "finished",
            "run": run.id,
            "written": counts.written,
            "skipped": counts.skipped,
            "set_aside": summary.errors,
            "read_units": run.read_units,
            "seconds": round(summary.seconds, 2),
            "indexes_built": summary.indexes_built,
        }
        click.echo(json.dumps(values))
        return
    rate = summary.written_here / summary.seconds if summary.seconds else 0.0
    ending = "interrupted" if summary.interrupted else run.state
    click.echo(
        f"run {run.id} {ending}: {counts.written:,} rows written ({summary.written_here:,} by this process in "
        f"{summary.seconds:.1f} s, {rate:,.0f}/s), {counts.skipped:,} found filled or gone"
    )
    if not run.planned_keys and run.keys_from == "table" and source_count:
        click.echo(
            f"  no row of {run.target} waits for an embedding, and the source has {source_count:,} vectors; "
            "to insert rows: --keys-from source"
        )
    for reason, number in summary.errors.items():
        click.echo(f"  set aside: {number:,} {reason}")
    if run.read_units:
        click.echo(f"  read units: {run.read_units:,}")
    for name in summary.indexes_built:
        click.echo(f"  index built: {name}")
    if not summary.ended_it and not summary.written_here and run.state == "finished":
        click.echo(f"  it had ended before; to list the source once more: {_command_of(run)} --restart")
    if summary.interrupted:
        click.echo(f"  go on with: {_command_of(run)} --resume")


def _command_of(run: Run) -> str:
    """What begins and resumes such a run."""
    if run.source_kind == "simple":
        return "amprenta-vectors documents migrate"
    product = run.vector_table == PRODUCTS.name and run.source_kind in ("chroma", "rows")
    return "amprenta-vectors products migrate" if product else "amprenta-vectors backfill"


def _warn_of_other_distance(origin: Origin, table: VectorTable) -> None:
    if origin.distance not in (None, table.distance):
        click.echo(
            f"warning: {origin.name} searches by {origin.distance}, the table's index is for {table.distance}: "
            "queries will rank differently unless the vectors are normalised",
            err=True,
        )
