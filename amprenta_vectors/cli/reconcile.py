"""``amprenta-vectors reconcile``: what changed at the source since, brought to the table."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.limit_options import limit_options, orders_of
from amprenta_vectors.cli.options import (
    BATCHES_IN_HAND,
    dimension_option,
    namespace_options,
    run_options,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.schema.kinds import SourceKind


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what a pass would come to, and change nothing.")
@click.option("--delete", is_flag=True, help="Delete rows that the source no longer has; without, they are listed.")
@click.option("--batch-size", type=int, help="Keys a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@source_option
@dimension_option
@namespace_options
@limit_options
@run_options
@click.pass_context
def reconcile(
    ctx: click.Context,
    dry_run: bool,
    delete: bool,
    batch_size: int | None,
    workers: int | None,
    source: SourceKind | None,
    dimension: int | None,
    namespace: str | None,
    all_namespaces: bool,
    rates: dict[str, str | None],
    model: str | None,
    report: Path | None,
    log_format: str | None,
) -> None:
    """Bring the table to what the source has by now: new rows, changed ones, and with --delete those that are gone.

    Run it again and again until the switch. A row that was changed here stays as it is, and is listed: exit 3. The same
    command resumes a pass that was interrupted.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import choose_namespaces, open_ends
    from amprenta_vectors.moves.move import Move, complete, prepare
    from amprenta_vectors.moves.reconciliation import try_passes

    settings = Settings.load(
        batch_size=batch_size,
        workers=workers,
        source=source,
        dimension=dimension,
        embedding_model=model,
        report=report,
        log_format=log_format,
        **rates,
    )
    stop = threading.Event()
    with closing(open_display(settings.log_format)) as show:
        ends = open_ends(settings, show)
        moves = [
            Move(
                settings,
                namespace=name,
                keys_from="reconcile",
                ends=ends,
                stop=stop,
                delete=delete,
                limits=orders_of(settings, rates),
            )
            for name in choose_namespaces(settings, ends, namespace, all_namespaces)
        ]
        if dry_run:
            jobs = [move.open_job() for move in moves]
            with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
                code = try_passes(ends.engine, jobs, stop, show)
            if code == ExitCode.INTERRUPTED:
                say("the dry run was interrupted", err=True)
            ctx.exit(code)
        prepare(settings, ends, moves, show)
        with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
            ctx.exit(complete(moves, show, verify=False))
