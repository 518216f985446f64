"""The asynchronous store: what is of it alone. What it shares with the other one is asked in test_pgvector_store.py."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from poolers import pooled
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, TransientError
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.factory import get_async_vector_store, get_vector_store
from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

DRIVERS = ("asyncpg", "psycopg")
SCOPE = {"namespace": "a"}
UNTOUCHED = {
    "hnsw.ef_search": "40",
    "statement_timeout": "0",
    "transaction_read_only": "off",
    "transaction_isolation": "read committed",
}
QUERY = np.ones(8, np.float32)
RECORDS = [Record(f"k{number}", np.eye(8, dtype=np.float32)[number] + 1, f"text {number}") for number in range(8)]
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query <> ''"


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def filled(engine: sa.Engine) -> Iterator[sa.Engine]:
    """The engine of a table that holds `RECORDS`; nobody else is connected to it."""
    PgVectorStore(engine, RAG_CHUNKS, SCOPE).upsert(RECORDS)
    engine.dispose()
    yield engine
    engine.dispose()


@asynccontextmanager
async def opened(url: str, driver: str, **settings: Any) -> AsyncIterator[AsyncPgVectorStore]:
    """The store that an application gets from the environment."""
    named = sa.make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    store = get_async_vector_store(
        Settings.load(database_url=named, vector_backend="pgvector", namespace="a", **settings)
    )
    try:
        yield store
    finally:
        await store.close()


def states(engine: sa.Engine) -> list[str]:
    """Return what each other session of the database does, that has done anything."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.text(f"SELECT state {OURS} ORDER BY state")))


async def in_force(engine: AsyncEngine) -> dict[str, str]:
    """Return the settings that a search might have left behind, as they are on the next connection of the pool."""
    async with engine.connect() as connection:
        # A session knows pgvector's own once it has used the extension.
        await connection.execute(sa.text("SELECT CAST('[1]' AS vector)"))
        found = [await connection.scalar(sa.text(f"SELECT current_setting('{name}')")) for name in UNTOUCHED]
    return dict(zip(UNTOUCHED, found, strict=True))


async def until(condition: Callable[[], bool]) -> None:
    """Wait in the loop until it holds, a minute at most."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


@contextmanager
def locked(engine: sa.Engine) -> Iterator[None]:
    """Let every query and write of the table wait."""
    with engine.begin() as holding:
        holding.execute(sa.text("LOCK TABLE rag_chunks"))
        yield


async def test_the_store_of_the_environment_is_on_the_driver_that_the_url_names(
    filled: sa.Engine, upgraded_url: str, driver: str
) -> None:
    async with opened(upgraded_url, driver) as store:
        assert store._store._engine.driver.removesuffix("_async") == driver
        assert [hit.key for hit in await store.query(RECORDS[3].vector, top_k=1)] == ["k3"]
        assert await store.count() == 8
        assert states(filled) == ["idle"]
    assert states(filled) == []


def test_a_url_of_any_driver_serves_the_store_that_does_not_await(filled: sa.Engine, upgraded_url: str) -> None:
    found = {}
    for name in ("", "+psycopg2", "+psycopg", "+asyncpg"):
        url = sa.make_url(upgraded_url).set(drivername="postgresql" + name)
        if name == "+asyncpg":
            url = url.update_query_dict({"ssl": "prefer", "prepared_statement_cache_size": "0"})
        settings = Settings.load(
            database_url=url.render_as_string(hide_password=False), vector_backend="pgvector", namespace="a"
        )
        store: Any = get_vector_store(settings)
        assert store.count() == 8
        found[name] = store._engine.driver
        store.close()
    assert found == {"": "psycopg2", "+psycopg2": "psycopg2", "+psycopg": "psycopg", "+asyncpg": "psycopg2"}


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"vector_backend": "pinecone"}, "VECTOR_BACKEND is 'pinecone'.* serves pgvector alone"),
        ({"vector_backend": "chroma"}, "VECTOR_BACKEND is 'chroma'"),
        *(
            ({"vector_backend": "pgvector", "vector_mode": mode, "vector_secondary": "pinecone"}, f"MODE is '{mode}'")
            for mode in ("dual", "fallback", "hybrid", "shadow")
        ),
    ],
)
def test_what_only_the_other_store_does_is_refused_by_name(
    upgraded_url: str, variables: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        get_async_vector_store(Settings.load(database_url=upgraded_url, **variables))
    assert "asyncio.to_thread(store.query" in caught.value.hint


async def test_an_engine_of_the_other_kind_is_refused_with_the_store_that_takes_it(engine: sa.Engine) -> None:
    awaited = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
    for kind, given, hint in ((AsyncPgVectorStore, engine, "PgVectorStore"), (PgVectorStore, awaited, "AsyncPg")):
        with pytest.raises(ConfigError, match="expected an") as caught:
            kind(given, RAG_CHUNKS, SCOPE)  # type: ignore[arg-type]
        assert caught.value.hint.startswith(hint)
    store = PgVectorStore(engine, RAG_CHUNKS, SCOPE)
    for joined in (awaited, object()):
        with pytest.raises(ConfigError, match="expected a Connection or a Session"):
            store.fetch(["k"], connection=joined)  # type: ignore[arg-type]
    own = AsyncPgVectorStore(awaited, RAG_CHUNKS, SCOPE)
    with pytest.raises(ConfigError, match="expected an AsyncConnection or an AsyncSession"):
        await own.delete(["k"], connection=engine)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="was not begun"):
        await own.delete(["k"], connection=awaited.connect())


@pytest.mark.parametrize("what", ["query", "upsert", "count", "joined upsert"])
@pytest.mark.parametrize("cancellations", [1, 5])
async def test_a_task_that_is_cancelled_midway_leaves_its_connection_clean(
    filled: sa.Engine, upgraded_url: str, driver: str, what: str, cancellations: int
) -> None:
    async with opened(upgraded_url, driver, pool_size=1) as store:
        engine = AsyncEngine(store._store._engine)

        async def join() -> None:
            async with engine.begin() as connection:
                await store.upsert([Record("new", QUERY)], connection=connection)

        calls: dict[str, Callable[[], Any]] = {
            "query": lambda: store.query(QUERY),
            "upsert": lambda: store.upsert([Record("new", QUERY)]),
            "count": store.count,
            "joined upsert": join,
        }
        await store.query(QUERY)
        with locked(filled):
            task = asyncio.create_task(calls[what]())
            await until(lambda: "active" in states(filled))
            for _ in range(cancellations):
                # A cancelled scope of anyio cancels again, at every wait of what is cleaned up.
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            # The lock is still held: it is the statement itself that ended.
            await until(lambda: "active" not in states(filled))
        assert store._store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert await in_force(engine) == UNTOUCHED
        assert sorted(await store.fetch(["k1", "new"])) == ["k1"]
        assert await store.upsert([Record("new", QUERY)]) == 1
        assert await store.count() == 9


async def test_other_tasks_go_on_while_a_query_waits(filled: sa.Engine, upgraded_url: str, driver: str) -> None:
    async with opened(upgraded_url, driver) as store:
        await store.query(QUERY)
        with locked(filled):
            query = asyncio.create_task(store.query(QUERY))
            # It is this very loop that sees it wait.
            await until(lambda: "active" in states(filled))
            assert not query.done()
        assert len(await query) == 8


async def test_tasks_share_a_pool_that_has_an_end(filled: sa.Engine, upgraded_url: str, driver: str) -> None:
    async with opened(upgraded_url, driver, pool_size=2) as store:
        engine: Any = store._store._engine
        found = await asyncio.gather(*(store.query(record.vector, top_k=1) for record in RECORDS * 20))
        assert [hits[0].key for hits in found] == [record.key for record in RECORDS * 20]
        assert len(states(filled)) <= 2 + engine.pool._max_overflow
        engine.pool._timeout = 0.05
        connections = [await AsyncEngine(engine).connect() for _ in range(2 + engine.pool._max_overflow)]
        with pytest.raises(TransientError, match="in use") as caught:
            await store.query(QUERY)
        assert "AMPRENTA_POOL_SIZE" in caught.value.hint
        for connection in connections:
            await connection.close()
        assert len(await store.query(QUERY)) == 8


async def test_a_search_whose_connection_was_lost_meanwhile_is_asked_again_once(
    filled: sa.Engine, upgraded_url: str, driver: str
) -> None:
    async with opened(upgraded_url, driver) as store:
        before = await store.query(QUERY)
        with filled.connect() as connection:
            connection.execute(sa.text(f"SELECT pg_terminate_backend(pid, 5000) {OURS}"))
        assert await store.query(QUERY) == before


async def test_a_server_that_is_not_there_may_be_asked_again(driver: str) -> None:
    with closing(socket.socket()) as bound:
        # Nobody listens on it, and nobody else may.
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        async with opened(f"postgresql://postgres@127.0.0.1:{port}/none", driver) as store:
            for call in (lambda: store.query(QUERY), lambda: store.upsert(RECORDS), store.count):
                with pytest.raises(TransientError):
                    await call()


@pytest.mark.parametrize(("driver", "awaits"), [("asyncpg", True), ("psycopg", True), ("psycopg", False)])
async def test_behind_a_pooler_no_statement_has_a_name(
    filled: sa.Engine, upgraded_url: str, driver: str, awaits: bool
) -> None:
    with pooled(upgraded_url, pool_size=1) as url:
        async with opened(url, driver, query_timeout_seconds=7) as first, opened(url, driver) as second:
            for _ in range(7):
                for store in (first, second):
                    assert len(await store.query(QUERY)) == 8
                    assert await store.upsert(RECORDS) == 8
                    assert await in_force(AsyncEngine(store._store._engine)) == UNTOUCHED
        named = sa.make_url(url).set(drivername=f"postgresql+{driver}")
        if awaits:
            engine = create_async_engine(named)
            with pytest.raises(ConfigError, match="names its prepared statements") as caught:
                await AsyncPgVectorStore(engine, RAG_CHUNKS, SCOPE).query(QUERY)
            await engine.dispose()
        else:
            own = sa.create_engine(named)
            with pytest.raises(ConfigError, match="names its prepared statements") as caught:
                PgVectorStore(own, RAG_CHUNKS, SCOPE).query(QUERY)
            own.dispose()
        # What the hint says is what makes it work.
        arguments = eval(caught.value.hint.partition("connect_args=")[2].removesuffix(")"))
        mended = create_async_engine(named, connect_args=arguments)
        assert len(await AsyncPgVectorStore(mended, RAG_CHUNKS, SCOPE).query(QUERY)) == 8
        await mended.dispose()


async def test_an_engine_that_names_its_statements_serves_where_no_pooler_is(filled: sa.Engine, driver: str) -> None:
    engine = create_async_engine(filled.url.set(drivername=f"postgresql+{driver}"))
    store = AsyncPgVectorStore(engine, RAG_CHUNKS, SCOPE, StoreOptions(query_timeout_seconds=60))
    for _ in range(8):
        assert len(await store.query(QUERY)) == 8
        assert await store.upsert(RECORDS) == 8
    await engine.dispose()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_a_search_leaves_the_connections_of_an_application_as_it_has_them(
    filled: sa.Engine, autocommit: bool
) -> None:
    level = "AUTOCOMMIT" if autocommit else "READ COMMITTED"
    for driver in ("psycopg2", "psycopg"):
        own = sa.create_engine(filled.url.set(drivername=f"postgresql+{driver}"), isolation_level=level, pool_size=1)
        assert len(PgVectorStore(own, RAG_CHUNKS, SCOPE).query(QUERY)) == 8
        with own.connect() as connection:
            assert connection.connection.driver_connection.autocommit is autocommit  # type: ignore[union-attr]
        own.dispose()
    engine = create_async_engine(filled.url.set(drivername="postgresql+psycopg"), isolation_level=level, pool_size=1)
    assert len(await AsyncPgVectorStore(engine, RAG_CHUNKS, SCOPE).query(QUERY)) == 8
    async with engine.connect() as awaited:
        driver_connection: Any = (await awaited.get_raw_connection()).driver_connection
        assert driver_connection.autocommit is autocommit
    await engine.dispose()
