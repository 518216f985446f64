"""``amprenta-vectors status``: every run and how far it is."""

from __future__ import annotations

import click

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.states import UNFINISHED
from amprenta_vectors.cli.options import open_database
from amprenta_vectors.config import Settings


@click.command()
def status() -> None:
    """Show every run, the newest first, and the indexes that wait for one to end."""
    engine = open_database(Settings.load(), 1)
    with engine.connect() as connection:
        progress.require_tables(connection)
        runs = progress.list_runs(connection)
        if not runs:
            click.echo("there is no run yet; alembic upgrade head queues one")
        for run in runs:
            counts = progress.count(connection, run.id)
            scope = "".join(f" {name}={value or '(default)'}" for name, value in run.scope.items())
            click.echo(f"run {run.id} {_state(run, counts)}: {run.source or 'queued'} → {run.target}{scope}")
            if run.source is None:
                click.echo("  start it with: python scripts/backfill.py --resume")
                continue
            planned = f"{run.planned_keys:,}{'' if run.planned_at else ' so far'}"
            click.echo(
                f"  {counts.keys_done:,} of {planned} keys done in {counts.batches_done} of {counts.batches} batches: "
                f"{counts.written:,} written, {counts.skipped:,} found filled or gone, {counts.missing:,} missing, "
                f"{counts.quarantined:,} quarantined"
            )
            for reason, number in progress.errors_by_reason(connection, run.id).items():
                click.echo(f"  set aside: {number:,} {reason}")
            if run.last_error:
                click.echo(f"  stopped by: {run.last_error}")
        for target, name in progress.all_deferred(connection):
            click.echo(f"index {name} on {target} waits to be built; the last run into the column builds it")


def _state(run: progress.Run, counts: progress.Counts) -> str:
    if run.state in UNFINISHED and run.source is not None:
        return f"{run.state}, {counts.owners} process(es) at work" if counts.owners else f"{run.state}, nobody at work"
    return run.state
