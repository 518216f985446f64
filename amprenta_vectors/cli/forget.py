"""``amprenta-vectors forget``: a person's rows go from everything that is kept here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import NAMESPACE_HELP, open_database
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.moves.forgetting.forget import Forgotten


@click.command()
@click.option("--key", "keys", multiple=True, metavar="KEY", help="A row of AMPRENTA_TABLE, by its key; repeatable.")
@click.option("--namespace", help=NAMESPACE_HELP)
@click.option("--user", metavar="USER", help="Every row, in every table, whose user_id is that.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def forget(
    ctx: click.Context, keys: tuple[str, ...], namespace: str | None, user: str | None, dry_run: bool, yes: bool
) -> None:
    """Take a person's rows out of everything that is kept here, and say where else they may be.

    Live and retired tables and columns, intents and tombstones, shadow queries, quarantined rows and what runs keep of
    keys. A row of a table of ours goes whole; of an application's row our columns are emptied, and the DELETE for the
    rest is printed. KEY is the source's or the row's own. What went is counted in vector_forgotten, without any value.
    Exit 1 if the other store has still to get a deletion.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.forgetting.forget import Person, forget

    settings = Settings.load()
    person = Person(keys, namespace, user)
    engine = open_database(settings, 2)
    if dry_run or not yes:
        found = forget(settings, engine, person, dry_run=True)
        print_counts(found.removed, "would go" if dry_run else "to go")
        if dry_run:
            ctx.exit(_print_rest(found))
        if found.removed:
            click.confirm("take them out for good?", abort=True)
    found = forget(settings, engine, person, dry_run=False)
    print_counts(found.removed, "gone")
    ctx.exit(_print_rest(found))


def print_counts(counts: Mapping[str, int], what: str) -> None:
    """Print how many rows of each table go."""
    if not counts:
        say("nothing is kept here that would have to go")
    for name, rows in sorted(counts.items()):
        say(f"{name}: {rows:,} row(s) {what}")


def _print_rest(found: Forgotten) -> ExitCode:
    say("where else they may be:")
    for place in found.elsewhere:
        say(f"  {place}")
    if not found.owed:
        return ExitCode.CLEAN
    say(
        f"{found.owed:,} deletion(s) stay in vector_outbox until the other store has them: "
        "amprenta-vectors outbox drain, then the same command again",
        err=True,
    )
    return ExitCode.FAILED
