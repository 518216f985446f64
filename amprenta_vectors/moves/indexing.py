"""Index builds, at the end of a load or by themselves: their settings, and their progress."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.database.index_plan import BuildSettings, Say, Shape, plan_build
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.contexts import open_context
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp
from amprenta_vectors.moves.events import IndexPlanned, IndexProgress
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.types import CoarserStorage, IndexMethod, VectorType
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable

LOOK_SECONDS = 2.0


def build_settings(settings: Settings) -> BuildSettings:
    """Return the settings of index builds."""
    return BuildSettings(settings.maintenance_work_mem, settings.index_workers)


def telling_plans(observer: Observer) -> Say:
    """Return a callback that tells the observer of each build before it starts."""
    return lambda plan: observer(IndexPlanned(plan))


def build_new(
    engine: Engine,
    table: VectorTable,
    given: BuildSettings,
    method: IndexMethod,
    options: Mapping[str, int],
    storage: CoarserStorage | None,
    observer: Observer = ignore,
) -> str:
    """Build an index that was not deferred, by the very operation that revisions use; return its name."""
    name = "_".join(filter(None, ("idx", table.table, table.embedding, method, storage)))
    key = index_key(table.embedding, VectorType(table.storage, table.dimension), table.distance, storage)
    operation = CreateVectorIndexOp(
        name, table.table, table.embedding, method, table.distance, dict(options), storage=storage, schema=table.schema
    )
    with engine.connect() as connection:
        given.apply(connection)
        connection.execute(sa.select(sa.func.set_config("statement_timeout", "0", True)))
        telling_plans(observer)(plan_build(connection, table, name, Shape(method, options, key.storage)))
        connection.commit()
        context = open_context(connection=connection, opts={"transactional_ddl": True})
        with context.begin_transaction(_per_migration=False):
            Operations(context).invoke(operation)
        # The session's settings would stay in the pool.
        connection.invalidate()
    return name


@contextmanager
def watching_builds(engine: Engine, table: VectorTable, observer: Observer) -> Iterator[None]:
    """Tell the observer of the progress of an index build on ``table``, every two seconds if it has changed."""
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
        # The build itself meets the same error and raises it.
        return None
    if row is None:
        return None
    done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
    return IndexProgress(table.target, row.phase, done or 0, total or 0)
