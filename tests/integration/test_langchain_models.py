"""LangChain's interface to a table with two models, awaited and not: which embedder texts are embedded by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from embedded_rows import LARGE, SMALL, embedder
from langchain_core.embeddings import Embeddings
from model_rows import add_two, fill_small, switch
from store_pairs import Loop

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.integrations.async_langchain import AsyncAmprentaVectorStore
from amprenta_vectors.integrations.langchain import AmprentaVectorStore
from amprenta_vectors.stores.factory import get_async_vector_store, get_vector_store
from amprenta_vectors.stores.pgvector import models

QUESTION = "how is an exception handled in a try statement"
TEXT = "a generator is resumed by its next method"


class Counted(Embeddings):
    """The application's own embeddings, of one model; counts the texts that it is asked for."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.texts = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        vectors: list[list[float]] = embedder(self.dimension).embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Awaiting:
    """The methods of the asynchronous one under the names of the other."""

    def __init__(self, store: AsyncAmprentaVectorStore, loop: Loop) -> None:
        self._store = store
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self._loop.run(getattr(self._store, f"a{name}")(*given, **named))


@pytest.fixture
def engine(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """A table whose rows have the vectors of two models; the larger one is searched."""
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.0)
    made = create_engine(Settings.load(database_url=embedded_url))
    add_two(made)
    fill_small(made)
    yield made
    made.dispose()


@pytest.fixture(params=["awaited", "not awaited"])
def open_store(request: pytest.FixtureRequest, embedded_url: str) -> Iterator[Callable[..., Any]]:
    """A function that opens the store, by the embeddings and the name of their model."""
    settings = Settings.load(database_url=embedded_url, vector_backend="pgvector")
    with closing(Loop()) as loop:
        if request.param == "awaited":
            awaited = get_async_vector_store(settings)
            yield lambda embedding, **named: Awaiting(AsyncAmprentaVectorStore(embedding, awaited, **named), loop)
            loop.run(awaited.close())
        else:
            with closing(get_vector_store(settings)) as store:
                yield lambda embedding, **named: AmprentaVectorStore(embedding, store, **named)


def found_by(engine: sa.Engine, column: str, dimension: int) -> list[str]:
    """Return the keys that lie nearest to the question by one of the models."""
    nearest = f"SELECT chunk_id FROM rag_chunks ORDER BY {column} <=> CAST(:asked AS vector) LIMIT 5"
    asked = str(embedder(dimension).embed([QUESTION])[0].tolist())
    with engine.connect() as connection:
        return list(connection.execute(sa.text(nearest), {"asked": asked}).scalars())


def vectors_of(engine: sa.Engine, key: str) -> tuple[Any, Any]:
    with engine.connect() as connection:
        columns = "CAST(embedding AS text) AS large, CAST(embedding_128 AS text) AS small"
        row = connection.execute(sa.text(f"SELECT {columns} FROM rag_chunks WHERE chunk_id = :key"), {"key": key}).one()
    large, small = (None if text is None else np.array(text.strip("[]").split(","), np.float32) for text in row)
    return large, small


def assert_of_both(engine: sa.Engine, key: str, text: str) -> None:
    for found, dimension in zip(vectors_of(engine, key), (256, 128), strict=True):
        np.testing.assert_allclose(found, embedder(dimension).embed([text])[0], atol=1e-6)


def searches(store: Any) -> list[list[str]]:
    """Return the ids that each way to search by a text finds, the first of which the last is sure to have."""
    return [
        [document.id for document in store.similarity_search(QUESTION, k=5)],
        [document.id for document, _ in store.similarity_search_with_score(QUESTION, k=5)],
        [document.id for document in store.max_marginal_relevance_search(QUESTION, k=5, fetch_k=5, lambda_mult=1.0)],
    ]


def test_texts_are_added_and_searched_by_the_model_that_is_searched(
    engine: sa.Engine, open_store: Callable[..., Any]
) -> None:
    own = Counted(256)
    store = open_store(own)
    assert searches(store) == [found_by(engine, "embedding", 256)] * 3
    assert store.add_texts([TEXT], ids=["before"]) == ["before"]
    switch(engine, SMALL)
    assert searches(store) == [found_by(engine, "embedding_128", 128)] * 3
    store.add_texts([TEXT], ids=["after"])
    for key in ("before", "after"):
        assert_of_both(engine, key, TEXT)
    # Nothing says that they are of a model that is registered.
    assert own.texts == 0


def test_the_applications_embeddings_are_used_while_their_model_is_searched(
    engine: sa.Engine, open_store: Callable[..., Any]
) -> None:
    own = Counted(256)
    store = open_store(own, model=LARGE)
    assert searches(store) == [found_by(engine, "embedding", 256)] * 3
    store.add_texts([TEXT], ids=["before"])
    assert own.texts == 4
    switch(engine, SMALL)
    assert searches(store) == [found_by(engine, "embedding_128", 128)] * 3
    store.add_texts([TEXT], ids=["after"])
    assert own.texts == 4
    for key in ("before", "after"):
        assert_of_both(engine, key, TEXT)


def test_the_applications_embeddings_are_used_where_nobody_else_can_embed(
    engine: sa.Engine, open_store: Callable[..., Any]
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE embedding_models SET provider = NULL WHERE model_name = '{SMALL}'"))
    switch(engine, SMALL)
    own = Counted(128)
    store = open_store(own, model=SMALL)
    assert searches(store) == [found_by(engine, "embedding_128", 128)] * 3
    store.add_texts([TEXT], ids=["new"])
    assert own.texts == 4
    assert_of_both(engine, "new", TEXT)


def test_the_applications_embeddings_search_their_own_column_where_nobody_can_embed_for_the_one_that_is_searched(
    engine: sa.Engine, open_store: Callable[..., Any]
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE embedding_models SET provider = NULL WHERE model_name = '{SMALL}'"))
    switch(engine, SMALL)
    assert searches(open_store(Counted(256), model=LARGE)) == [found_by(engine, "embedding", 256)] * 3


def test_a_vector_of_two_models_of_one_dimension_is_of_the_model_that_the_application_names(
    engine: sa.Engine, open_store: Callable[..., Any]
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE embedding_models SET dimension = 256, provider = NULL WHERE dimension = 128")
        )
    switch(engine, SMALL)
    switch(engine, LARGE)
    store, asked = open_store(Counted(256), model=LARGE), embedder(256).embed([QUESTION])[0].tolist()
    expected = found_by(engine, "embedding", 256)
    assert [document.id for document in store.similarity_search_by_vector(asked, k=5)] == expected
    chosen = store.max_marginal_relevance_search_by_vector(asked, k=5, fetch_k=5, lambda_mult=1.0)
    assert [document.id for document in chosen] == expected


def test_the_model_may_be_named_before_it_is_registered(engine: sa.Engine, open_store: Callable[..., Any]) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM model_column"))
    own = Counted(256)
    store = open_store(own, model=LARGE)
    assert searches(store) == [found_by(engine, "embedding", 256)] * 3
    assert store.add_texts([TEXT], ids=["new"]) == ["new"]
    assert own.texts == 4


def test_texts_of_several_tasks_are_added_while_queries_are_switched(engine: sa.Engine, embedded_url: str) -> None:
    """Each text is embedded and written by one model, whatever is switched meanwhile."""

    async def run() -> None:
        store = get_async_vector_store(Settings.load(database_url=embedded_url, vector_backend="pgvector"))
        chain = AsyncAmprentaVectorStore(Counted(256), store)
        adding = [chain.aadd_texts([f"{TEXT} {number}"], ids=[f"n{number}"]) for number in range(20)]
        switching = asyncio.to_thread(lambda: [switch(engine, name) for name in (SMALL, LARGE) * 3])
        await asyncio.gather(*adding, switching)
        await store.close()

    asyncio.run(run())
    for number in range(20):
        assert_of_both(engine, f"n{number}", f"{TEXT} {number}")
