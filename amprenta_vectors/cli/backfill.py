"""``amprenta-vectors backfill``, which is also ``scripts/backfill.py``."""

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
    nul_option,
    run_options,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.errors import ConfigError

if TYPE_CHECKING:
    from amprenta_vectors.backfill.engine.starting import Mode
    from amprenta_vectors.backfill.progress.keys_from import KeysFrom
    from amprenta_vectors.schema.kinds import SourceKind


@click.command()
@click.option("--resume", is_flag=True, help="Start what is queued, or resume what was begun.")
@click.option("--restart", is_flag=True, help="Begin anew; rows already filled stay filled.")
@click.option("--dry-run", is_flag=True, help="Look at both ends, estimate, and change nothing.")
@click.option("--offline", is_flag=True, help="With --dry-run: only read the settings, connect to nothing.")
@click.option("--batch-size", type=int, help="Keys a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@source_option
@dimension_option
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
    help="Stop once more than this share of the keys was quarantined, 0 to 1.  "
    "[env var: AMPRENTA_MAX_BAD_SHARE; default: 0.05]",
)
@click.option(
    "--force", is_flag=True, help="List the source, and replace what is there where the source has another vector."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many keys, to try it out.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every vector afterwards.")
@click.option("--defer-index", is_flag=True, help="Drop the ANN index for the load though the column holds values.")
@click.option(
    "--keep-deferred",
    is_flag=True,
    help="Leave the index that was deferred to a later run: more rows are to come.",
)
@nul_option
@limit_options
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
    dimension: int | None,
    namespace: str | None,
    all_namespaces: bool,
    keys_from: KeysFrom | None,
    force: bool,
    drain_seconds: float | None,
    max_bad_share: float | None,
    limit: int | None,
    verify: bool,
    defer_index: bool,
    keep_deferred: bool,
    nul: str | None,
    rates: dict[str, str | None],
    model: str | None,
    report: Path | None,
    log_format: str | None,
) -> None:
    """Fill the embedding column from its source; stop it and resume it at will, from any number of processes.

    The run is throttled while the database has no room for more; docs/throttling.md has the settings.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.cli.dry_run import describe_offline, describe_plan
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import choose_namespaces, open_ends
    from amprenta_vectors.moves.move import Move, complete, plan, prepare

    settings = Settings.load(
        batch_size=batch_size,
        workers=workers,
        source=source,
        dimension=dimension,
        drain_seconds=drain_seconds,
        max_bad_share=max_bad_share,
        nul=nul,
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
    stop = threading.Event()
    with closing(open_display(settings.log_format)) as show:
        ends = open_ends(settings, show)
        moves = [
            Move(
                settings,
                namespace=name,
                mode=mode,
                keys_from=keys_from,
                ends=ends,
                stop=stop,
                limit=limit,
                defer_index=defer_index,
                keep_deferred=keep_deferred,
                replace=force,
                limits=orders_of(settings, rates),
            )
            for name in choose_namespaces(settings, ends, namespace, all_namespaces)
        ]
        if dry_run:
            for found in plan(settings, ends, moves, show):
                describe_plan(settings, found)
            return
        prepare(settings, ends, moves, show)
        with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
            ctx.exit(complete(moves, show, verify=verify and limit is None))
