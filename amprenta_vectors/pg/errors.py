"""What PostgreSQL's errors mean, by their SQLSTATE and never by their message; the same on every driver.

The codes: https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

DEADLOCK = "40P01"
FEATURE_NOT_SUPPORTED = "0A000"
FILE_MISSING = "58P01"
IN_USE = "2BP01"
"""Something else depends on what was to be dropped."""
LOCK_NOT_HAD = "55P03"
NOT_ALLOWED = "42501"
STATEMENT_CANCELLED = "57014"
"""A statement_timeout, or somebody's cancellation; less of it at once is right then too."""
UNDEFINED_COLUMN = "42703"
UNDEFINED_OBJECT = "42704"
UNDEFINED_TABLE = "42P01"
TYPE_MISMATCH = "42804"


def sqlstate(error: BaseException) -> str | None:
    """Return the code that PostgreSQL gave the error, as SQLAlchemy wraps it or as a driver raises it; or None."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)


def is_lock_not_had(error: BaseException) -> bool:
    """Return whether a lock was not had in time: by lock_timeout, or as the side that gave way in a deadlock."""
    return isinstance(error, DBAPIError) and sqlstate(error) in {LOCK_NOT_HAD, DEADLOCK}


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the connection itself failed, for which no driver has an SQLSTATE."""
    return isinstance(error, (OperationalError, InterfaceError)) and sqlstate(error) is None
