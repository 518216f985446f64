"""What is known of an ANN index before it is built or dropped: deferred, ours, valid, being built, or another's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.blockers import naming_blockers
from amprenta_vectors.ddl.catalogue import MADE, building_name, connection_of, quoted, table_exists
from amprenta_vectors.ddl.locking import session_limits
from amprenta_vectors.ddl.options import log

if TYPE_CHECKING:
    from amprenta_vectors.ddl.index_key import IndexKey
    from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp

_POLL_SECONDS = 0.5


def equivalent_indexes(connection: Connection, op: CreateVectorIndexOp, key: IndexKey) -> list[str]:
    """Indexes under other names that answer the same queries: whole, on the same ``key``.

    Method and operator class are the same, storage parameters may differ. One that ``op`` was building is not among
    them.
    """
    names = connection.execute(
        sa.text("""
            SELECT c.relname FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_am am ON am.oid = c.relam AND am.amname = :method
            JOIN pg_opclass o ON o.oid = i.indclass[0] AND o.opcname = :opclass
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = :column
            WHERE i.indrelid = to_regclass(:table) AND i.indnatts = 1 AND i.indpred IS NULL
              AND c.relname NOT IN (:own, :building)
              AND CASE :storage WHEN 'column' THEN i.indkey[0] = a.attnum
                  WHEN 'halfvec' THEN pg_get_expr(i.indexprs, i.indrelid)
                         = format('(%I)::%s', a.attname, format_type(o.opcintype, a.atttypmod))
                  -- The function has its schema before it where that is not on the search path.
                  ELSE starts_with(
                      reverse(pg_get_expr(i.indexprs, i.indrelid)),
                      reverse(format('binary_quantize(%I))::bit(%s)', a.attname, a.atttypmod))
                  ) END
            ORDER BY i.indisvalid DESC, c.relname
        """),
        {
            "table": quoted(op.schema, op.table),
            "column": op.column,
            "method": op.method,
            "opclass": key.opclass,
            "own": op.name,
            "building": building_name(op.name),
            "storage": "column" if key.is_column else key.storage,
        },
    )
    return list(names.scalars())


def settle(operations: Operations, name: str, schema: str | None, *, ours: bool = True) -> Literal["absent", "valid"]:
    """Wait while another session builds the index; drop what an interrupted build of ours left."""
    said: int | None = None
    while True:
        valid, builder = state_of(connection_of(operations), name, schema)
        if valid:
            return "valid"
        if valid is None or builder is None:
            break
        if builder != said:
            log.info("%s is being built by pid %d: waiting for it", name, builder)
            said = builder
        time.sleep(_POLL_SECONDS)
    if valid is not None and ours:
        log.warning("%s is invalid, left by an interrupted build: rebuilding it", name)
        operations.drop_index(name, schema=schema, if_exists=True, postgresql_concurrently=True)
    return "absent"


def drop_unfinished(operations: Operations, name: str, schema: str | None) -> None:
    """Drop what an interrupted build of index ``name`` left, under the name that it had until it was complete."""
    building = building_name(name)
    if state_of(connection_of(operations), building, schema)[0] is not False:
        return
    with waiting_at_length(operations, f"dropping index {building}"):
        # A drop that waited for the build's lock would be waited for by the build.
        settle(operations, building, schema, ours=False)
        log.info("%s was left by an interrupted build: dropping it", building)
        operations.drop_index(building, schema=schema, if_exists=True, postgresql_concurrently=True)


@contextmanager
def waiting_at_length(operations: Operations, what: str) -> Iterator[None]:
    """Outside any transaction and without time limits: what others hold open delays it, and is said."""
    connection = connection_of(operations)
    with (
        operations.get_context().autocommit_block(),
        session_limits(connection),
        naming_blockers(connection, what),
    ):
        yield


def is_valid(connection: Connection, name: str, schema: str | None) -> bool:
    """Whether there is such an index and queries can use it."""
    return state_of(connection, name, schema)[0] is True


def state_of(connection: Connection, name: str, schema: str | None) -> tuple[bool | None, int | None]:
    """Whether the index is valid, None where there is none; and the process that may be building it.

    Whoever builds one concurrently holds the table in SHARE UPDATE EXCLUSIVE mode from beginning to end, which pg_locks
    tells everybody; pg_stat_progress_create_index hides what other roles build. VACUUM takes that lock as well, and is
    waited for without need: a build would have to wait for it anyway.
    """
    row = connection.execute(
        sa.text("""
            SELECT i.indisvalid, (
                SELECT min(l.pid) FROM pg_locks l
                WHERE l.locktype = 'relation' AND l.relation = i.indrelid AND l.granted
                  AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            ) AS builder
            FROM pg_index i WHERE i.indexrelid = to_regclass(:name)
        """),
        {"name": quoted(schema, name)},
    ).first()
    return (None, None) if row is None else (row.indisvalid, row.builder)


def deferred(connection: Connection, name: str) -> bool:
    """Whether a backfill dropped the index and will build it."""
    if not table_exists(connection, "migration_index"):
        return False
    statement = sa.text("SELECT 1 FROM migration_index WHERE index_name = :name AND built_at IS NULL")
    return connection.execute(statement, {"name": name}).first() is not None


def made_here(connection: Connection, name: str, schema: str | None) -> bool:
    """Whether the index bears our mark."""
    statement = sa.text("SELECT obj_description(to_regclass(:name), 'pg_class')")
    return connection.execute(statement, {"name": quoted(schema, name)}).scalar() == MADE
