"""A query through the store on each driver beside a bare connection of it: the same settings, transaction and SQL.

    python benchmarks/drivers.py [--queries 300] [--rounds 5]

The rows are the texts of Python's standard library, embedded by WordLlama (256 dimensions). What the bare connection
sends is written down beforehand, the vector as text too; it reads JSON as the store does. Both are asked one query at a
time, in turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import asyncpg
import click
import numpy as np
import psycopg
import psycopg2
from query import OVERHEAD_GOAL, TOP_K, fill, in_turn, ratio, timed, to_queries
from sqlalchemy import make_url
from tools import Vectors, open_stage, print_budget, print_machine

from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.corpus import embed_corpus
from amprenta_vectors.stores.factory import get_async_vector_store, open_pgvector_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore

Sent = tuple[list[str], Any, dict[str, Any]]


@click.command()
@click.option("--queries", default=300, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="How often all queries are asked.")
def main(queries: int, rounds: int) -> None:
    """Print every figure."""
    print_machine()
    with open_stage() as stage:
        corpus = embed_corpus(stage.folder)
        url = fill(stage, corpus)
        asked = to_queries(corpus, queries)
        click.echo(f"{len(corpus.ids):,} rows, {len(asked)} queries, top {TOP_K}")
        click.echo("\none query at a time         bare p50 ms   store p50 ms")
        for driver, bare in (("psycopg2", bare_psycopg2), ("psycopg", bare_psycopg)):
            with closing(open_pgvector_store(to_settings(url, driver))) as store:
                report(driver, measured(url, store, asked, rounds, bare), rounds)
        for driver, awaited in (("psycopg", awaited_psycopg), ("asyncpg", awaited_asyncpg)):
            taken = asyncio.run(measured_awaited(to_settings(url, driver), url, asked, rounds, awaited))
            report(f"{driver}, awaited", taken, rounds)


def to_settings(url: str, driver: str) -> Settings:
    """Return the settings of a store on ``driver``."""
    named = make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    return Settings.load(database_url=named, vector_backend="pgvector")


def report(name: str, taken: dict[str, list[float]], rounds: int) -> None:
    """Print one driver's line, and how it stands to the goal."""
    bare, store = (float(np.percentile(taken[way], 50)) for way in ("bare", "store"))
    click.echo(f"{name:<27} {bare:>11.2f} {store:>14.2f}")
    print_budget(
        f"  {name}: store × bare, p50", ratio(taken["store"], taken["bare"], 50, rounds), OVERHEAD_GOAL, at_most=True
    )


def to_sent(store: PgVectorStore, asked: Vectors) -> list[Sent]:
    """Return what the store would send for each query."""
    _, searcher = store._open()
    return [searcher._message(vector, TOP_K, None, False) for vector in asked]  # type: ignore[misc]


def measured(
    url: str, store: PgVectorStore, asked: Vectors, rounds: int, bare: Callable[[str, list[Sent]], Any]
) -> dict[str, list[float]]:
    """Return the milliseconds of both ways."""
    with closing(bare(url, to_sent(store, asked))) as other:
        ways = {"bare": timed(other.ask), "store": timed(lambda number: store.query(asked[number], top_k=TOP_K))}
        return in_turn(ways, len(asked), rounds)


async def measured_awaited(
    settings: Settings, url: str, asked: Vectors, rounds: int, bare: Callable[[str, list[Sent]], Awaitable[Any]]
) -> dict[str, list[float]]:
    """Return the milliseconds of both ways, awaited."""
    store = get_async_vector_store(settings)
    await store.query(asked[0], top_k=TOP_K)
    ask = await bare(url, to_sent(store._store, asked))
    ways: dict[str, Callable[[int], Awaitable[Any]]] = {
        "bare": ask,
        "store": lambda number: store.query(asked[number], top_k=TOP_K),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for number in range(len(asked)):
            for name in sorted(ways, reverse=(number + turn) % 2 == 0):
                began = time.perf_counter()
                await ways[name](number)
                # The first round warms up.
                if turn:
                    taken[name].append((time.perf_counter() - began) * 1000)
    await store.close()
    return taken


class bare_psycopg2:  # noqa: N801 - it stands for a function that opens one
    """psycopg 2, one message."""

    def __init__(self, url: str, sent: list[Sent]) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._messages = to_messages(sent)

    def ask(self, number: int) -> list[Any]:
        """Return the rows of a query."""
        message, values = self._messages[number]
        with self._connection.cursor() as cursor:
            cursor.execute(message, values)
            return cursor.fetchall()

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


class bare_psycopg:  # noqa: N801 - it stands for a function that opens one
    """psycopg 3 with its client-side cursor, one message."""

    def __init__(self, url: str, sent: list[Sent]) -> None:
        self._connection = psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor)
        self._messages = to_messages(sent)

    def ask(self, number: int) -> list[Any]:
        """Return the rows of a query."""
        message, values = self._messages[number]
        with self._connection.cursor() as cursor:
            cursor.execute(message, values)
            while cursor.nextset():
                pass
            return cursor.fetchall()

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def to_messages(sent: list[Sent]) -> list[tuple[str, dict[str, Any]]]:
    """Return the statements of each query as one message."""
    return [("; ".join([*settings, statement.text]), values) for settings, statement, values in sent]


async def awaited_psycopg(url: str, sent: list[Sent]) -> Callable[[int], Awaitable[Any]]:
    """Open psycopg 3 for a loop, one message."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, cursor_factory=psycopg.AsyncClientCursor)
    messages = to_messages(sent)

    async def ask(number: int) -> Any:
        message, values = messages[number]
        async with connection.cursor() as cursor:
            await cursor.execute(message, values)
            while cursor.nextset():
                pass
            return await cursor.fetchall()

    return ask


async def awaited_asyncpg(url: str, sent: list[Sent]) -> Callable[[int], Awaitable[Any]]:
    """Open asyncpg, a transaction of three statements."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    asked = [
        ("; ".join(["BEGIN", *settings]), statement.text, [values[name] for name in statement.order])
        for settings, statement, values in sent
    ]

    async def ask(number: int) -> Any:
        begin, statement, values = asked[number]
        await connection.execute(begin)
        rows = await connection.fetch(statement, *values)
        await connection.execute("ROLLBACK")
        return [(*row[:-1], json.loads(row[-1])) for row in rows]

    return ask


if __name__ == "__main__":
    sys.exit(main())
