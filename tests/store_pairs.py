"""Every pair of driver and mode that the pgvector store works on, behind one interface that does not await."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from amprenta_vectors import db
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore

PAIRS = ("psycopg2", "psycopg", "psycopg_async", "asyncpg")
Answer = TypeVar("Answer")


class Loop:
    """An event loop in a thread, whose coroutines any thread may wait for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        """Return what the coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Awaited:
    """An asynchronous store whose methods a test calls as it calls those of the other one."""

    def __init__(self, store: AsyncPgVectorStore, loop: Loop) -> None:
        self._awaited = store
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._awaited, name, None) or getattr(self._awaited._store, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *given, **named: self._loop.run(value(*given, **named))


class Begun:
    """A transaction that an application began in a ``with`` block, and what a test does with it."""

    def __init__(self, connection: Any, run: Callable[[Any], Any]) -> None:
        self.connection = connection
        self._run = run

    def scalars(self, statement: str) -> list[Any]:
        """Return the first column of what the statement gives."""
        return list(self._run(self.connection.execute(sa.text(statement))).scalars())

    def roll_back(self) -> None:
        """Undo it within the block, which nothing can be done in after that."""
        self._run(self.connection.rollback())


class Pair:
    """One pair; `close` gives back whatever was opened with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: Loop | None = None
        self._opened: dict[int, tuple[sa.Engine, sa.Engine | AsyncEngine]] = {}

    @property
    def is_async(self) -> bool:
        return self.name in ("psycopg_async", "asyncpg")

    @property
    def loop(self) -> Loop:
        self._loop = self._loop or Loop()
        return self._loop

    def store(self, engine: sa.Engine, table: VectorTable, scope: dict[str, str], options: StoreOptions) -> Any:
        """Open the store on an engine of this pair that connects as ``engine`` does, which is on psycopg 2."""
        if self.name == "psycopg2":
            return PgVectorStore(engine, table, scope, options)
        own = self.engine(engine)
        if isinstance(own, AsyncEngine):
            return Awaited(AsyncPgVectorStore(own, table, scope, options), self.loop)
        return PgVectorStore(own, table, scope, options)

    def engine(self, engine: sa.Engine) -> sa.Engine | AsyncEngine:
        """Return the engine of this pair for ``engine``; always the same."""
        if id(engine) not in self._opened:
            self._opened[id(engine)] = (engine, self._open(engine))
        return self._opened[id(engine)][1]

    def _open(self, engine: sa.Engine) -> sa.Engine | AsyncEngine:
        pool: Any = engine.pool
        options: dict[str, Any] = {
            "pool_size": pool.size(),
            "max_overflow": pool._max_overflow,
            "pool_timeout": pool._timeout,
        }
        if self.name == "asyncpg":
            url, arguments = db._asyncpg_arguments(engine.url, "amprenta_vectors")
        else:
            url, arguments = engine.url, db._libpq_arguments("psycopg", "amprenta_vectors")
        create: Any = create_async_engine if self.is_async else sa.create_engine
        url = url.set(drivername="postgresql+" + self.name.removesuffix("_async"))
        made: sa.Engine | AsyncEngine = create(url, connect_args=arguments, **options)
        return made

    @contextmanager
    def begun(self, engine: sa.Engine, *, session: bool = False) -> Iterator[Begun]:
        """A transaction of the application's own, on a connection or a session of this pair."""
        own = engine if self.name == "psycopg2" else self.engine(engine)
        if isinstance(own, AsyncEngine):
            run, enter, leave = self.loop.run, "__aenter__", "__aexit__"
            opened: Any = AsyncSession(own) if session else own.connect()
        else:
            run, enter, leave = _as_it_is, "__enter__", "__exit__"
            opened = Session(own) if session else own.connect()
        run(getattr(opened, enter)())
        try:
            transaction = opened.begin()
            run(getattr(transaction, enter)())
            yield Begun(opened, run)
            run(getattr(transaction, leave)(None, None, None))
        finally:
            run(opened.close())

    def close(self) -> None:
        """Give back the connections, and end the loop."""
        for _, engine in self._opened.values():
            if isinstance(engine, AsyncEngine):
                self.loop.run(engine.dispose())
            else:
                engine.dispose()
        if self._loop is not None:
            self._loop.close()


def _as_it_is(answer: Any) -> Any:
    return answer
