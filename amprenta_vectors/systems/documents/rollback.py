"""Rolling back what moves of simple vector stores inserted, if the files are there to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.simple.backup import last_backup_of
from amprenta_vectors.backends.simple.folder import FILES, path_of
from amprenta_vectors.backfill.engine.observer import Observer
from amprenta_vectors.backfill.progress import inserted
from amprenta_vectors.backfill.progress.runs import load_run
from amprenta_vectors.backfill.writing.rollback import roll_back
from amprenta_vectors.errors import ExitCode
from amprenta_vectors.schema.slice import Slice, open_slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.systems.documents.events import StoreRefused, StoreRolledBack, StoreToRollBack
from amprenta_vectors.systems.documents.stores import of_users


def stores_to_roll_back(engine: Engine, table: VectorTable, users: Sequence[str]) -> dict[str, Slice]:
    """Return the stores of ``users``, or all, whose rows runs have inserted, or are about to, with their slices."""
    with engine.connect() as connection:
        scopes = inserted.scopes_to_roll_back(connection, table.target, "simple")
    # The scope's columns in the table's order: user first.
    named = {"/".join(scope[column] for column in table.namespace_columns): scope for scope in scopes}
    return {name: open_slice(engine, table, named[name]) for name in of_users(named, users)}


def roll_back_store(engine: Engine, store: str, slice_: Slice, observer: Observer, *, dry_run: bool) -> ExitCode:
    """Delete the rows that runs inserted into a slice and nobody changed since, unless no other documents are left.

    With ``dry_run``, only tell the observer how many rows runs inserted.
    """
    lost = _lost_files(engine, slice_)
    if lost is not None:
        observer(StoreRefused("rollback", store, lost))
        return ExitCode.FAILED
    if dry_run:
        with engine.connect() as connection:
            runs = inserted.runs_with_inserted(connection, slice_.target, slice_.scope)
            count = sum(inserted.count_inserted(connection, run) for run in runs)
        observer(StoreToRollBack(store, count, list(runs)))
    else:
        done = roll_back(engine, slice_)
        observer(StoreRolledBack(store, done.removed, list(done.kept)))
    return ExitCode.CLEAN


def _lost_files(engine: Engine, slice_: Slice) -> str | None:
    """Return a message if the rows inserted into a slice are the only documents left; None if their files are there."""
    with engine.connect() as connection:
        runs = [
            load_run(connection, run) for run in inserted.runs_with_inserted(connection, slice_.target, slice_.scope)
        ]
    for source in dict.fromkeys(run.source for run in runs if run.source is not None):
        folder = Path(source)
        if not _has_files(folder):
            backup = last_backup_of(folder.parent.parent, folder)
            where = "there is no backup beside it" if backup is None else f"put back those of {backup} first"
            return f"{folder} has not its files any longer, and the rows are all there is; {where}"
    return None


def _has_files(folder: Path) -> bool:
    try:
        return all(path_of(folder, file).exists() for file in FILES)
    except OSError:
        return False
