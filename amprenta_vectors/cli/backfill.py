"""``amprenta-vectors backfill``, which is also ``scripts/backfill.py``."""

from __future__ import annotations

import json
import threading
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.allocator import reuse_freed_memory
from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.planner import count_empty
from amprenta_vectors.backfill.preflight import check_target
from amprenta_vectors.backfill.run import Backfill, Job, KeysFrom, Mode, Summary
from amprenta_vectors.cli.display import open_display, showing_index_progress
from amprenta_vectors.cli.dry_run import describe_offline, describe_run
from amprenta_vectors.cli.options import (
    check_dimensions,
    choose_namespaces,
    namespace_options,
    open_database,
    open_table,
    scope_of,
    stop_on_signal,
)
from amprenta_vectors.cli.verify import verify_job
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, TransientError
from amprenta_vectors.schema.keymaps import Identity
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.pinecone import open_source
from amprenta_vectors.sources.pinecone_client import DISTANCES, PineconeIndex, open_index

CLEAN, FAILED, SET_ASIDE, INTERRUPTED = 0, 1, 3, 130
WORST_FIRST = (INTERRUPTED, FAILED, SET_ASIDE, CLEAN)
"""Of several namespaces' exit codes the worst is the command's."""
KEPT_BYTES = 64 * 1024 * 1024
"""Freed memory that is kept for the next batch; a batch of 1000 × 1536 is 6 MB, and is copied a few times."""
SPARE_CONNECTIONS = 4
"""Connections beside those of the workers: the planner, the leases, the figures, and one to spare."""


@click.command()
@click.option("--resume", is_flag=True, help="Start what is queued, or go on with what was begun.")
@click.option("--restart", is_flag=True, help="Begin anew; rows already filled stay filled.")
@click.option("--dry-run", is_flag=True, help="Look at both ends, estimate, and change nothing.")
@click.option("--offline", is_flag=True, help="With --dry-run: only read the settings, connect to nothing.")
@click.option("--batch-size", type=int, help="Keys a batch.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@namespace_options
@click.option(
    "--keys-from",
    type=click.Choice(["table", "source"]),
    help="Fill the rows that have no embedding, or list the index and insert the rows that are not there.  "
    "[default: table; with --resume, as the run was begun]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many keys, to try it out.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every vector afterwards.")
@click.option("--defer-index", is_flag=True, help="Drop the ANN index for the load though the column holds values.")
@click.option("--model", help="The model that made the vectors.  [env var: EMBEDDING_MODEL]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[env var: AMPRENTA_LOG_FORMAT; default: text]")
@click.pass_context
def backfill(
    ctx: click.Context,
    resume: bool,
    restart: bool,
    dry_run: bool,
    offline: bool,
    batch_size: int | None,
    workers: int | None,
    namespace: str | None,
    all_namespaces: bool,
    keys_from: KeysFrom | None,
    limit: int | None,
    verify: bool,
    defer_index: bool,
    model: str | None,
    log_format: str | None,
) -> None:
    """Fill the embedding column from Pinecone; stop it and go on with it at will, from any number of processes."""
    settings = Settings.load(batch_size=batch_size, workers=workers, embedding_model=model, log_format=log_format)
    if resume and restart:
        raise ConfigError("--resume and --restart contradict each other", hint="give one of them")
    if offline and not dry_run:
        raise ConfigError("--offline goes with --dry-run", hint="add --dry-run, or leave --offline out")
    if dry_run and offline:
        describe_offline(settings, keys_from or "table")
        return
    mode: Mode = "resume" if resume else "restart" if restart else "new"
    reuse_freed_memory(KEPT_BYTES)
    engine = open_database(settings, settings.workers + SPARE_CONNECTIONS)
    with engine.connect() as connection:
        progress.require_tables(connection)
        table = open_table(settings, connection)
    index = open_index(settings)
    check_dimensions(index, table)
    _warn_of_other_distance(index, table)
    jobs = [
        _job(settings, engine, table, index, name, mode, keys_from, limit, defer_index)
        for name in choose_namespaces(settings, index, table, namespace, all_namespaces)
    ]
    if dry_run:
        for job in jobs:
            describe_run(engine, settings, job)
        return
    with stop_on_signal() as stop:
        codes = [_run(engine, settings, job, mode, stop, verify and limit is None) for job in jobs]
    ctx.exit(next(code for code in WORST_FIRST if code in codes))


def _job(
    settings: Settings,
    engine: Engine,
    table: VectorTable,
    index: PineconeIndex,
    namespace: str,
    mode: Mode,
    keys_from: KeysFrom | None,
    limit: int | None,
    defer_index: bool,
) -> Job:
    """The job for one namespace; a run that is gone on with keeps the options that are not given again."""
    scope = scope_of(table, namespace)
    with engine.connect() as connection:
        begun = progress.unfinished_run(connection, table.target, scope) if mode == "resume" else None
        if begun is not None:
            keys_from = keys_from or begun.keys_from
            limit = limit or begun.row_limit
        keys_from = keys_from or "table"
        check_target(connection, table, insert=keys_from == "source")
    source = open_source(settings, index, namespace, with_metadata=keys_from == "source")
    return Job(
        table=table,
        scope=scope,
        source=source,
        key_map=Identity(),
        keys_from=keys_from,
        model=settings.embedding_model or index.model,
        batch_size=settings.batch_size,
        workers=settings.workers,
        lease_seconds=settings.lease_seconds,
        retry_seconds=settings.retry_seconds,
        limit=limit,
        defer_index=defer_index,
    )


def _run(engine: Engine, settings: Settings, job: Job, mode: Mode, stop: threading.Event, verify: bool) -> int:
    if stop.is_set():
        return INTERRUPTED
    with (
        closing(open_display(settings.log_format, _expected(engine, job))) as display,
        _index_shown(settings, engine, job),
    ):
        work = Backfill(engine, job, display, stop)
        summary = work.work(work.start(mode))
    code = INTERRUPTED if summary.interrupted else SET_ASIDE if summary.errors else CLEAN
    _print_summary(settings, summary, job.source.description.count)
    # Of all processes that share a run, the one that ended it looks at the result.
    if verify and summary.ended_it:
        try:
            clean = verify_job(engine, job, settings.log_format, stop, known=set(_set_aside(engine, job)))
        except TransientError:
            if not stop.is_set():
                raise
            click.echo("the comparison was interrupted; make it with: amprenta-vectors verify")
            return INTERRUPTED
        code = code if clean else FAILED
    return code


def _index_shown(settings: Settings, engine: Engine, job: Job) -> AbstractContextManager[None]:
    return showing_index_progress(engine, job.table) if settings.log_format == "text" else nullcontext()


def _expected(engine: Engine, job: Job) -> int | None:
    if job.keys_from == "source":
        return job.source.description.count
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
    for name in summary.indexes_built:
        click.echo(f"  index built: {name}")
    if not summary.ended_it and not summary.written_here and run.state == "finished":
        click.echo("  it had ended before; to list the source once more: amprenta-vectors backfill --restart")
    if summary.interrupted:
        click.echo("  go on with: amprenta-vectors backfill --resume")


def _warn_of_other_distance(index: PineconeIndex, table: VectorTable) -> None:
    distance = DISTANCES.get(index.metric or "")
    if distance != table.distance:
        click.echo(
            f"warning: the index's metric is {index.metric}, the table's index is for {table.distance}: "
            "queries will rank differently unless the vectors are normalised",
            err=True,
        )
