"""A store of a table with two models, on every pair of driver and mode: what is written, searched and deleted."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from embedded_rows import LARGE, SMALL, TEXTS, embedder
from model_rows import OPTIONS, add_column, add_two, drop_small, fill_small, switch
from store_pairs import Pair

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.pgvector import models
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.protocol import Hit, Record

QUESTION = "how is an exception handled in a try statement"
TEXT = "a generator is resumed by its next method"
SCOPE = {"namespace": ""}


@pytest.fixture
def engine(embedded_url: str) -> Iterator[sa.Engine]:
    """A table whose rows have the vectors of one model, and the empty column of another."""
    made = create_engine(Settings.load(database_url=embedded_url))
    add_two(made)
    yield made
    made.dispose()


@pytest.fixture
def own_model(engine: sa.Engine) -> None:
    """Nobody but the application can embed for the second model."""
    execute(engine, f"UPDATE embedding_models SET provider = NULL WHERE model_name = '{SMALL}'")


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store looks at the registry at every use."""
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.0)


@pytest.fixture
def open_store(pair: Pair, looks_at_once: None) -> Iterator[Callable[..., Any]]:
    """A function that opens the store of the pair, closed with the test."""
    opened = []

    def store(engine: sa.Engine, options: StoreOptions = OPTIONS) -> Any:
        opened.append(pair.store(engine, RAG_CHUNKS, SCOPE, options))
        return opened[-1]

    yield store
    for each in opened:
        each.close()


@pytest.fixture
def store(engine: sa.Engine, open_store: Callable[..., Any]) -> Any:
    return open_store(engine)


def execute(engine: sa.Engine, statement: str) -> list[Any]:
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement))
        return list(result.all()) if result.returns_rows else []


def vector_of(engine: sa.Engine, key: str, column: str = "embedding_128") -> np.ndarray | None:
    [(text,)] = execute(engine, f"SELECT CAST({column} AS text) FROM rag_chunks WHERE chunk_id = '{key}'")
    return None if text is None else np.array(json.loads(text), np.float32)


def assert_embedded(engine: sa.Engine, key: str, text: str, column: str = "embedding_128") -> None:
    found = vector_of(engine, key, column)
    assert found is not None
    np.testing.assert_allclose(found, embedder(len(found)).embed([text])[0], atol=1e-6)


def record(key: str, text: str | None, dimension: int = 256) -> Record:
    return Record(key, embedder(dimension).embed([text or "other"])[0], text)


def keys(hits: list[Hit]) -> list[str]:
    return [hit.key for hit in hits]


def fail(*_: object) -> None:
    raise OSError("the service is away")


def test_a_text_is_embedded_for_both_models_whichever_made_the_vector(engine: sa.Engine, store: Any) -> None:
    store.upsert([record("k0", TEXT), record("new", TEXT)])
    assert_embedded(engine, "k0", TEXT)
    assert_embedded(engine, "new", TEXT)
    store.upsert([record("k1", TEXT, 128), record("small", TEXT, 128)])
    for key in ("k1", "small"):
        assert_embedded(engine, key, TEXT)
        assert_embedded(engine, key, TEXT, "embedding")
    # Without a text the row keeps its own, from which the other model's vector is.
    store.upsert([record("k0", None)])
    assert_embedded(engine, "k0", TEXT)


def test_a_second_embedder_that_fails_never_fails_the_write(
    engine: sa.Engine, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_small(engine)
    monkeypatch.setattr(ModelEmbedder, "embed", fail)
    assert store.upsert([record("k0", TEXT), record("k1", TEXTS[1]), record("new", TEXT)]) == 3
    for key in ("k0", "new"):
        np.testing.assert_allclose(vector_of(engine, key, "embedding"), embedder(256).embed([TEXT])[0], atol=1e-6)
        assert vector_of(engine, key) is None
    # The text is the one that its vector is of.
    assert_embedded(engine, "k1", TEXTS[1])
    assert store.models.missed == 3


def test_what_is_deleted_is_empty_for_every_model(engine: sa.Engine, store: Any) -> None:
    fill_small(engine)
    store.upsert([record("new", TEXT)])
    store.delete(["k3", "new"])
    assert vector_of(engine, "k3") is None
    assert vector_of(engine, "k3", "embedding") is None
    kept = "hash_embedding_128, text_hash_embedding_128, embedding_hash, embedding_text_hash"
    assert execute(engine, f"SELECT {kept} FROM rag_chunks WHERE chunk_id = 'k3'") == [(None,) * 4]
    # A row that the store itself inserted goes whole.
    assert execute(engine, "SELECT FROM rag_chunks WHERE chunk_id = 'new'") == []


def test_a_text_is_searched_by_the_searched_model_and_a_vector_by_its_own(engine: sa.Engine, store: Any) -> None:
    fill_small(engine)
    by_large, by_small = (keys(store.query(embedder(size).embed([QUESTION])[0], top_k=5)) for size in (256, 128))
    assert by_large != by_small
    assert keys(store.search(QUESTION, top_k=5)) == by_large
    assert keys(store.search(QUESTION, top_k=5, model=SMALL)) == by_small
    switch(engine, SMALL)
    assert keys(store.search(QUESTION, top_k=5)) == by_small
    assert keys(store.search(QUESTION, top_k=5, model=LARGE)) == by_large
    asked = embedder(256).embed([QUESTION])[0]
    assert keys(store.query(asked, top_k=5, model=LARGE)) == by_large
    assert keys(store.query(asked, top_k=5)) == by_large
    assert len(store.fetch(["k0"])["k0"].vector) == 128
    assert len(store.fetch(["k0"], model=LARGE)["k0"].vector) == 256


@pytest.mark.parametrize("session", [False, True], ids=["connection", "session"])
def test_a_pool_of_one_connection_serves_a_caller_who_holds_it(
    engine: sa.Engine, open_store: Callable[..., Any], pair: Pair, session: bool
) -> None:
    alone = sa.create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=2)
    store = open_store(alone)
    with pair.begun(alone, session=session) as begun:
        store.upsert([record("k0", TEXT), record("new", TEXT)], connection=begun.connection)
        store.upsert([record("k1", TEXT, 128)], connection=begun.connection, model=SMALL)
        assert set(store.fetch(["k0", "k1", "new"], connection=begun.connection)) == {"k0", "k1", "new"}
        store.delete(["k2"], connection=begun.connection)
        assert begun.scalars("SELECT chunk_id FROM rag_chunks WHERE embedding_128 IS NOT NULL ORDER BY 1") == [
            "k0",
            "k1",
            "new",
        ]
        begun.roll_back()
    assert vector_of(engine, "k0") is None
    assert vector_of(engine, "k2", "embedding") is not None
    # Once it has the connection for itself, it looks, searches and notes itself.
    assert len(store.search(QUESTION, top_k=5)) == 5
    alone.dispose()


@pytest.mark.parametrize("pair", ["psycopg_async", "asyncpg"], indirect=True)
def test_a_search_that_is_cancelled_while_it_embeds_holds_no_connection(
    engine: sa.Engine, open_store: Callable[..., Any], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = sa.create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=2)
    store = open_store(alone)
    before = keys(store.search(QUESTION, top_k=5))
    embeds, ends = threading.Event(), threading.Event()
    embed_query = ModelEmbedder.embed_query

    def slowly(self: ModelEmbedder, text: str) -> Any:
        embeds.set()
        assert ends.wait(60)
        return embed_query(self, text)

    monkeypatch.setattr(ModelEmbedder, "embed_query", slowly)
    search = asyncio.run_coroutine_threadsafe(store._awaited.search(QUESTION, top_k=5), pair.loop._loop)
    assert embeds.wait(60)
    pool: Any = pair.engine(alone).pool
    assert pool.checkedout() == 0
    search.cancel()
    ends.set()
    assert keys(store.search(QUESTION, top_k=5)) == before
    assert pool.checkedout() == 0
    alone.dispose()


def slow_looks(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have every look at the registry take half a second of the server; the event is set when one is under way."""
    looking, models_of = threading.Event(), models.models_of

    def slowly(connection: sa.Connection, *arguments: Any) -> Any:
        looking.set()
        connection.execute(sa.text("SELECT pg_sleep(0.5)"))
        return models_of(connection, *arguments)

    monkeypatch.setattr(models, "models_of", slowly)
    return looking


@pytest.mark.parametrize("woken", [False, True], ids=["at first", "after a pause"])
def test_nobody_goes_by_what_is_not_known_yet_or_no_more_while_another_looks(
    engine: sa.Engine, store: Any, monkeypatch: pytest.MonkeyPatch, woken: bool
) -> None:
    fill_small(engine)
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.2 if woken else 60.0)
    if woken:
        store.search(QUESTION)
    switch(engine, SMALL)
    time.sleep(0.5 if woken else 0.0)
    expected = keys(store.query(embedder(128).embed([QUESTION])[0], top_k=5, model=SMALL)) if woken else None
    time.sleep(0.5 if woken else 0.0)
    looking, found = slow_looks(monkeypatch), list[list[str]]()
    first = threading.Thread(target=lambda: found.append(keys(store.search(QUESTION, top_k=5))))
    first.start()
    assert looking.wait(60)
    second = keys(store.search(QUESTION, top_k=5))
    first.join()
    assert found == [second]
    assert expected in (None, second)


def test_a_callers_old_snapshot_is_not_taken_for_what_is_registered_now(
    engine: sa.Engine, store: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_small(engine)
    monkeypatch.setattr(models, "LOOK_SECONDS", 60.0)
    with pair.begun(engine) as begun:
        begun._run(begun.connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")))
        assert begun.scalars("SELECT 1") == [1]
        switch(engine, SMALL)
        assert len(store.fetch(["k0"], connection=begun.connection)["k0"].vector) == 256
        assert len(store.fetch(["k0"])["k0"].vector) == 128


def test_a_model_that_is_registered_anew_is_asked_as_it_says_now(engine: sa.Engine, store: Any) -> None:
    text = "a text"
    store.upsert([record("k0", text)])
    assert_embedded(engine, "k0", text)
    execute(
        engine,
        f"""UPDATE embedding_models SET parameters = '{{"text_prefix": "passage: "}}'
                        WHERE model_name = '{SMALL}'""",
    )
    store.upsert([record("k0", text)])
    assert_embedded(engine, "k0", "passage: " + text)


@pytest.mark.usefixtures("own_model")
def test_a_model_that_the_application_alone_can_make_is_written_by_it(
    engine: sa.Engine, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store.upsert([record("k0", TEXT, 128)], model=SMALL)
    store.upsert([record("k0", TEXT)], model=LARGE)
    # The second write has the same text: what the application wrote for its own model stays.
    assert_embedded(engine, "k0", TEXT)
    assert_embedded(engine, "k0", TEXT, "embedding")
    store.upsert([record("k0", "another text")])
    assert vector_of(engine, "k0") is None
    store.upsert([record("k0", "another text", 128)])
    assert_embedded(engine, "k0", "another text")
    assert (store.models.missed, caplog.messages) == (0, [])


@pytest.mark.usefixtures("own_model")
def test_a_model_that_the_application_alone_can_make_is_searched_by_vector(engine: sa.Engine, store: Any) -> None:
    fill_small(engine)
    assert store.text_embedder(SMALL).model.name == LARGE
    switch(engine, SMALL)
    assert store.text_embedder() is None
    assert len(store.query(embedder(128).embed([QUESTION])[0], top_k=5)) == 5
    with pytest.raises(ConfigError, match=f"model {SMALL} has no provider that could embed a text"):
        store.search(QUESTION)


def test_a_model_may_be_named_before_any_is_registered(engine: sa.Engine, open_store: Callable[..., Any]) -> None:
    execute(engine, "DELETE FROM model_column")
    store = open_store(engine)
    store.upsert([record("k0", TEXT)], model=LARGE)
    assert execute(engine, "SELECT embedding_model FROM rag_chunks WHERE chunk_id = 'k0'") == [(LARGE,)]
    assert keys(store.query(embedder(256).embed([TEXT])[0], top_k=1, model=LARGE)) == ["k0"]
    declared = open_store(engine, StoreOptions(model=LARGE))
    with pytest.raises(ConfigError, match=f"of '{LARGE}' by EMBEDDING_MODEL, and model='other' is asked for"):
        declared.query(embedder(256).embed([TEXT])[0], model="other")


@pytest.mark.parametrize("used", [False, True], ids=["at first", "later"])
def test_a_model_that_is_retired_between_two_looks_fails_no_write(
    engine: sa.Engine, store: Any, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    fill_small(engine)
    monkeypatch.setattr(models, "LOOK_SECONDS", 60.0)
    # What loads the models has every use look again once it is done.
    store.count()
    while store.models._loading.locked():
        time.sleep(0.01)
    assert store.count() == len(TEXTS)
    if used:
        store.upsert([record("k0", TEXT)])
    drop_small(engine)
    if used:
        store.delete(["k3"])
        assert vector_of(engine, "k3", "embedding") is None
    else:
        store.upsert([record("k4", TEXT)])
        assert_embedded(engine, "k4", TEXT, "embedding")


def test_two_models_of_one_dimension_are_told_by_name(engine: sa.Engine, store: Any) -> None:
    add_column(engine, "prefixed", 256, "embedding_prefixed", text_prefix="passage: ")
    store.upsert([record("k0", TEXT)], model=LARGE)
    assert_embedded(engine, "k0", "passage: " + TEXT, "embedding_prefixed")
    switch(engine, "prefixed")
    with pytest.raises(ConfigError, match="both have 256 dimensions"):
        store.upsert([record("k0", TEXT)])


def test_a_role_that_cannot_read_the_registry_is_warned_once(
    engine: sa.Engine, open_store: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of what roles may do is in tests/migration/test_privileges.py."""
    models._warn_unreadable.cache_clear()
    role = "reads_its_table_alone"
    execute(engine, f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON rag_chunks TO {role}")
    try:
        named = sa.create_engine(engine.url.set(username=role))
        for store in (open_store(named), open_store(named)):
            with caplog.at_level(logging.WARNING):
                assert len(store.query(embedder(256).embed([QUESTION])[0], top_k=5)) == 5
                store.upsert([record("k0", TEXT)])
        assert [message for message in caplog.messages if "may not read which models rag_chunks has" in message] == [
            caplog.messages[0]
        ]
        named.dispose()
    finally:
        execute(engine, f"DROP OWNED BY {role}; DROP ROLE {role}")
