"""The files of a run's report."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.engine.observer import Observer
from amprenta_vectors.backfill.progress import transactions
from amprenta_vectors.backfill.report.facts import collect_report
from amprenta_vectors.backfill.report.page import render_page
from amprenta_vectors.moves.events import NotReported, Reported
from amprenta_vectors.pg.errors import for_a_log


def write_report(engine: Engine, run_id: int, folder: Path) -> tuple[Path, Path]:
    """Write a run's report into ``folder``, which is created if it is absent; return the JSON's path and the page's.

    Raises `ConfigError` if there is no such run, OSError if the folder cannot be written.
    """
    with engine.connect() as connection:
        transactions.require_tables(connection)
        collected = json.dumps(collect_report(connection, run_id), indent=1, ensure_ascii=False)
    page = render_page(json.loads(collected))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"run-{run_id}.json", folder / f"run-{run_id}.html"
    for path, text in zip(paths, (collected, page), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    return paths


def leave_report(engine: Engine, run_id: int, folder: Path, observer: Observer) -> None:
    """Write the report of a run that ended, and tell the observer; failing to write it is no failure of the run."""
    try:
        as_json, page = write_report(engine, run_id, folder)
    except (OSError, DBAPIError) as error:
        reason = for_a_log(error) if isinstance(error, DBAPIError) else str(error)
        observer(NotReported(run_id, reason))
    else:
        observer(Reported(run_id, (str(as_json), str(page))))
