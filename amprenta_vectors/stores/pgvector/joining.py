"""The caller's own transaction, in which a store reads or writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidRequestError

from amprenta_vectors.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

Joinable: TypeAlias = "Connection | Session"
AsyncJoinable: TypeAlias = "AsyncConnection | AsyncSession"


@contextmanager
def joining(given: Joinable) -> Iterator[Connection]:
    """Work on the connection of a transaction that goes on, and leave its end to the caller.

    Raises `ConfigError` for one that has ended, and for another kind of object.
    """
    try:
        yield given if isinstance(given, Connection) else _of_session(given)
    except InvalidRequestError as error:
        raise _ended(str(error)) from error


def _of_session(given: object) -> Connection:
    # Whoever has a session has imported this.
    from sqlalchemy.orm import Session

    if not isinstance(given, Session):
        raise _other_kind(given, "a Connection or a Session")
    return given.connection()


def to_joinable(given: AsyncJoinable) -> Joinable:
    """Return what is behind an asynchronous connection or session. Raises `ConfigError` for another kind."""
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    if isinstance(given, AsyncSession):
        return given.sync_session
    if not isinstance(given, AsyncConnection):
        raise _other_kind(given, "an AsyncConnection or an AsyncSession")
    if given.sync_connection is None:
        raise _ended("the connection was not begun, or is closed")
    return given.sync_connection


def _other_kind(given: object, expected: str) -> ConfigError:
    return ConfigError(
        f"connection is a {type(given).__name__}; expected {expected}",
        hint="with engine.begin() as connection: store.upsert(records, connection=connection)",
    )


def _ended(why: str) -> ConfigError:
    return ConfigError(
        f"the connection or session that was given has no transaction to join: {why}",
        hint="roll it back, begin anew, and do all of the transaction again",
    )
