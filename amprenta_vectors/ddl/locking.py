"""Short DDL on a table in use: a brief lock_timeout and another try, so that nothing queues behind it for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from amprenta_vectors.errors import AmprentaError

LOCK_SECONDS = 2
"""How long one try waits for its lock, and so the longest that other statements queue behind it."""
GIVE_UP_SECONDS = 300

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
            hint="end the long transaction (SELECT * FROM pg_stat_activity), then run: alembic upgrade head",
        ) from error
