"""``amprenta-vectors prune``: what nobody asks for any more goes from the engine's tables."""

from __future__ import annotations

import click

from amprenta_vectors.cli.options import open_database, to_moment


@click.command()
@click.option(
    "--older-than", required=True, metavar="WHEN", help="What ended before: 30d, 12h, or 2026-05-31T12:00+00:00."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(older_than: str, dry_run: bool, yes: bool) -> None:
    """Delete old runs that a later one stands for, routine events, shadow queries and tombstones.

    Never the run that a slice was verified with last, nor what the gate, errors, a rollback or --resume goes by:
    unfinished runs, the last that finished and the last of runs alike, rows in quarantine, and inserted rows on record.
    """
    from amprenta_vectors.cli.forget import print_counts
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.pruning import prune

    moment = to_moment("--older-than", older_than)
    engine = open_database(Settings.load(), 1)
    if dry_run or not yes:
        found = prune(engine, moment, dry_run=True)
        print_counts(found, "would go" if dry_run else "to go")
        if dry_run or not found:
            return
        click.confirm("delete them for good?", abort=True)
    print_counts(prune(engine, moment, dry_run=False), "gone")
