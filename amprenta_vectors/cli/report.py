"""``amprenta-vectors report``, and the report that ends each run."""

from __future__ import annotations

import json
from pathlib import Path

import click
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.report import collect_report
from amprenta_vectors.backfill.report_page import render_page
from amprenta_vectors.cli.options import open_database
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError


@click.command()
@click.argument("run", type=click.IntRange(min=1))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to.  [env var: AMPRENTA_REPORT; default: reports]"
)
def report(run: int, output: Path | None) -> None:
    """Write what RUN did as run-N.json and run-N.html, also while it goes on; `status` lists the runs."""
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
        click.echo(path)


def write_report(engine: Engine, run_id: int, folder: Path) -> tuple[Path, Path]:
    """Write a run's report into ``folder``, which is made where it is not there; returns the JSON's path, the page's.

    Raises `ConfigError` where there is no such run, OSError where the folder cannot be written.
    """
    with engine.connect() as connection:
        progress.require_tables(connection)
        collected = json.dumps(collect_report(connection, run_id), indent=1, ensure_ascii=False)
    page = render_page(json.loads(collected))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"run-{run_id}.json", folder / f"run-{run_id}.html"
    for path, text in zip(paths, (collected, page), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    return paths


def leave_report(engine: Engine, run_id: int, settings: Settings) -> None:
    """Write the report of a run that ended. What keeps it from being written is a warning, never the run's failure."""
    try:
        paths = write_report(engine, run_id, settings.report)
    except (OSError, DBAPIError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        again = f"amprenta-vectors report {run_id} --output FOLDER"
        click.echo(f"warning: no report was written: {str(reason).strip()}; make it with: {again}", err=True)
        return
    if settings.log_format == "json":
        click.echo(json.dumps({"event": "reported", "run": run_id, "files": [str(path) for path in paths]}))
    else:
        click.echo(f"report: {paths[1]} (and .json)")
