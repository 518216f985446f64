"""The index that ends a load: what its build is given, and how far it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.index_plan import BuildSettings
from amprenta_vectors.backfill.observer import Observer
from amprenta_vectors.config import Settings
from amprenta_vectors.moves.events import IndexProgress
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable

LOOK_SECONDS = 2.0


def build_settings(settings: Settings) -> BuildSettings:
    """Return what the settings give to the building of an index."""
    return BuildSettings(settings.maintenance_work_mem, settings.index_workers)


@contextmanager
def watching_builds(engine: Engine, table: VectorTable, observer: Observer) -> Iterator[None]:
    """Tell the observer every two seconds how far the building of an index of ``table`` is, where it has changed."""
    done = threading.Event()

    def watch() -> None:
        told: IndexProgress | None = None
        while not done.wait(LOOK_SECONDS):
            found = _progress(engine, table)
            if found is not None and found != told:
                observer(found)
                told = found

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _progress(engine: Engine, table: VectorTable) -> IndexProgress | None:
    try:
        with engine.connect() as connection:
            row = connection.execute(
                sa.text("""
                    SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
                    FROM pg_stat_progress_create_index
                    WHERE datname = current_database() AND relid = to_regclass(:relation) LIMIT 1
                """),
                {"relation": relation(table)},
            ).first()
    except DBAPIError:
        # Whoever builds meets the same trouble and says it.
        return None
    if row is None:
        return None
    done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
    return IndexProgress(table.target, row.phase, done or 0, total or 0)
