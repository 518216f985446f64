"""``amprenta-vectors errors`` and ``retry-failed``: the rows that were quarantined, and taking them again."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import (
    BATCHES_IN_HAND,
    json_option,
    log_options,
    namespace_options,
    nul_option,
    open_database,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.reasons import Reason

if TYPE_CHECKING:
    from amprenta_vectors.backfill.progress.quarantine import QuarantinedRow, WayToRetry
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import Ends
    from amprenta_vectors.schema.kinds import SourceKind

reason_option = click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    help="Only rows that were quarantined for this reason.",
)


@click.command()
@click.argument("run", type=int, required=False)
@reason_option
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="List so many rows.")
@json_option("Print one JSON document.")
def errors(run: int | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List the rows that RUN quarantined, or all runs, and how many there are for each reason.

    A row that was written since, by whatever run, is not listed.
    """
    from amprenta_vectors.backfill.progress import quarantine, transactions
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.orders import choose_run

    settings = Settings.load()
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        transactions.require_tables(connection)
        if run is not None:
            choose_run(connection, run)
        counts, rows = quarantine.list_quarantined(connection, run, reason, limit)
        ways = quarantine.ways_to_retry(connection, run, reason)
    if as_json:
        say(json.dumps({"counts": counts, "errors": [_to_json(row) for row in rows]}))
        return
    if not counts:
        say("no row is quarantined" + (f" for {reason}" if reason else ""))
        return
    for name, number in counts.items():
        say(f"{number:,} {name}")
    if rows:
        _print_rows(rows)
    left = sum(counts.values()) - len(rows)
    if left and rows:
        say(f"{left:,} more; --limit {sum(counts.values())} lists them all")
    for way in ways:
        say(f"take them again with: {_command(settings, way, reason)}")


def _command(settings: Settings, way: WayToRetry, reason: str | None) -> str:
    """Return the command that takes quarantined rows again, for a shell that has the settings of this one."""
    from amprenta_vectors.backends.opening import kind_of
    from amprenta_vectors.config import normalize_namespace
    from amprenta_vectors.schema.registry import get_table

    words = ["amprenta-vectors", "reconcile" if way.reconciles else "retry-failed"]
    usual = None
    with suppress(ConfigError):
        # A table that is declared no more has none.
        usual = kind_of(settings, get_table(way.table, settings.config))
    if way.source_kind not in (None, usual):
        words += ["--source", str(way.source_kind)]
    if len(way.namespaces) > 1:
        words.append("--all-namespaces")
    elif normalize_namespace(way.namespaces[0]) != normalize_namespace(settings.namespace):
        words += ["--namespace", way.namespaces[0]]
    if reason is not None and not way.reconciles:
        words += ["--reason", reason]
    variable = "" if way.table == settings.table else f"AMPRENTA_TABLE={shlex.quote(way.table)} "
    return variable + shlex.join(words)


def _to_json(row: QuarantinedRow) -> dict[str, object]:
    return {**vars(row), "at": row.at.isoformat(timespec="seconds")}


def _print_rows(rows: list[QuarantinedRow]) -> None:
    """Print the rows as a table, the longest column last."""
    from amprenta_vectors.cli.table_text import print_table

    lines = []
    for row in rows:
        when = row.at.isoformat(sep=" ", timespec="seconds")
        lines.append((str(row.run), row.key, row.reason, str(row.attempts), when, row.detail))
    print_table(("run", "key", "reason", "attempts", "when", "detail"), lines)


@click.command("retry-failed")
@reason_option
@source_option
@namespace_options
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--model", help="The model that made the vectors.  [env var: EMBEDDING_MODEL]")
@nul_option
@log_options
@click.pass_context
def retry_failed(
    ctx: click.Context,
    reason: str | None,
    source: SourceKind | None,
    namespace: str | None,
    all_namespaces: bool,
    workers: int | None,
    model: str | None,
    nul: str | None,
    log_format: str | None,
) -> None:
    """Retry the rows that were quarantined, in a run of their own; exit 3 if some are quarantined once more.

    If it is interrupted, the same command resumes it, or backfill --resume. A row that is written is no longer listed
    by errors.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import choose_namespaces, open_ends
    from amprenta_vectors.moves.move import complete, prepare
    from amprenta_vectors.moves.retries import open_retries

    settings = Settings.load(workers=workers, source=source, embedding_model=model, nul=nul, log_format=log_format)
    stop = threading.Event()
    with closing(open_display(settings.log_format)) as show:
        ends = open_ends(settings, show)
        names = choose_namespaces(settings, ends, namespace, all_namespaces)
        moves = [move for name in names for move in open_retries(settings, ends, name, reason, stop)]
        if not moves:
            say(_nothing_to_retry(ends, names, reason))
            return
        prepare(settings, ends, moves, show)
        with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
            ctx.exit(complete(moves, show, verify=False))


def _nothing_to_retry(ends: Ends, namespaces: Sequence[str], reason: str | None) -> str:
    from amprenta_vectors.moves.retries import has_quarantined

    target = ends.table.target
    if has_quarantined(ends, namespaces, reason):
        return f"what is quarantined of {target} is for amprenta-vectors reconcile, whose next pass takes it again"
    return f"no row of {target} is quarantined" + (f" for {reason}" if reason else "")
