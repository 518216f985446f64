"""The throttle: before each claim it asks whether the database has room for another batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from amprenta_vectors.backfill.database.server_load import Observatory, ServerLoad
from amprenta_vectors.config import Thresholds
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import sqlstate, to_error
from amprenta_vectors.schema.vector_table import VectorTable

RESUME_AT = 0.8
"""The share of its threshold to which a value that passed it must fall, lest a run stop and go with every look."""
FORGET_SECONDS = 30.0
"""How long a reason to wait stays in force while the server cannot be looked at."""
RECENT_SECONDS = 1.0
RATE_SECONDS = 5.0
"""The stretch over which WAL is averaged: batches come in bursts."""
MB = 1024 * 1024

_PREDICATE_SETTINGS = sa.text("SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '1s'")
_LONGEST_REASON = 200

_BLIND = sa.text("""
    SELECT pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all, current_user AS role,
           EXISTS (SELECT FROM pg_stat_replication WHERE state IS NULL) AS hidden_replicas
""")


_NEEDS = {
    "max_replica_lag_seconds": ("replicas", "wal_position"),
    "max_lock_waiters": ("lock_waiters",),
    "max_active_sessions": ("active_sessions",),
    "max_wal_mb_per_second": ("wal_position",),
    "max_unarchived_segments": ("archiver", "archiver_files"),
    "autovacuum_wait_seconds": ("vacuum",),
    "max_snapshot_seconds": ("snapshot_seconds",),
}
"""The names, as `Observatory` knows them, of the values that each threshold is compared with."""
_SEEN_BY_FEW = ("max_active_sessions", "autovacuum_wait_seconds", "max_snapshot_seconds")
"""The thresholds that need pg_read_all_stats: without it a role sees its own sessions only."""


@dataclass(frozen=True)
class _Sign:
    """A value to compare with a threshold: ``value`` in its unit, and in words."""

    setting: str
    value: float
    words: str
    unit: str = ""


class WalHistory:
    """The WAL's positions over time, by the server's clock: how fast it grows, and since when a replica is behind."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=3600)

    def record(self, seconds: float, position: float) -> None:
        """Record that the WAL had come to ``position``; after a failover, forget what the other server said."""
        if self._samples and position < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((seconds, position))

    def rate(self) -> float | None:
        """Return the bytes of WAL per second over the last `RATE_SECONDS`; None before there are two looks."""
        if len(self._samples) < 2:
            return None
        end, last = self._samples[-1]
        recent = [sample for sample in self._samples if sample[0] >= end - RATE_SECONDS]
        start, first = recent[0] if len(recent) > 1 else self._samples[-2]
        return (last - first) / (end - start) if end > start else None

    def behind(self, position: float) -> float:
        """Return the seconds since the WAL first was past ``position``, as far back as it was watched."""
        now = self._samples[-1][0]
        return next((now - seconds for seconds, reached in self._samples if reached > position), 0.0)


def furthest_replica(load: ServerLoad, history: WalHistory) -> tuple[str, float] | None:
    """Return the replica furthest behind and by how many seconds; None if no replica is behind.

    ``replay_lag`` is measured as a replica reports progress: it may be missing, or stand still where the replay does.
    Hence the time for which a replica has not reached a position that the WAL had passed counts as well.
    """
    if load.wal_position is None:
        return None
    lags = {
        replica.name: max(history.behind(replica.position), replica.seconds or 0.0)
        for replica in load.replicas
        if replica.position < load.wal_position
    }
    return max(lags.items(), key=lambda item: item[1]) if lags else None


class Throttle:
    """Says why no batch should be claimed now; what cannot be seen is no reason to wait.

    Each call of `reason` is one look at the server; it is not for several threads at once.
    """

    def __init__(
        self, engine: Engine, table: VectorTable, thresholds: Thresholds, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._table = table
        self._thresholds = thresholds
        self._clock = clock
        on = [setting for setting in _NEEDS if getattr(thresholds, setting) is not None]
        self._observatory = Observatory(table, {name for setting in on for name in _NEEDS[setting]}) if on else None
        self._history = WalHistory()
        self._past: frozenset[str] = frozenset()
        self._reason: str | None = None
        self._judged = float("-inf")

    def check(self) -> None:
        """Raise `ConfigError` if the query in ``throttle_sql`` fails or gives no boolean or text."""
        if self._thresholds.throttle_sql is None:
            return
        expected = "AMPRENTA_THROTTLE_SQL must be one query that gives one boolean or text; true or a text means wait"
        try:
            self._predicate()
        except DBAPIError as error:
            if sqlstate(error) is None:
                raise
            raise ConfigError(str(to_error(error, "AMPRENTA_THROTTLE_SQL fails")), hint=expected) from None
        except _NoPredicate as error:
            raise ConfigError(f"AMPRENTA_THROTTLE_SQL gives {error}", hint=expected) from None

    def unseen(self) -> list[str]:
        """Return a sentence on the thresholds that the role may not watch, with the grant that mends it; or nothing."""
        if self._observatory is None:
            return []
        with self._engine.connect() as connection:
            self._observatory.look(connection)
            may = connection.execute(_BLIND).one()
            role = connection.dialect.identifier_preparer.quote(may.role)
        hidden = {setting for setting, names in _NEEDS.items() if not self._observatory.sees_any(names)}
        if not may.sees_all:
            hidden.update(_SEEN_BY_FEW)
        if may.hidden_replicas:
            hidden.add("max_replica_lag_seconds")
        names = [_variable(setting) for setting in _NEEDS if setting in hidden and self._limit(setting) is not None]
        if not names:
            return []
        return [
            f"role {may.role} may not see what {', '.join(names)} would watch; the run goes on without: "
            f"GRANT pg_read_all_stats TO {role}"
        ]

    def reason(self) -> str | None:
        """Return why to wait, in a sentence; None if there is room."""
        try:
            self._reason, self._judged = self._look(), self._clock()
        except (SQLAlchemyError, _NoPredicate):
            if self._clock() - self._judged > FORGET_SECONDS:
                self._reason = None
        return self._reason

    def recent_reason(self) -> str | None:
        """Return what `reason` does, by a look at most a second old: runs of a second's length need no look each."""
        return self._reason if self._clock() - self._judged < RECENT_SECONDS else self.reason()

    def _limit(self, setting: str) -> float | None:
        limit: float | None = getattr(self._thresholds, setting)
        return limit

    def _look(self) -> str | None:
        reasons: list[str] = []
        if self._observatory is not None:
            with self._engine.connect() as connection:
                load = self._observatory.look(connection)
            reasons += self._judge(load)
        if self._thresholds.throttle_sql is not None and (said := self._predicate()) is not None:
            reasons.append(f"AMPRENTA_THROTTLE_SQL says: {said}")
        return "; ".join(reasons) or None

    def _judge(self, load: ServerLoad) -> Iterator[str]:
        if load.wal_position is not None:
            self._history.record(load.seconds, load.wal_position)
        past = set()
        for sign in self._signs(load):
            limit = self._limit(sign.setting)
            if limit is not None and sign.value > limit * (RESUME_AT if sign.setting in self._past else 1):
                past.add(sign.setting)
                yield f"{sign.words} (limit {limit:,g}{sign.unit}, {_variable(sign.setting)})"
        self._past = frozenset(past)
        yield from self._vacuum(load)

    def _signs(self, load: ServerLoad) -> Iterator[_Sign]:
        if (furthest := furthest_replica(load, self._history)) is not None:
            name, lag = furthest
            yield _Sign("max_replica_lag_seconds", lag, f"replica {name} lags {lag:,.0f} s", " s")
        if (rate := self._history.rate()) is not None:
            speed = rate / MB
            yield _Sign("max_wal_mb_per_second", speed, f"WAL is written at {speed:,.1f} MB/s", " MB/s")
        if load.lock_waiters is not None:
            words = f"sessions that wait for locks on {self._table.qualified_name}: {load.lock_waiters}"
            yield _Sign("max_lock_waiters", load.lock_waiters, words)
        if load.active_sessions is not None:
            yield _Sign("max_active_sessions", load.active_sessions, f"active sessions: {load.active_sessions}")
        if load.unarchived_segments is not None:
            words = f"WAL segments that wait for the archiver: {load.unarchived_segments:,}"
            yield _Sign("max_unarchived_segments", load.unarchived_segments, words)
        if load.snapshot_seconds is not None:
            words = f"a transaction has held its snapshot for {load.snapshot_seconds:,.0f} s"
            yield _Sign("max_snapshot_seconds", load.snapshot_seconds, words, " s")

    def _vacuum(self, load: ServerLoad) -> Iterator[str]:
        """Yield the reason to wait for a vacuum of the table that is younger than ``autovacuum_wait_seconds``."""
        longest, vacuum = self._thresholds.autovacuum_wait_seconds, load.vacuum
        if longest is None or vacuum is None or vacuum.seconds >= longest:
            return
        kind = ("autovacuum" if vacuum.automatic else "a VACUUM") + (
            " (to prevent wraparound)" if vacuum.wraparound else ""
        )
        yield (
            f"{kind} has worked on {self._table.qualified_name} for {vacuum.seconds:,.0f} s "
            f"(waited for up to {longest:,g} s, {_variable('autovacuum_wait_seconds')})"
        )

    def _predicate(self) -> str | None:
        """Return why the user's query says to wait, None if it does not. Raises `_NoPredicate` for another answer."""
        with self._engine.connect() as connection:
            connection.execute(_PREDICATE_SETTINGS)
            value = _only_value(connection, self._thresholds.throttle_sql or "")
        if isinstance(value, bool):
            return "wait" if value else None
        if value is None or isinstance(value, str):
            return (value or "").strip()[:_LONGEST_REASON] or None
        raise _NoPredicate(f"a value of another type ({type(value).__name__})")


class _NoPredicate(Exception):
    """A query gave something other than one boolean or text."""


def _only_value(connection: Connection, query: str) -> object:
    result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
    if not result.returns_rows:
        raise _NoPredicate("no rows: it is no query")
    columns, rows = len(result.keys()), result.fetchmany(2)
    if columns != 1 or len(rows) > 1:
        raise _NoPredicate(f"{columns} columns" if columns != 1 else "several rows")
    return rows[0][0] if rows else None


def _variable(setting: str) -> str:
    return f"AMPRENTA_{setting.upper()}"
