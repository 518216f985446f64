"""Short DDL on a table in use: a brief lock_timeout and another try, so that nothing queues behind it for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from amprenta_vectors.errors import AmprentaError

LOCK_SECONDS = 2
"""How long one try waits for its lock, and so the longest that other statements queue behind it."""
GIVE_UP_SECONDS = 300

_IN_USE = "2BP01"

Result = TypeVar("Result")


def _lock_not_available(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and getattr(error.orig, "pgcode", None) == "55P03"


def with_short_lock(connection: Connection, what: str, work: Callable[[], Result]) -> Result:
    """Run ``work`` in a savepoint under a short lock_timeout, again and again for up to 300 seconds.

    Raises `AmprentaError` naming ``what`` where the lock is never had.
    """

    def attempt() -> Result:
        with connection.begin_nested():
            connection.execute(
                sa.text("SELECT set_config('lock_timeout', :value, true)"), {"value": f"{LOCK_SECONDS}s"}
            )
            result = work()
            connection.execute(sa.text("SELECT set_config('lock_timeout', '0', true)"))
            return result

    retrying = Retrying(
        retry=retry_if_exception(_lock_not_available),
        stop=stop_after_delay(GIVE_UP_SECONDS),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    )
    try:
        return retrying(attempt)
    except OperationalError as error:
        if not _lock_not_available(error):
            raise
        raise AmprentaError(
            f"{what}: another session held the table for {GIVE_UP_SECONDS} s",
            hint="end the long transaction (SELECT * FROM pg_stat_activity), then run the command again",
        ) from error


def drop_unless_used(connection: Connection, what: str, drop: Callable[[], object]) -> bool:
    """Run ``drop`` as `with_short_lock` does; returns False, with nothing changed, where something depends on it."""
    try:
        with_short_lock(connection, f"dropping {what}", drop)
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != _IN_USE:
            raise
        return False
    return True


def lift_statement_timeout(connection: Connection) -> None:
    """Let this transaction read or write a whole table, however short the role's own limit is."""
    connection.execute(sa.text("SELECT set_config('statement_timeout', '0', true)"))


@contextmanager
def without_timeouts(connection: Connection) -> Iterator[None]:
    """Lift the session's time limits, which are meant for an application's statements; not for use in a transaction."""
    limit = sa.text("SELECT set_config(:name, :value, false)")
    names = ("statement_timeout", "lock_timeout")
    before = {name: connection.execute(sa.select(sa.func.current_setting(name))).scalar_one() for name in names}
    for name in names:
        connection.execute(limit, {"name": name, "value": "0"})
    try:
        yield
    finally:
        for name, value in before.items():
            connection.execute(limit, {"name": name, "value": value})
