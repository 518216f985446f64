"""``amprenta-vectors report``: what a run did, as a page and as JSON."""

from __future__ import annotations

from pathlib import Path

import click

from amprenta_vectors.cli.options import open_database
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ConfigError


@click.command()
@click.argument("run", type=click.IntRange(min=1))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to.  [env var: AMPRENTA_REPORT; default: reports]"
)
def report(run: int, output: Path | None) -> None:
    """Write what RUN did as run-N.json and run-N.html, also while it runs; `status` lists the runs."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.reports import write_report

    settings = Settings.load(report=output)
    engine = open_database(settings, 1)
    try:
        written = write_report(engine, run, settings.report)
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written into {settings.report}: {error.strerror}",
            hint="name a folder that may be written: --output FOLDER",
        ) from None
    for path in written:
        say(path)
