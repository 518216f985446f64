"""``amprenta-vectors errors`` and ``retry-failed``: the rows that were set aside, and taking them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.job import Job
from amprenta_vectors.backfill.keys_from import KeysFrom, Side, is_retry, retry_of, side_of
from amprenta_vectors.backfill.orders import choose_run
from amprenta_vectors.backfill.progress import SetAside
from amprenta_vectors.backfill.starting import Mode
from amprenta_vectors.batch import Reason
from amprenta_vectors.cli.backfill import CLEAN, WORST_FIRST, open_ends, open_job, work_at
from amprenta_vectors.cli.options import (
    choose_namespaces,
    namespace_options,
    open_database,
    scope_of,
    source_option,
    stop_on_signal,
)
from amprenta_vectors.cli.readiness import open_throttle
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.schema.vector_table import SourceKind, VectorTable
from amprenta_vectors.sources.protocol import Origin

RETRY_BATCH = 64
"""Keys a batch of a run that takes rows again: so few that each of them is isolated, however many are bad."""

reason_option = click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    help="Only rows that were set aside for this reason.",
)


@click.command()
@click.argument("run", type=int, required=False)
@reason_option
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="List so many rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def errors(run: int | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List the rows that RUN set aside, or all runs, and how many there are for each reason.

    A row that was written since, by whatever run, is not among them.
    """
    engine = open_database(Settings.load(), 1)
    with engine.connect() as connection:
        progress.require_tables(connection)
        if run is not None:
            choose_run(connection, run)
        counts, rows = progress.list_set_aside(connection, run, reason, limit)
    if as_json:
        click.echo(json.dumps({"counts": counts, "errors": [_to_json(row) for row in rows]}))
        return
    if not counts:
        click.echo("no row is set aside" + (f" for {reason}" if reason else ""))
        return
    for name, number in counts.items():
        click.echo(f"{number:,} {name}")
    if rows:
        _print_rows(rows)
    left = sum(counts.values()) - len(rows)
    if left and rows:
        click.echo(f"{left:,} more; --limit {sum(counts.values())} lists them all")
    click.echo("take them again with: amprenta-vectors retry-failed" + (f" --reason {reason}" if reason else ""))


def _to_json(row: SetAside) -> dict[str, object]:
    return {**vars(row), "at": row.at.isoformat(timespec="seconds")}


def _print_rows(rows: list[SetAside]) -> None:
    """A line a row, in columns; what is longest comes last."""
    lines = [("run", "key", "reason", "attempts", "when", "detail")]
    for row in rows:
        when = row.at.isoformat(sep=" ", timespec="seconds")
        lines.append((str(row.run), _printable(row.key), row.reason, str(row.attempts), when, _printable(row.detail)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """A key or a message on one line, whatever is in it; neither may speak to the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@click.command("retry-failed")
@reason_option
@source_option
@namespace_options
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--model", help="The model that made the vectors.  [env var: EMBEDDING_MODEL]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[env var: AMPRENTA_LOG_FORMAT; default: text]")
@click.pass_context
def retry_failed(
    ctx: click.Context,
    reason: str | None,
    source: SourceKind | None,
    namespace: str | None,
    all_namespaces: bool,
    workers: int | None,
    model: str | None,
    log_format: str | None,
) -> None:
    """Take the rows again that were set aside, in a run of their own; exit 3 where some are set aside once more.

    Interrupted, it goes on by the same command, or by backfill --resume. Rows that are written are errors no longer.
    """
    settings = Settings.load(workers=workers, source=source, embedding_model=model, log_format=log_format)
    engine, table, origin = open_ends(settings)
    names = choose_namespaces(settings, origin, table, namespace, all_namespaces)
    jobs = [job for name in names for job in _jobs(settings, engine, table, origin, name, reason)]
    if not jobs:
        click.echo(_nothing_to_retry(engine, table, names, reason))
        return
    throttle = open_throttle(engine, settings, table, insert=any(job.inserts for _, job in jobs))
    with stop_on_signal() as stop:
        codes = [work_at(engine, settings, job, mode, throttle, stop, False) for mode, job in jobs]
    ctx.exit(next((code for code in WORST_FIRST if code in codes), CLEAN))


def _nothing_to_retry(engine: Engine, table: VectorTable, namespaces: Sequence[str], reason: str | None) -> str:
    scopes = [scope_of(table, namespace) for namespace in namespaces]
    with engine.connect() as connection:
        found = [
            found for scope in scopes for found in progress.set_aside_keys(connection, table.target, scope).values()
        ]
    if found if reason is None else reason in found:
        return f"what is set aside of {table.target} is for amprenta-vectors reconcile, whose next pass takes it again"
    return f"no row of {table.target} is set aside" + (f" for {reason}" if reason else "")


def _jobs(
    settings: Settings, engine: Engine, table: VectorTable, origin: Origin, namespace: str, reason: str | None
) -> list[tuple[Mode, Job]]:
    """The retries of one namespace: one that was begun, and one for what runs of each kind have set aside."""
    scope = scope_of(table, namespace)
    with engine.connect() as connection:
        begun = progress.unfinished_run(connection, table.target, scope)
        waiting = progress.kinds_to_retry(connection, table.target, scope, origin.kind, reason)
    if begun is not None and not is_retry(begun.keys_from or "table"):
        raise RunConflict(
            f"run {begun.id} into {table.target} is unfinished",
            hint="amprenta-vectors backfill --resume goes on with it; then take again what was set aside",
        )

    def job(keys_from: KeysFrom, replaces: bool) -> Job:
        opened = open_job(settings, engine, table, origin, namespace, "new", keys_from, replace=replaces)
        return replace(opened, batch_size=min(settings.batch_size, RETRY_BATCH), retry_reason=reason)

    if begun is not None and begun.keys_from is not None:
        return [("resume", job(begun.keys_from, begun.replaces))]
    sides: list[tuple[Side, bool]] = sorted({(side_of(keys_from), replaces) for keys_from, replaces in waiting})
    return [("new", job(retry_of(side), replaces)) for side, replaces in sides]
