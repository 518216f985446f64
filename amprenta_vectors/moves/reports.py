"""The files of a run's report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

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

    The files are those of an earlier report on the same run. A run of that number in another database has others: a
    report in JSON, with its page, is overwritten only by one on its own run.

    Raises `ConfigError` if there is no such run, OSError if the folder cannot be written.
    """
    with engine.connect() as connection:
        transactions.require_tables(connection)
        report = collect_report(connection, run_id)
    collected = json.dumps(report, indent=1, ensure_ascii=False)
    page = render_page(json.loads(collected))
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"run-{run_id}" if number == 1 else f"run-{run_id}-{number}" for number in itertools.count(1))
    name = next(name for name in names if _is_free(folder / f"{name}.json", report))
    paths = folder / f"{name}.json", folder / f"{name}.html"
    for path, text in zip(paths, (collected, page), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    return paths


def _is_free(path: Path, report: Mapping[str, Any]) -> bool:
    """Return whether nothing is at ``path``, or an earlier report on the same run."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        return _identity(there) == _identity(report)
    except FileNotFoundError:
        return True
    except (ValueError, LookupError, TypeError):
        return False


def _identity(report: Mapping[str, Any]) -> tuple[Any, ...]:
    # A database may be reached by several hosts, so the moment tells its runs from another's.
    created = datetime.fromisoformat(report["run"]["created_at"])
    return report["database"]["name"], report["run"]["id"], created


def leave_report(engine: Engine, run_id: int, folder: Path, observer: Observer) -> None:
    """Write the report of a run that ended, and tell the observer; failing to write it is no failure of the run."""
    try:
        as_json, page = write_report(engine, run_id, folder)
    except (OSError, DBAPIError) as error:
        reason = for_a_log(error) if isinstance(error, DBAPIError) else str(error)
        observer(NotReported(run_id, reason))
    else:
        observer(Reported(run_id, (str(as_json), str(page))))
