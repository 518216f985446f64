"""The meaning of PostgreSQL's errors, by their SQLSTATE and never by their message; the same on every driver.

The codes: https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import AmprentaError, FilterError, FilterUnsupported, RowError, TimedOut, TransientError
from amprenta_vectors.shown import printable

DEADLOCK = "40P01"
FEATURE_NOT_SUPPORTED = "0A000"
FILE_MISSING = "58P01"
IN_USE = "2BP01"
"""Something else depends on what was to be dropped."""
LOCK_NOT_HAD = "55P03"
NO_ROOM = "53100"
"""The disk, or the shared memory that parallel workers use, is full."""
NOT_ALLOWED = "42501"
NOT_NULL = "23502"
READ_ONLY = "25006"
"""A write on a standby, or in a transaction that may only read."""
STATEMENT_CANCELLED = "57014"
"""A statement_timeout, or a cancellation by somebody; asking for less at once is right in both cases."""
UNDEFINED_COLUMN = "42703"
UNDEFINED_OBJECT = "42704"
UNDEFINED_TABLE = "42P01"
TYPE_MISMATCH = "42804"


def sqlstate(error: BaseException) -> str | None:
    """Return the code that PostgreSQL gave the error, as SQLAlchemy wraps it or as a driver raises it; or None."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)


def is_lock_not_had(error: BaseException) -> bool:
    """Return whether a lock was not acquired in time: by lock_timeout, or as the side that gave way in a deadlock."""
    return isinstance(error, DBAPIError) and sqlstate(error) in {LOCK_NOT_HAD, DEADLOCK}


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the connection itself failed, for which PostgreSQL gives no SQLSTATE.

    The error is told by the names that PEP 249 prescribes to every driver. psycopg 2 raises a bare ``DatabaseError``
    for a connection that drops while an answer is read, asyncpg what the socket raises.
    """
    driver = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(driver, OSError):
        return True
    if isinstance(getattr(driver, "__cause__", None) or driver, ValueError | TypeError):
        # asyncpg itself could not send a value, which it calls an error of the interface.
        return False
    names = {each.__name__ for each in type(driver).__mro__}
    lost = bool(names & {"OperationalError", "InterfaceError"}) or type(driver).__name__ == "DatabaseError"
    return lost and sqlstate(error) is None


_TRANSIENT_CLASSES = {"08", "40", "53", "57"}
_NOT_MENDED_BY_WAITING = {"40002", "53400", "57P04"}
"""A constraint at the commit, a limit of the configuration, a database that was dropped."""
_TRANSIENT_STATES = {LOCK_NOT_HAD, "25P03", "25P04"}
_ROW_CLASSES = {"21", "22", "23", "44", "54", "P0"}


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: a lost connection, a deadlock, a lock time-out, a restart, a full disk."""
    state = sqlstate(error)
    return is_connection_lost(error) or (
        state is not None
        and state not in _NOT_MENDED_BY_WAITING
        and (state[:2] in _TRANSIENT_CLASSES or state in _TRANSIENT_STATES)
    )


def unless_away(step: Callable[[], object]) -> None:
    """Call ``step``, or leave it out if the database is away: waiting for the database is for others."""
    try:
        step()
    except DBAPIError as error:
        if not is_transient(error):
            raise


def is_row_refusal(error: BaseException) -> bool:
    """Return whether a row's own content was refused: a cast, a constraint, a trigger, a size limit."""
    state = sqlstate(error)
    return state is not None and state[:2] in _ROW_CLASSES


LONGEST_REFUSAL = 300
"""Characters of PostgreSQL's own words that are kept of a row: it quotes a value whole, however long that is."""


def refusal_of(error: DBAPIError) -> str:
    """Return the start of what PostgreSQL says of a row, without its DETAIL: either may quote the whole row."""
    message = _primary(error.orig) or type(error.orig).__name__
    return message if len(message) <= LONGEST_REFUSAL else message[:LONGEST_REFUSAL] + "…"


def to_error(error: BaseException, doing: str) -> AmprentaError:
    """Return a driver's error as one of ours: transient if trying again may help, else final."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    reason = _primary(driver) or to_line(driver)
    if sqlstate(error) == STATEMENT_CANCELLED:
        return TimedOut(f"{doing}: {reason}")
    if is_transient(error):
        return TransientError(f"{doing}: {reason}")
    if sqlstate(error) == READ_ONLY:
        hint = "DATABASE_URL leads to the primary; READ_DATABASE_URL may lead to a standby (docs/read-replica.md)"
        return AmprentaError(f"{doing}: {reason}", hint=hint)
    return AmprentaError(f"{doing}: {reason}")


def to_line(driver_error: object) -> str:
    """Return what a driver says of a failure on one line: libpq writes several, and indents them by tabs."""
    return " ".join(str(driver_error).split())


def for_a_log(error: BaseException) -> str:
    """Return an error on one line that quotes no row, and nothing that a query asked for."""
    driver = error.orig if isinstance(error, DBAPIError) else error
    kind, state = type(driver).__name__, sqlstate(error)
    if isinstance(error, FilterError | FilterUnsupported | RowError):
        return kind
    if isinstance(error, AmprentaError):
        return printable(f"{kind}: {error.message}")
    if state is None:
        # Of a driver itself, as where the connection is lost; what others raise may hold anything.
        return printable(f"{kind}: {to_line(driver)}") if isinstance(error, DBAPIError) else kind
    # What PostgreSQL says of a value that it cannot take, quotes the value.
    reason = None if state.startswith(_DATA_CLASS) else _primary(driver)
    return printable(f"{kind} {state}" + (f": {reason}" if reason else ""))


_DATA_CLASS = "22"


def _primary(driver: object) -> str | None:
    """Return the server's first line, where the driver has it by itself: the DETAIL below it quotes the row."""
    diagnosis = getattr(driver, "diag", None)
    if diagnosis is not None:
        primary: str | None = diagnosis.message_primary
        return primary
    # asyncpg has it in its own error, which SQLAlchemy puts into another.
    told: str | None = getattr(getattr(driver, "__cause__", None) or driver, "message", None)
    return told
