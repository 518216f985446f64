"""How a driver sends a search: its settings and its statement, in one transaction and few round trips.

Statements of one message, without BEGIN, are one transaction
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT): settings cost no round trip
where the driver can send them so.

A sender is called where the store's logic runs: under an asynchronous engine that is SQLAlchemy's greenlet, where
``await_only`` waits for the driver's own coroutines.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import psycopg2
import sqlalchemy as sa
from sqlalchemy.util import await_only

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.extras import require_extra

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Compiled:
    """A statement in the driver's spelling; ``order`` names the values of its numbered parameters, if it has such."""

    text: str
    order: tuple[str, ...]
    bound: Mapping[str, Any]


class Sender(Protocol):
    """A driver's way to send a search on a connection of its own, which nobody else uses meanwhile."""

    errors: tuple[type[Exception], ...]
    """What the driver raises."""

    def ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows of ``statement`` under ``settings``, which hold for it alone. Raises `errors`."""
        ...

    def is_closed(self, driver: Any) -> bool:
        """Return whether the connection is lost."""
        ...

    def aside(self, work: Callable[[], Answer]) -> Answer:
        """Return what ``work`` returns, which takes long and needs no database: other tasks of a loop run meanwhile."""
        ...


class _Waiting:
    """Drivers whose connections are waited for."""

    def aside(self, work: Callable[[], Answer]) -> Answer:
        """Return what ``work`` returns."""
        return work()


class _Awaiting:
    """Drivers whose connections are awaited."""

    def aside(self, work: Callable[[], Answer]) -> Answer:
        """Return what ``work`` returns, done in a thread."""
        done: Answer = await_only(asyncio.to_thread(work))
        return done


class Psycopg2Sender(_Waiting):
    """psycopg 2 writes the values into the statement, so that everything is one message."""

    errors: tuple[type[Exception], ...] = (psycopg2.Error,)

    def ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows, by one message."""
        before = driver.autocommit
        try:
            # A snapshot of this store leaves them set, and psycopg2 would then set and reset them around autocommit: a
            # round trip each, and for the session.
            driver.set_session(isolation_level="DEFAULT", readonly="DEFAULT")
            driver.autocommit = True
            with driver.cursor() as cursor:
                cursor.execute(_message(settings, statement), values)
                return list(cursor.fetchall())
        finally:
            if not driver.closed:
                driver.autocommit = before

    def is_closed(self, driver: Any) -> bool:
        """Return whether the connection is lost."""
        return bool(driver.closed)


class PsycopgSender(_Waiting):
    """psycopg 3 with its client-side cursor sends one message, as psycopg 2 does."""

    def __init__(self) -> None:
        self._psycopg: Any = require_extra("psycopg", "async")
        self.errors: tuple[type[Exception], ...] = (self._psycopg.Error,)

    def ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows, by one message."""
        before = driver.autocommit
        driver.autocommit = True
        try:
            with self._psycopg.ClientCursor(driver) as cursor:
                cursor.execute(_message(settings, statement), values)
                _to_the_last(cursor)
                return list(cursor.fetchall())
        finally:
            if not driver.closed:
                driver.autocommit = before

    def is_closed(self, driver: Any) -> bool:
        """Return whether the connection is lost."""
        return bool(driver.closed)


class AsyncPsycopgSender(_Awaiting, PsycopgSender):
    """The same on an asynchronous connection."""

    def ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows, by one message."""
        found: list[Any] = await_only(self._ask(driver, _message(settings, statement), values))
        return found

    async def _ask(self, driver: Any, message: str, values: Mapping[str, Any]) -> list[Any]:
        before = driver.autocommit
        await driver.set_autocommit(True)
        try:
            async with self._psycopg.AsyncClientCursor(driver) as cursor:
                await cursor.execute(message, values)
                _to_the_last(cursor)
                return list(await cursor.fetchall())
        finally:
            if not driver.closed:
                await driver.set_autocommit(before)


class AsyncpgSender(_Awaiting):
    """asyncpg sends values apart from their statement, one statement a message: so a transaction is four of them."""

    def __init__(self) -> None:
        asyncpg: Any = require_extra("asyncpg", "async")
        # Beside its own errors, those of the socket come as they are.
        self.errors: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

    def ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows; a statement without settings needs no transaction of its own."""
        found: list[Any] = await_only(
            self._ask(driver, settings, statement, [values[name] for name in statement.order])
        )
        return found

    async def _ask(self, driver: Any, settings: Sequence[str], statement: Compiled, values: list[Any]) -> list[Any]:
        try:
            if settings:
                await driver.execute("; ".join(["BEGIN", *settings]))
            # A named one would be planned for any values after a while, and be lost behind a pooler.
            prepared = await driver.prepare(statement.text, name="")
            rows = await prepared.fetch(*values)
        finally:
            if settings and not driver.is_closed():
                # Reading has nothing to keep, and this ends a failed transaction too.
                await driver.execute("ROLLBACK")
        return [_with_json(row) for row in rows]

    def is_closed(self, driver: Any) -> bool:
        """Return whether the connection is lost."""
        return bool(driver.is_closed())


def open_sender(engine: sa.Engine) -> Sender:
    """Return the sender for the engine's driver. Raises `ConfigError` for another, `MissingExtra`."""
    match engine.driver, engine.dialect.is_async:
        case "psycopg2", _:
            return Psycopg2Sender()
        case "psycopg", False:
            return PsycopgSender()
        case "psycopg_async" | "psycopg", True:
            return AsyncPsycopgSender()
        case "asyncpg", _:
            return AsyncpgSender()
        case driver, _:
            raise ConfigError(
                f"the engine's driver is {driver}; expected psycopg2, psycopg or asyncpg",
                hint='create_engine("postgresql+psycopg2://…") or create_async_engine("postgresql+asyncpg://…")',
            )


def _message(settings: Sequence[str], statement: Compiled) -> str:
    return "; ".join([*settings, statement.text])


def _to_the_last(cursor: Any) -> None:
    """Leave the answers of the settings behind."""
    while cursor.nextset():
        pass


def _with_json(row: Any) -> tuple[Any, ...]:
    """Return a row with its last value read: SQLAlchemy has asyncpg hand JSON over as text."""
    *first, last = row
    return (*first, json.loads(last) if isinstance(last, str) else last)
