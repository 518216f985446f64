"""A look at how busy the server is: one statement for everything that this role may see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.db import COMMAND_SESSION
from amprenta_vectors.pg.errors import sqlstate
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable

LOOK_TIMEOUT = "2s"
"""The statement_timeout of a look; a server that is too busy to answer in time is asked again with the next look."""
_NOT_THERE = ("42", "0A", "55000")
"""Prefixes of the SQLSTATEs that mean no privilege or no such function, not supported, not in this state (a
standby)."""

_SETTINGS = sa.text("SELECT set_config('statement_timeout', :timeout, true), set_config('lock_timeout', '1s', true)")

_FAMILY = """
    WITH RECURSIVE tree (oid) AS (
        SELECT to_regclass(:relation)::oid
        UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON tree.oid = i.inhparent
    )
    SELECT oid FROM tree UNION ALL SELECT c.reltoastrelid FROM pg_class c JOIN tree USING (oid)
"""
"""The table, its partitions and their TOAST tables; not by pg_partition_tree, which waits for locks."""

_OTHERS = """
    SELECT pid, datname, application_name, state, backend_type, backend_xmin, backend_xid, xact_start
    FROM pg_stat_activity WHERE application_name NOT LIKE 'amprenta %' AND application_name <> :command
"""
"""The sessions that do not belong to this package; see `amprenta_vectors.backfill.progress.batches.session_tag`."""

_REPLICAS = """
    SELECT coalesce(json_agg(json_build_object(
               'name', coalesce(nullif(r.application_name, ''), host(r.client_addr), r.pid::text),
               'position', pg_wal_lsn_diff(r.replay_lsn, '0/0'),
               'seconds', extract(epoch FROM r.replay_lag)::float8)), '[]'::json)
    FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
    WHERE r.replay_lsn IS NOT NULL AND s.slot_type IS DISTINCT FROM 'logical'
"""
"""The physical replicas; a logical subscriber reports only what concerns it, so that its position may stand still."""

_LOCK_WAITERS = """
    WITH held AS MATERIALIZED (SELECT pid, granted, locktype, database, relation FROM pg_locks)
    SELECT count(DISTINCT w.pid) FROM held w JOIN others USING (pid)
    WHERE NOT w.granted AND w.locktype IN ('relation', 'extend', 'page', 'tuple', 'transactionid') AND w.pid IN (
        SELECT pid FROM held WHERE relation IN (SELECT oid FROM family)
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
"""The sessions that wait for a lock and have one on the table: a session that waits for a row waits for its writer's
transaction, and holds a lock on the table meanwhile."""

_ACTIVE_SESSIONS = "SELECT count(*) FROM others WHERE state = 'active' AND backend_type = 'client backend'"

_ARCHIVER = """
    SELECT CASE WHEN current_setting('archive_mode') <> 'off' THEN json_build_object(
               'current', pg_walfile_name(pg_current_wal_lsn()), 'archived', last_archived_wal,
               'segment_bytes', pg_size_bytes(current_setting('wal_segment_size'))) END
    FROM pg_stat_archiver
"""

_ARCHIVER_FILES = """
    SELECT CASE WHEN current_setting('archive_mode') <> 'off' THEN count(*) END
    FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'
"""

_VACUUM = """
    SELECT json_build_object(
               'seconds', extract(epoch FROM clock_timestamp() - a.query_start)::float8,
               'automatic', a.backend_type = 'autovacuum worker',
               'wraparound', a.query LIKE '%(to prevent wraparound)')
    FROM pg_stat_progress_vacuum p JOIN pg_stat_activity a USING (pid)
    WHERE p.datname = current_database() AND p.relid IN (SELECT oid FROM family) ORDER BY a.query_start DESC LIMIT 1
"""

_SNAPSHOT = """
    SELECT extract(epoch FROM clock_timestamp() - min(since))::float8 FROM (
        SELECT xact_start FROM others
        WHERE coalesce(backend_xmin, backend_xid) IS NOT NULL AND backend_type = 'client backend'
          AND datname = current_database() AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
        UNION ALL
        SELECT prepared FROM pg_prepared_xacts WHERE database = current_database()
    ) AS open (since)
"""
"""The age of this database's oldest snapshot: vacuum goes by no other database's, and a vacuum's own holds nothing
back."""

_COMMON = {"family": _FAMILY, "others": _OTHERS}

_STATEMENTS: dict[str, tuple[str, sa.types.TypeEngine[Any]]] = {
    "seconds": ("SELECT extract(epoch FROM clock_timestamp())::float8", sa.Double()),
    "wal_position": ("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8", sa.Double()),
    "replicas": (_REPLICAS, sa.JSON()),
    "lock_waiters": (_LOCK_WAITERS, sa.BigInteger()),
    "active_sessions": (_ACTIVE_SESSIONS, sa.BigInteger()),
    "archiver": (_ARCHIVER, sa.JSON()),
    "archiver_files": (_ARCHIVER_FILES, sa.BigInteger()),
    "vacuum": (_VACUUM, sa.JSON()),
    "snapshot_seconds": (_SNAPSHOT, sa.Double()),
}


@dataclass(frozen=True)
class Replica:
    """A physical replica: ``position`` in bytes of WAL replayed, ``seconds`` of lag as the server last measured it."""

    name: str
    position: float
    seconds: float | None


@dataclass(frozen=True)
class Vacuum:
    """A vacuum at work on the table, for ``seconds`` by now."""

    seconds: float
    automatic: bool
    wraparound: bool


@dataclass(frozen=True)
class ServerLoad:
    """The server's load at one look; a None is unknown: this role may not look, or the server does not say.

    ``seconds`` is the server's clock, ``wal_position`` is in bytes, ``unarchived_segments`` are WAL files that wait for
    the archiver. Sessions of this package do not count, but the WAL that they write does.
    """

    seconds: float
    wal_position: float | None = None
    replicas: tuple[Replica, ...] = ()
    lock_waiters: int | None = None
    active_sessions: int | None = None
    unarchived_segments: int | None = None
    vacuum: Vacuum | None = None
    snapshot_seconds: float | None = None


class Observatory:
    """Looks at what is ``wanted`` of the server in one statement; the first look finds out what the role may see.

    ``wanted`` has names of `ServerLoad`'s fields, with ``archiver`` and ``archiver_files`` in place of
    ``unarchived_segments``.
    """

    def __init__(self, table: VectorTable, wanted: Collection[str]) -> None:
        self._parameters = {"relation": relation(table), "command": COMMAND_SESSION}
        self._wanted = ["seconds", *(name for name in _STATEMENTS if name in wanted)]
        self._names: list[str] | None = None

    def look(self, connection: Connection) -> ServerLoad:
        """Look once, in the transaction that ``connection`` is in or begins, whose time-outs this sets."""
        connection.execute(_SETTINGS, {"timeout": LOOK_TIMEOUT})
        if self._names is None:
            self._names = [name for name in self._wanted if self._may_see(connection, name)]
        return _to_load(self._ask(connection, self._names))

    def sees_any(self, names: Collection[str]) -> bool:
        """Return whether the role may see any wanted one of ``names``; True if none is wanted. Call it after `look`."""
        wanted = [name for name in names if name in self._wanted]
        return not wanted or any(name in (self._names or ()) for name in wanted)

    def _may_see(self, connection: Connection, name: str) -> bool:
        try:
            with connection.begin_nested():
                self._ask(connection, [name])
        except DBAPIError as error:
            if not (sqlstate(error) or "").startswith(_NOT_THERE):
                raise
            return False
        return True

    def _ask(self, connection: Connection, names: list[str]) -> dict[str, Any]:
        columns = []
        for name in names:
            statement, type_ = _STATEMENTS[name]
            columns.append(sa.text(statement).columns(sa.column("value", type_)).scalar_subquery().label(name))
        looking = sa.select(*columns).add_cte(*(sa.text(text).columns().cte(name) for name, text in _COMMON.items()))
        return dict(connection.execute(looking, self._parameters).one()._mapping)


def _to_load(row: dict[str, Any]) -> ServerLoad:
    archiver, files, vacuum = row.get("archiver"), row.get("archiver_files"), row.get("vacuum")
    return ServerLoad(
        seconds=row["seconds"],
        wal_position=row.get("wal_position"),
        replicas=tuple(Replica(**replica) for replica in row.get("replicas") or ()),
        lock_waiters=row.get("lock_waiters"),
        active_sessions=row.get("active_sessions"),
        unarchived_segments=files if files is not None else unarchived(archiver) if archiver else None,
        vacuum=Vacuum(**vacuum) if vacuum else None,
        snapshot_seconds=row.get("snapshot_seconds"),
    )


def unarchived(archiver: dict[str, Any]) -> int | None:
    """Return the number of whole segments between the last archived and the current one; None if it is not known.

    A segment's name is timeline, log and segment number, eight hexadecimal digits each
    (https://www.postgresql.org/docs/current/wal-internals.html); a history file's name has the timeline only.
    """
    archived = archiver["archived"]
    if archived is None or len(archived) < 24:
        return None
    in_a_log: int = 2**32 // archiver["segment_bytes"]

    def number(name: str) -> int:
        return int(name[8:16], 16) * in_a_log + int(name[16:24], 16)

    return max(0, number(archiver["current"]) - number(archived) - 1)
