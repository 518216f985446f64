"""``amprenta-vectors gate``: whether the embedding column is complete, for deploy pipelines."""

from __future__ import annotations

import click

from amprenta_vectors.cli.options import open_database
from amprenta_vectors.cli.printer import say


@click.command()
@click.option("--allow", multiple=True, metavar="REASON", help="Let rows quarantined for this reason pass; repeatable.")
def gate(allow: tuple[str, ...]) -> None:
    """Exit 0 if every row has its embedding and no run is live, else say what is missing and exit 2.

    Makes the same check as op.ensure_backfill_finished in a revision of your own. An empty table passes.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.ddl.gate import check_finished
    from amprenta_vectors.moves.ends import open_table

    settings = Settings.load()
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        table = open_table(settings, connection)
        filled = check_finished(connection, table.table, table.embedding, allow=allow, schema=table.schema)
    say(f"{table.target} is complete: {filled:,} rows have their embedding")
