"""The sessions that a statement waits for: a second connection looks while the first one waits, and logs them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from amprenta_vectors.pg.connections import like
from amprenta_vectors.pg.errors import for_a_log

log = logging.getLogger("amprenta_vectors.ddl")

LOOK_SECONDS = 0.5
"""How long a statement runs before the first look for the sessions that it waits for, and between two looks."""
SAY_AGAIN_SECONDS = 60.0

# Never the query: it has values in it. Age and state are empty where the role may not see another role's session.
_BLOCKERS = sa.text("""
    SELECT b.pid, a.usename AS role, a.application_name AS application, a.state,
           extract(epoch FROM clock_timestamp() - a.xact_start)::bigint AS seconds
    FROM unnest(pg_blocking_pids(:pid)) AS b (pid) LEFT JOIN pg_stat_activity a USING (pid)
    ORDER BY a.xact_start NULLS LAST, b.pid
""")


class Blockers:
    """The sessions that one connection waits for, as last seen; ``pids`` and ``said`` stay when the wait is over."""

    def __init__(self, connection: Connection, what: str) -> None:
        self.pids: list[int] = []
        self.said = ""
        self._what = what
        # A pool of its own: an asynchronous connection belongs to the event loop that opened it.
        self._engine = like(connection.engine)
        self._pid = connection.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
        self._over = threading.Event()
        self._told: dict[int, float] = {}

    def watch(self) -> None:
        """Look for the sessions every half second until `stop` is called; run this in a thread of its own."""
        if self._over.wait(LOOK_SECONDS):
            return
        try:
            if self._engine.dialect.is_async:
                asyncio.run(self._watch_asynchronously())
            else:
                with self._engine.connect() as connection:
                    self._watch(connection)
                self._engine.dispose()
        except SQLAlchemyError as error:
            log.warning("%s: it takes long, and whom it waits for cannot be seen: %s", self._what, for_a_log(error))

    def stop(self) -> None:
        """End `watch`."""
        self._over.set()

    async def _watch_asynchronously(self) -> None:
        # It needs greenlet, which an application without asynchronous connections may not have.
        from sqlalchemy.ext.asyncio import AsyncEngine

        engine = AsyncEngine(self._engine)
        async with engine.connect() as connection:
            await connection.run_sync(self._watch)
        await engine.dispose()

    def _watch(self, connection: Connection) -> None:
        # An open transaction of the watcher's own would be one more that a concurrent build waits for.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        while True:
            self._look(connection)
            if self._over.wait(LOOK_SECONDS):
                return

    def _look(self, connection: Connection) -> None:
        found = connection.execute(_BLOCKERS, {"pid": self._pid}).all()
        if not found:
            return
        described = [_describe(row) for row in found]
        self.pids = [row.pid for row in found if row.pid]
        self.said = "; ".join(described)
        now = time.monotonic()
        for row, description in zip(found, described, strict=True):
            if now - self._told.get(row.pid, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
                self._told[row.pid] = now
                log.info("%s: waiting for %s", self._what, description)


def _describe(row: sa.Row[tuple[int, str, str, str, int]]) -> str:
    if row.pid == 0:
        return "a prepared transaction (SELECT * FROM pg_prepared_xacts)"
    if row.role is None:
        return f"pid {row.pid} (a process of the server's own, such as autovacuum)"
    known = [f"user {row.role}", *([f"application {row.application}"] if row.application else [])]
    if row.state is None:
        known.append("state and age hidden from this role, which lacks pg_read_all_stats")
    else:
        known.append(row.state)
    if row.seconds is not None:
        known.append(f"transaction open for {row.seconds} s")
    return f"pid {row.pid} ({', '.join(known)})"


@contextmanager
def naming_blockers(connection: Connection, what: str) -> Iterator[Blockers]:
    """Log every session that ``connection`` waits for while inside; ``what`` says what it does."""
    blockers = Blockers(connection, what)
    thread = threading.Thread(target=blockers.watch, name="blockers", daemon=True)
    thread.start()
    try:
        yield blockers
    finally:
        blockers.stop()
        thread.join()
