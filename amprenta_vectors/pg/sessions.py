"""Sessions left as they were found: short locks with another try, settings that are restored, a session beside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg.blockers import naming_blockers
from amprenta_vectors.pg.errors import is_lock_not_had
from amprenta_vectors.pg.names import quoted

LOCK_SECONDS = 2.0
"""How long one try waits for its lock, and so the longest that other statements queue behind it."""
GIVE_UP_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.5
"""The longest pause after the first try; it doubles with every further one, up to ten seconds."""
LONGEST_PAUSE_SECONDS = 10.0
_LOOK_SECONDS = 0.5

# OFFSET 0 keeps the two levels apart: each value is read before it is set.
_SET = sa.text("""
    SELECT name, before, set_config(name, value, :local)
    FROM (
        SELECT name, value, current_setting(name) AS before
        FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS given (name, value) OFFSET 0
    ) AS found
""")

# Others that wait for a lock of this session's, whichever it is.
_WAITED_FOR = sa.text("""
    SELECT EXISTS (SELECT FROM pg_locks w WHERE NOT w.granted AND pg_backend_pid() = ANY(pg_blocking_pids(w.pid)))
""")

# Locks on one table that this session would wait for itself, asked for from another of its own.
_HELD = sa.text("""
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid() AND granted
          AND relation = to_regclass(:name) AND mode NOT IN ('AccessShareLock', 'RowShareLock')
    )
""")

Result = TypeVar("Result")


@contextmanager
def settings(connection: Connection, *, local: bool = False, **values: str) -> Iterator[None]:
    """Set settings to ``values`` while inside, and restore them afterwards; ``local`` to the transaction."""
    before = _apply(connection, values, local=local)
    try:
        yield
    except DBAPIError:
        # A transaction that failed takes back what was local to it, and takes no statement any more.
        if not local and not connection.invalidated:
            _apply(connection, before, local=False)
        raise
    except BaseException:
        if not connection.invalidated:
            _apply(connection, before, local=local)
        raise
    _apply(connection, before, local=local)


def _apply(connection: Connection, values: Mapping[str, str], *, local: bool) -> dict[str, str]:
    """Set ``values``; return the values that the settings had."""
    given = {"names": list(values), "values": list(values.values()), "local": local}
    return {name: before for name, before, _ in connection.execute(_SET, given)}


def with_short_lock(connection: Connection, what: str, work: Callable[[], Result]) -> Result:
    """Run ``work`` in a savepoint under a short lock_timeout, again and again for up to 300 seconds.

    It is not tried again once others wait for what this transaction has locked before. Raises `AmprentaError` naming
    ``what``, and the sessions in its way, if the lock is not acquired. The session's own time-outs are lifted meanwhile
    and restored afterwards.
    """

    def attempt() -> Result:
        with connection.begin_nested():
            return work()

    limits = {
        "lock_timeout": f"{LOCK_SECONDS * 1000:.0f}ms",
        "statement_timeout": "0",
        # Between two tries the transaction is idle, for longer than an application's limit may allow.
        "idle_in_transaction_session_timeout": "0",
    }
    before = _apply(connection, limits, local=True)
    try:
        return try_for_lock(connection, what, attempt)
    finally:
        # A try that failed has failed in its savepoint.
        if not connection.invalidated:
            _apply(connection, before, local=True)


def try_for_lock(connection: Connection, what: str, attempt: Callable[[], Result]) -> Result:
    """Call ``attempt`` until it gets its lock, for up to 300 seconds; raises as `with_short_lock` does."""
    began = time.monotonic()

    def may_try_again(error: BaseException) -> bool:
        return is_lock_not_had(error) and not is_waited_for(connection)

    def pause(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not is_waited_for(connection):
            time.sleep(min(left, _LOOK_SECONDS))

    retrying = Retrying(
        retry=retry_if_exception(may_try_again),
        stop=stop_after_delay(GIVE_UP_SECONDS),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        sleep=pause,
        reraise=True,
    )
    with naming_blockers(connection, what) as blockers:
        try:
            return retrying(attempt)
        except DBAPIError as error:
            if not is_lock_not_had(error):
                raise
            seconds, held_up = time.monotonic() - began, is_waited_for(connection)
            others = "; others wait for what this transaction locked before" if held_up else ""
            raise AmprentaError(
                f"{what}: another session held the table for {seconds:.0f} s: {blockers.said or 'not seen'}{others}",
                hint="wait for it, or end it (SELECT pg_terminate_backend("
                f"{blockers.pids[0] if blockers.pids else 'pid'}); pg_stat_activity tells more), then run the command "
                "again",
            ) from error


def is_waited_for(connection: Connection) -> bool:
    """Return whether another session waits for a lock that this one holds."""
    waited_for: bool = connection.execute(_WAITED_FOR).scalar_one()
    return waited_for


def holds_lock(connection: Connection, table: str, schema: str | None = None) -> bool:
    """Return whether this transaction has locked ``table`` against writers or schema changes of another session."""
    held: bool = connection.execute(_HELD, {"name": quoted(schema, table)}).scalar_one()
    return held
