"""Queries on a standby: what is read there and what is not, while it lags, is away, is promoted, or the primary is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backfill_tools import execute, to_ids, to_vectors
from servers import make_standby, serving
from waiting import until

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.doctor.examine import examine
from amprenta_vectors.errors import AmprentaError, TransientError
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.stores.factory import get_async_vector_store, get_vector_store
from amprenta_vectors.stores.pgvector import replica as module
from amprenta_vectors.stores.pgvector.replica import ReplicatedStore
from amprenta_vectors.stores.protocol import Record

IDS, VECTORS = to_ids(30), to_vectors(31)


class World:
    """A primary, its standby, and a store that reads on the second."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
        self.primary, self.standby = primary, standby
        self.settings = Settings.load(
            database_url=primary.url(),
            read_database_url=standby.url(),
            vector_backend="pgvector",
            read_max_lag_seconds=2,
        )
        self.engine = create_engine(self.settings)
        self.there = create_engine(self.settings, reads=True)
        self.store = get_vector_store(self.settings)
        assert isinstance(self.store, ReplicatedStore)

    def close(self) -> None:
        self.store.close()
        self.engine.dispose()
        self.there.dispose()


@pytest.fixture
def world(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(module, "AWAY_SECONDS", 0.0)
    with serving(own_folder, autovacuum="off") as primary:
        upgrade(Settings.load(database_url=primary.url(), vector_dimension=8))
        folder = own_folder.with_name("standby")
        make_standby(primary, folder)
        with serving(folder, hot_standby="on") as standby:
            world = World(primary, standby)
            world.store.upsert([Record(key, vector) for key, vector in zip(IDS, VECTORS, strict=False)])
            until(lambda: world.store._standby.count() == 30)  # type: ignore[attr-defined]
            yield world
            world.close()


def goes_to(world: World) -> str:
    """Return the side to which the watch lets the next query go."""
    return "standby" if world.store._watch.is_fit() else "primary"  # type: ignore[attr-defined]


def test_every_read_is_made_on_the_standby_and_every_write_on_the_primary(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = world.store
    until(lambda: goes_to(world) == "standby")
    reads: list[Callable[[], Any]] = [
        lambda: [hit.key for hit in store.query(VECTORS[3], top_k=2)],
        lambda: [hit.key for hit in store.query(VECTORS[3], top_k=2, exact=True)],
        lambda: store.explain(VECTORS[3], top_k=2).index,
        lambda: store.scores(VECTORS[3], IDS[:2]),
        lambda: store.sample(3).tolist(),
        lambda: store.stored_vector().tolist(),
        lambda: list(store.fetch(IDS[:2])),
        store.count,
    ]
    on_standby = [read() for read in reads]
    with monkeypatch.context() as patch:
        patch.setattr(store._watch, "is_fit", lambda: False)
        assert [read() for read in reads] == on_standby
    # The primary has no table of that name any more, and nothing of it has reached the standby.
    execute(world.there, "SELECT pg_wal_replay_pause()")
    execute(world.engine, "ALTER TABLE rag_chunks RENAME TO elsewhere")
    assert [read() for read in reads] == on_standby
    with pytest.raises(AmprentaError):
        store.upsert([Record("new", VECTORS[30])])
    execute(world.engine, "ALTER TABLE elsewhere RENAME TO rag_chunks")
    store.upsert([Record("new", VECTORS[30])])
    store.delete(["new"])
    with world.engine.begin() as connection:
        store.upsert([Record("new", VECTORS[30])], connection=connection)
        assert list(store.fetch(["new"], connection=connection)) == ["new"]
    assert store.fetch(["new"]) == {}


async def test_a_store_that_awaits_reads_on_the_standby_too_while_it_keeps_up(world: World) -> None:
    store = get_async_vector_store(world.settings)
    try:
        watch: Any = store._store._watch  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            # A look is part of a read.
            while await store.count() and watch.why_not is not None:
                await asyncio.sleep(0.01)
        execute(world.there, "SELECT pg_wal_replay_pause()")
        assert await store.upsert([Record("new", VECTORS[30])]) == 1
        assert await store.count() == 30  # As old as it may be.
        async with asyncio.timeout(60):
            while await store.count() == 30:
                await asyncio.sleep(0.01)
        assert [hit.key for hit in await store.query(VECTORS[30], top_k=1)] == ["new"]
        execute(world.there, "SELECT pg_wal_replay_resume()")
    finally:
        await store.close()


def test_a_standby_that_lags_is_left_alone_until_it_has_caught_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: goes_to(world) == "standby")
    execute(world.there, "SELECT pg_wal_replay_pause()")
    world.store.upsert([Record("new", VECTORS[30])])
    assert world.store.count() == 30  # As old as it may be.
    until(lambda: world.store.count() == 31)
    assert goes_to(world) == "primary"
    execute(world.there, "SELECT pg_wal_replay_resume()")
    until(lambda: goes_to(world) == "standby")
    assert world.store.count() == 31
    assert "queries go to the primary: it was not seen to have" in caplog.text


def test_a_primary_that_rests_makes_no_standby_old(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: goes_to(world) == "standby")
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3600))
    assert goes_to(world) == "standby"


def test_a_standby_that_is_away_costs_no_query_and_is_asked_again(world: World) -> None:
    until(lambda: goes_to(world) == "standby")
    world.standby.stop("immediate")
    for _ in range(5):
        assert len(world.store.query(VECTORS[3], top_k=2)) == 2
    assert goes_to(world) == "primary"
    world.standby.start()
    until(lambda: goes_to(world) == "standby")
    assert len(world.store.query(VECTORS[3], top_k=2)) == 2


def test_while_the_primary_is_away_what_is_read_is_read_on_the_standby(world: World) -> None:
    until(lambda: goes_to(world) == "standby")
    world.primary.stop("immediate")
    for _ in range(5):
        assert [hit.key for hit in world.store.query(VECTORS[3], top_k=1)] == [IDS[3]]
    with pytest.raises(TransientError):
        world.store.upsert([Record("new", VECTORS[30])])
    world.primary.start()
    world.store.upsert([Record("new", VECTORS[30])])


def test_a_standby_that_is_promoted_midway_is_not_read_from_while_the_primary_answers(world: World) -> None:
    until(lambda: goes_to(world) == "standby")
    execute(world.there, "SELECT pg_promote()")
    # Whoever writes to it now, writes to another history.
    execute(world.there, "DELETE FROM rag_chunks")
    assert (world.store.count(), goes_to(world)) == (30, "primary")
    world.primary.stop("immediate")
    assert (world.store.count(), goes_to(world)) == (0, "standby")


def test_another_database_is_no_standby(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.primary.create_database("other")
    upgrade(Settings.load(database_url=world.primary.url("other"), vector_dimension=8))
    settings = world.settings.model_copy(update={"read_database_url": None})
    other = Settings.load(
        database_url=world.primary.url(), read_database_url=world.primary.url("other"), vector_backend="pgvector"
    )
    execute(world.engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=IDS[0])
    for each in (other, settings):
        store = get_vector_store(each)
        assert store.count() == 29
        store.close()
    assert "leads to another database, no standby of this one" in caplog.text


def test_doctor_says_why_queries_do_not_go_to_the_standby(world: World) -> None:
    def found() -> list[str]:
        return [each.found for each in examine(world.settings) if each.check == "read replica"]

    assert found() == []
    execute(world.there, "SELECT pg_wal_replay_pause()")
    execute(world.engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=IDS[0])
    (lags,) = found()
    assert lags.startswith("queries go to the primary and not to READ_DATABASE_URL: it was not seen to have")
    world.standby.stop("immediate")
    (away,) = found()
    assert "it does not answer" in away


def test_a_write_where_database_url_leads_to_a_standby_says_where_it_has_to_lead(world: World) -> None:
    store = get_vector_store(Settings.load(database_url=world.standby.url(), vector_backend="pgvector"))
    with pytest.raises(AmprentaError, match="read-only transaction") as refused:
        store.upsert([Record("new", np.ones(8, np.float32))])
    assert "DATABASE_URL leads to the primary" in refused.value.hint
    store.close()


def test_a_table_that_the_standby_has_not_got_yet_is_read_on_the_primary(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    execute(world.engine, "ALTER TABLE rag_chunks RENAME TO elsewhere")
    until(lambda: not execute(world.there, "SELECT 1 FROM pg_tables WHERE tablename = 'rag_chunks'"))
    execute(world.there, "SELECT pg_wal_replay_pause()")
    execute(world.engine, "ALTER TABLE elsewhere RENAME TO rag_chunks")
    store = get_vector_store(world.settings)
    assert isinstance(store, ReplicatedStore)
    monkeypatch.setattr(store._watch, "is_fit", lambda: True)
    assert store.count() == 30
    assert "queries go to the primary: NotUpgraded" in caplog.text
    store.close()
