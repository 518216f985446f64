"""The ANN index around a load: deferred while the column is empty, built once when the last run is done."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.database.index_plan import BuildSettings, Say, Shape, plan_build, with_lists
from amprenta_vectors.backfill.progress import indexes, transactions
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.errors import SchemaMismatch, TransientError
from amprenta_vectors.pg.errors import LOCK_NOT_HAD, NO_ROOM, NOT_ALLOWED, for_a_log, sqlstate
from amprenta_vectors.pg.indexes import builder_of, index_of
from amprenta_vectors.pg.ivfflat import fitting_lists
from amprenta_vectors.pg.names import literal, quoted
from amprenta_vectors.pg.poolers import is_pooled
from amprenta_vectors.pg.sessions import LOCK_SECONDS
from amprenta_vectors.pg.tables import table_of
from amprenta_vectors.schema.ann_indexes import ann_indexes
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.vector_table import VectorTable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
AS_IT_IS = BuildSettings()
_WORKERS = "max_parallel_maintenance_workers"
"""The settings of a build that leave the server's own as they are."""
_DEFER_SETTINGS = sa.text("""
    SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', :lock_timeout, true)
""")


def column_is_empty(connection: Connection, table: VectorTable) -> bool:
    """Return whether no row of any scope has an embedding."""
    target = to_clause(table)
    filled = sa.select(sa.literal(1)).select_from(target).where(target.c[table.embedding].is_not(None))
    return connection.execute(filled.limit(1)).first() is None


def defer_indexes(engine: Engine, table: VectorTable, *, force: bool = False) -> list[str]:
    """Drop the column's ANN indexes, record them for `build_deferred`, and return their names.

    Only if the column holds no value, unless ``force``. Record and drop are one transaction, and no run ends
    meanwhile. If the role does not own the table, or does not get the lock within 2 seconds, the index stays: a
    slower load, never a failed one. An index of a partitioned table stays as well, because it could not be built
    again concurrently; with ``force``, `SchemaMismatch` is raised for it.
    """
    deferred: list[str] = []
    with transaction(engine) as connection:
        transactions.serialize_starts(connection, table.target)
        # Finding that a column holds no value reads every row, which may take longer than a time-out allows.
        connection.execute(_DEFER_SETTINGS, {"lock_timeout": f"{LOCK_SECONDS * 1000:.0f}ms"})
        found = table_of(connection, table.table, table.schema)
        partitioned = found is not None and found.partitioned
        if force and partitioned:
            raise SchemaMismatch(
                f"table {table.qualified_name} is partitioned: PostgreSQL could not build its index again concurrently",
                hint="leave the index in place during the load; DROP INDEX is yours to type",
            )
        if partitioned or not (force or column_is_empty(connection, table)):
            return []
        for index in ann_indexes(connection, table):
            try:
                with connection.begin_nested():
                    indexes.defer_index(connection, table.target, index.name, index.definition, index.comment or None)
                    drop = "DROP INDEX " + quoted(index.schema, index.name)
                    connection.exec_driver_sql(drop, execution_options={"no_parameters": True})
            except DBAPIError as error:
                if sqlstate(error) not in {LOCK_NOT_HAD, NOT_ALLOWED}:
                    raise
                log.warning("index %s stays in place during the load: %s", index.name, for_a_log(error))
                continue
            deferred.append(index.name)
    return deferred


def build_deferred(
    engine: Engine,
    table: VectorTable,
    stop: threading.Event,
    settings: BuildSettings = AS_IT_IS,
    say: Say = lambda plan: None,
) -> list[str]:
    """Build the column's deferred indexes concurrently, ANALYZE the table, and return the names of the indexes built.

    ``say`` is given the plan of each build before it starts.

    Safe after an interrupted build: an invalid leftover is dropped, an index that is still being built is waited for.
    One process at a time builds: two concurrent builds on one table wait for each other until PostgreSQL ends one. A
    role that may not build leaves the index to one that may. Once ``stop`` is set, PostgreSQL is told to cancel the
    build, which then raises `QueryCanceled`.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            _prepare(connection, settings)
            return _build_all(connection, table, stop, say)
        finally:
            # The session's time-outs are off, and would stay off in the pool.
            connection.invalidate()


def rebuild_indexes(
    engine: Engine,
    table: VectorTable,
    stop: threading.Event,
    settings: BuildSettings = AS_IT_IS,
    say: Say = lambda plan: None,
) -> list[str]:
    """Rebuild every ANN index of the column concurrently; the old one serves until the new one is ready."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            _prepare(connection, settings)
            found = [index for index in ann_indexes(connection, table) if index.table == table.table]
            for index in found:
                definition = _to_build(connection, table, index.name, index.definition, say)
                if definition != index.definition:
                    lists = Shape.of(definition).lists
                    _execute(connection, f"ALTER INDEX {quoted(index.schema, index.name)} SET (lists = {lists})", stop)
                rebuild = "REINDEX INDEX CONCURRENTLY " + quoted(index.schema, index.name)
                if not _execute_serially_if_need_be(connection, rebuild, stop):
                    leftover = quoted(index.schema, f"{index.name}_ccnew")
                    _execute(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {leftover}", stop)
                    _execute(connection, rebuild, stop)
            return [index.name for index in found]
        finally:
            connection.invalidate()


def _build_all(connection: Connection, table: VectorTable, stop: threading.Event, say: Say) -> list[str]:
    built = []
    for index in indexes.deferred_indexes(connection, table.target):
        try:
            _build(connection, table, index, stop, say)
        except DBAPIError as error:
            if sqlstate(error) != NOT_ALLOWED:
                raise
            log.warning("index %s is left to a role that may build it: %s", index.index_name, for_a_log(error))
            continue
        indexes.index_built(connection, table.target, index.index_name)
        built.append(index.index_name)
    if built:
        _execute(connection, "ANALYZE " + relation(table), stop)
    return built


def _prepare(connection: Connection, settings: BuildSettings) -> None:
    """Set the session up: a concurrent build runs in no transaction that could have settings of its own.

    Behind a pooler the session is the next client's too: nothing is set there, and what the build lacks is logged.
    """
    limits = [
        name
        for name in ("statement_timeout", "lock_timeout")
        if connection.execute(sa.select(sa.func.current_setting(name))).scalar_one() != "0"
    ]
    if is_pooled(connection):
        if limits or settings != AS_IT_IS:
            log.warning(
                "through a connection pooler the index is built with the server's own settings%s; where that does not "
                "do, amprenta-vectors index build with a DATABASE_URL that is direct",
                f", {' and '.join(limits)} among them" if limits else "",
            )
        return
    for name in limits:
        connection.execute(sa.select(sa.func.set_config(name, "0", False)))
    settings.apply(connection)


def _build(connection: Connection, table: VectorTable, index: Any, stop: threading.Event, say: Say) -> None:
    name = quoted(table.schema, index.index_name)
    while True:
        found = index_of(connection, index.index_name, table.schema)
        if found is not None and found.valid:
            break
        if found is None:
            definition = _to_build(connection, table, index.index_name, index.definition, say)
            create = definition.replace("CREATE INDEX ", "CREATE INDEX CONCURRENTLY IF NOT EXISTS ", 1)
            _execute_serially_if_need_be(connection, create, stop)
        elif builder_of(connection, found) is None:
            _execute(connection, "DROP INDEX CONCURRENTLY IF EXISTS " + name, stop)
        elif stop.wait(POLL_SECONDS):
            raise TransientError(f"index {index.index_name} is still being built by another session")
    if index.comment is not None:
        statement = f"COMMENT ON INDEX {name} IS {literal(index.comment)}"
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _to_build(connection: Connection, table: VectorTable, name: str, definition: str, say: Say) -> str:
    """Tell the plan of a build, and return the definition to build: the lists of an ivfflat index follow the rows."""
    shape = Shape.of(definition)
    plan = plan_build(connection, table, name, shape)
    if shape.lists is not None and (lists := fitting_lists(shape.lists, plan.rows)) != shape.lists:
        definition = with_lists(definition, lists)
        plan = plan_build(connection, table, name, Shape.of(definition))
    say(plan)
    return definition


def _execute_serially_if_need_be(connection: Connection, statement: str, stop: threading.Event) -> bool:
    """Execute a build; return False where parallel workers had no room, and none are started from now on.

    In a container /dev/shm has 64 MB, which the workers of a build share. A full disk gives the same error, and gives
    it again without workers.
    """
    try:
        _execute(connection, statement, stop)
    except DBAPIError as error:
        workers = connection.execute(sa.select(sa.func.current_setting(_WORKERS))).scalar_one()
        if sqlstate(error) != NO_ROOM or workers == "0" or is_pooled(connection):
            raise
        connection.execute(sa.select(sa.func.set_config(_WORKERS, "0", False)))
        log.warning(
            "the server has no room for the parallel workers of the build (%s): it is built without them. To give a "
            "container more of /dev/shm: docker run --shm-size=1g",
            for_a_log(error),
        )
        return False
    return True


def _execute(connection: Connection, statement: str, stop: threading.Event) -> None:
    """Execute ``statement`` until it ends, or cancel it once ``stop`` is set.

    It has no parameters, so that a percent sign in a name or an expression is only itself. It runs in another thread,
    because a signal is heard only by a main thread that does not wait for PostgreSQL.
    """
    driver: Any = connection.connection.dbapi_connection
    options = {"no_parameters": True}
    with ThreadPoolExecutor(1, thread_name_prefix="index") as pool:
        running = pool.submit(connection.exec_driver_sql, statement, execution_options=options)
        ended = threading.Event()
        running.add_done_callback(lambda _: ended.set())
        while not ended.wait(POLL_SECONDS):
            if stop.is_set():
                driver.cancel()
        running.result()
