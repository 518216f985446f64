"""``amprenta-vectors status``: every run and how far it is, or one of them while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option, open_database
from amprenta_vectors.cli.printer import error_lines, say
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.hints import backfill_command

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from amprenta_vectors.backfill.progress.runs import Run
    from amprenta_vectors.backfill.progress.snapshot import Snapshot
    from amprenta_vectors.backfill.report.timeline import Outlook


@click.command()
@click.argument("run", type=click.IntRange(min=1), required=False)
@click.option("--watch", "watching", is_flag=True, help="Show it as it goes on, until it ends; Ctrl-C leaves it alone.")
@json_option("As JSON; with --watch one object a line.")
def status(run: int | None, watching: bool, as_json: bool) -> None:
    """Show every run, the newest first, or RUN alone, and the indexes that wait for one to end.

    --watch without RUN takes the newest that has not ended. A role that may only read is enough.
    """
    from amprenta_vectors.backfill.progress import transactions
    from amprenta_vectors.backfill.progress.runs import list_runs
    from amprenta_vectors.backfill.progress.snapshot import look
    from amprenta_vectors.backfill.progress.states import UNFINISHED
    from amprenta_vectors.backfill.report.timeline import look_ahead
    from amprenta_vectors.cli.live import BUCKETS, watch
    from amprenta_vectors.config import Settings

    engine = open_database(Settings.load(), 1)
    with engine.connect() as connection:
        transactions.require_tables(connection)
        chosen = _chosen(list_runs(connection), run)
        if not (watching and chosen):
            snapshots = [look(connection, each.id, buckets=BUCKETS) for each in chosen]
            seen = [(snapshot, look_ahead(snapshot)) for snapshot in snapshots if snapshot is not None]
            for line in [_as_json(connection, seen)] if as_json else _as_text(connection, seen):
                say(line)
            return
    unfinished = [each for each in chosen if each.state in UNFINISHED]
    watch(engine, next(iter(unfinished or chosen)).id, as_json=as_json)


def _chosen(runs: list[Run], number: int | None) -> list[Run]:
    chosen = [run for run in runs if number in {None, run.id}]
    if number is not None and not chosen:
        raise ConfigError(f"there is no run {number}", hint="amprenta-vectors status lists them")
    return chosen


def _as_json(connection: Connection, seen: list[tuple[Snapshot, Outlook]]) -> str:
    from amprenta_vectors.backfill.progress import indexes
    from amprenta_vectors.cli.run_text import to_json

    waiting = [{"target": target, "index": name} for target, name in indexes.all_deferred(connection)]
    return json.dumps({"runs": [to_json(*each) for each in seen], "deferred_indexes": waiting})


def _as_text(connection: Connection, seen: list[tuple[Snapshot, Outlook]]) -> Iterator[str]:
    from amprenta_vectors.backfill.progress import indexes

    if not seen:
        yield "there is no run yet; alembic upgrade head queues one"
    for snapshot, outlook in seen:
        yield from _described(snapshot, outlook)
    for target, name in indexes.all_deferred(connection):
        yield f"index {name} on {target} waits to be built; the last run into the column builds it"


def _described(snapshot: Snapshot, outlook: Outlook) -> Iterator[str]:
    from amprenta_vectors.cli.run_text import held_by, to_charge, to_pace, to_scope, to_state

    run, counts = snapshot.run, snapshot.counts
    yield f"run {run.id} {to_state(run, counts)}: {run.source or 'queued'} → {run.target}{to_scope(run)}"
    if run.source is None:
        yield f"  start it with: {backfill_command()} --resume"
        return
    planned = f"{run.planned_keys:,}{'' if run.planned_at else ' so far'}"
    yield (
        f"  {counts.keys_done:,} of {planned} keys done in {counts.batches_done} of {counts.batches} batches: "
        f"{counts.written:,} written, {counts.skipped:,} found filled or gone, {counts.missing:,} missing, "
        f"{counts.quarantined:,} quarantined"
    )
    if counts.owners:
        yield f"  {to_pace(outlook)}"
    yield from (f"  {text}" for text in (held_by(run), to_charge(run)) if text)
    for reason, number in sorted(snapshot.quarantined.items()):
        yield f"  quarantined: {number:,} {reason}"
    if run.last_error:
        yield from error_lines(f"  stopped by: {run.last_error}")
