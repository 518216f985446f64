"""Short DDL on a table in use: a brief lock_timeout and another try, so that nothing queues behind it for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from amprenta_vectors.ddl.blockers import naming_blockers
from amprenta_vectors.ddl.catalogue import sqlstate
from amprenta_vectors.errors import AmprentaError

LOCK_SECONDS = 2
"""How long one try waits for its lock, and so the longest that other statements queue behind it."""
GIVE_UP_SECONDS = 300
FIRST_PAUSE_SECONDS = 0.5
"""The longest pause after the first try; it doubles with every further one, up to ten seconds."""

_IN_USE = "2BP01"
_LOCK_NOT_HAD = {"55P03", "40P01"}
"""SQLSTATEs: a lock_timeout, a deadlock in which this side gave way."""

Result = TypeVar("Result")


def _lock_not_had(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and sqlstate(error) in _LOCK_NOT_HAD


def with_short_lock(connection: Connection, what: str, work: Callable[[], Result]) -> Result:
    """Run ``work`` in a savepoint under a short lock_timeout, again and again for up to 300 seconds.

    Raises `AmprentaError` naming ``what``, and the sessions in its way, where the lock is never had.
    """
    # Between two tries the transaction is idle, for longer than an application's limit may allow.
    connection.execute(sa.text("SELECT set_config('idle_in_transaction_session_timeout', '0', true)"))

    def attempt() -> Result:
        with connection.begin_nested():
            connection.execute(
                sa.text("SELECT set_config('lock_timeout', :value, true)"), {"value": f"{LOCK_SECONDS}s"}
            )
            result = work()
            connection.execute(sa.text("SELECT set_config('lock_timeout', '0', true)"))
            return result

    return try_for_lock(connection, what, attempt)


def try_for_lock(connection: Connection, what: str, attempt: Callable[[], Result]) -> Result:
    """Call ``attempt`` until no lock is missing, for up to 300 seconds; raises as `with_short_lock` does."""
    retrying = Retrying(
        retry=retry_if_exception(_lock_not_had),
        stop=stop_after_delay(GIVE_UP_SECONDS),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=10),
        reraise=True,
    )
    with naming_blockers(connection, what) as blockers:
        try:
            return retrying(attempt)
        except DBAPIError as error:
            if not _lock_not_had(error):
                raise
            raise AmprentaError(
                f"{what}: another session held the table for {GIVE_UP_SECONDS} s: {blockers.said or 'not seen'}",
                hint="wait for it, or end it (SELECT pg_terminate_backend("
                f"{blockers.pids[0] if blockers.pids else 'pid'}); pg_stat_activity tells more), then run the command "
                "again",
            ) from error


def drop_unless_used(connection: Connection, what: str, drop: Callable[[], object]) -> bool:
    """Run ``drop`` as `with_short_lock` does; returns False, with nothing changed, where something depends on it."""
    try:
        with_short_lock(connection, f"dropping {what}", drop)
    except DBAPIError as error:
        if sqlstate(error) != _IN_USE:
            raise
        return False
    return True


def lift_statement_timeout(connection: Connection) -> None:
    """Let this transaction read or write a whole table, however short the role's own limit is."""
    connection.execute(sa.text("SELECT set_config('statement_timeout', '0', true)"))


@contextmanager
def session_limits(connection: Connection, *, lock_timeout: str = "0") -> Iterator[None]:
    """Lift the session's time limits, meant for an application's statements, but for ``lock_timeout`` where given.

    Not for use in a transaction.
    """
    limit = sa.text("SELECT set_config(:name, :value, false)")
    limits = {"statement_timeout": "0", "lock_timeout": lock_timeout}
    before = {name: connection.execute(sa.select(sa.func.current_setting(name))).scalar_one() for name in limits}
    for name, value in limits.items():
        connection.execute(limit, {"name": name, "value": value})
    try:
        yield
    finally:
        for name, value in before.items():
            connection.execute(limit, {"name": name, "value": value})
