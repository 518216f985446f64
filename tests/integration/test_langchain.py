"""LangChain's own standard suite for vector stores, on each of our stores; and what it does not ask."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio
from databases import janitor
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, FilterError
from amprenta_vectors.integrations.async_langchain import AsyncAmprentaVectorStore
from amprenta_vectors.integrations.langchain import AmprentaVectorStore
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.stores.factory import get_async_vector_store, get_vector_store
from amprenta_vectors.systems.documents.assistant import get_document_store

DOCUMENT_DIMENSION = 256

DIMENSION = 8


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared(
    postgres_server: EmbeddedPostgres, upgraded_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A database and an index for all tests, which each uses a namespace of."""
    path = tmp_path_factory.mktemp("langchain") / "pinecone.db"
    with (
        janitor(postgres_server, "langchain", upgraded_template) as database,
        PineconeEmulator(path, name="test-index", dimension=DIMENSION, metric="cosine", api_key="test-key") as pinecone,
    ):
        yield {
            "database_url": postgres_server.url(database.dbname),
            "pinecone_api_key": "test-key",
            "pinecone_index_name": "test-index",
            "pinecone_controller_host": pinecone.host,
        }


@pytest.fixture(scope="module")
def documents(postgres_server: EmbeddedPostgres, documents_template: str) -> Iterator[str]:
    """The URL of a database for the documents of all tests, which each is a user of."""
    with janitor(postgres_server, "langchain_documents", documents_template) as database:
        yield postgres_server.url(database.dbname)


class Standard(VectorStoreIntegrationTests):
    backend: str
    mode: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def get_embeddings() -> Embeddings:
        return DeterministicFakeEmbedding(size=DIMENSION)

    @pytest.fixture
    def settings(self, shared: dict[str, Any]) -> Settings:
        """A namespace of the test's own, in which nothing is yet."""
        return Settings.load(**shared, namespace=f"test-{next(NUMBERS)}", vector_backend=self.backend, **self.mode)

    @pytest.fixture
    def vectorstore(self, settings: Settings) -> Iterator[VectorStore]:  # type: ignore[override]
        store = get_vector_store(settings)
        yield AmprentaVectorStore(self.get_embeddings(), store)
        store.close()


class TestPgVector(Standard):
    backend = "pgvector"

    def test_a_filter_chooses_among_documents(self, vectorstore: AmprentaVectorStore) -> None:
        texts = [f"text {i}" for i in range(20)]
        vectorstore.add_texts(texts, [{"number": i} for i in range(20)])
        found = vectorstore.similarity_search("text 3", k=4, filter={"number": {"$gte": 16}})
        assert {document.metadata["number"] for document in found} == {16, 17, 18, 19}
        ((document, score), *_) = vectorstore.similarity_search_with_score("text 3", k=2)
        assert (document.page_content, score) == ("text 3", pytest.approx(1.0))
        ((_, relevance), *_) = vectorstore.similarity_search_with_relevance_scores("text 3", k=2)
        assert relevance == pytest.approx(1.0)
        with pytest.raises(FilterError):
            vectorstore.similarity_search("text 3", filter={"number": {"$like": 1}})

    def test_documents_that_differ_are_chosen_by_marginal_relevance(self, vectorstore: AmprentaVectorStore) -> None:
        vectorstore.add_texts(["same", "same", "same", "other"])
        nearest = vectorstore.similarity_search("same", k=2)
        assert [document.page_content for document in nearest] == ["same", "same"]
        chosen = vectorstore.max_marginal_relevance_search("same", k=2, fetch_k=4, lambda_mult=0.1)
        assert [document.page_content for document in chosen] == ["same", "other"]
        by_vector = self.get_embeddings().embed_query("other")
        assert vectorstore.similarity_search_by_vector(by_vector, k=1)[0].page_content == "other"

    def test_from_texts_makes_a_store_with_texts(self, settings: Settings) -> None:
        store = get_vector_store(settings)
        made = AmprentaVectorStore.from_texts(
            ["a", "b"], self.get_embeddings(), [{"n": 1}, {"n": 2}], ids=["1", "2"], store=store
        )
        assert made.get_by_ids(["2", "3", "1"]) == [
            Document(id="2", page_content="b", metadata={"n": 2}),
            Document(id="1", page_content="a", metadata={"n": 1}),
        ]
        assert made.delete() is True
        assert store.count() == 2
        store.close()

    def test_as_many_ids_as_texts_are_asked_for(self, vectorstore: AmprentaVectorStore) -> None:
        with pytest.raises(ConfigError, match="2 texts and 1 ids"):
            vectorstore.add_texts(["a", "b"], ids=["1"])
        assert vectorstore.add_texts([]) == []


class TestAsyncPgVector(VectorStoreIntegrationTests):
    """The asynchronous half of the suite, on the store that awaits."""

    @property
    def has_sync(self) -> bool:
        return False

    @staticmethod
    def get_embeddings() -> Embeddings:
        return DeterministicFakeEmbedding(size=DIMENSION)

    @pytest_asyncio.fixture
    async def vectorstore(  # type: ignore[override]
        self, shared: dict[str, Any]
    ) -> AsyncIterator[AsyncAmprentaVectorStore]:
        settings = Settings.load(**shared, vector_backend="pgvector", namespace=f"test-{next(NUMBERS)}")
        store = AsyncAmprentaVectorStore(self.get_embeddings(), get_async_vector_store(settings))
        yield store
        await store.store.close()

    async def test_a_filter_and_relevance(self, vectorstore: AsyncAmprentaVectorStore) -> None:
        texts = [f"text {i}" for i in range(20)]
        await vectorstore.aadd_texts(texts, [{"number": i} for i in range(20)])
        found = await vectorstore.asimilarity_search("text 3", k=4, filter={"number": {"$gte": 16}})
        assert {document.metadata["number"] for document in found} == {16, 17, 18, 19}
        ((document, score), *_) = await vectorstore.asimilarity_search_with_score("text 3", k=2)
        assert (document.page_content, score) == ("text 3", pytest.approx(1.0))
        ((_, relevance), *_) = await vectorstore.asimilarity_search_with_relevance_scores("text 3", k=2)
        assert relevance == pytest.approx(1.0)
        with pytest.raises(FilterError):
            await vectorstore.asimilarity_search("text 3", filter={"number": {"$like": 1}})

    async def test_documents_that_differ_are_chosen(self, vectorstore: AsyncAmprentaVectorStore) -> None:
        await vectorstore.aadd_texts(["same", "same", "same", "other"])
        chosen = await vectorstore.amax_marginal_relevance_search("same", k=2, fetch_k=4, lambda_mult=0.1)
        assert [document.page_content for document in chosen] == ["same", "other"]
        by_vector = self.get_embeddings().embed_query("other")
        found = await vectorstore.asimilarity_search_by_vector(by_vector, k=1)
        assert found[0].page_content == "other"
        retrieved = await vectorstore.as_retriever(search_kwargs={"k": 1}).ainvoke("other")
        assert [document.page_content for document in retrieved] == ["other"]

    async def test_texts_and_ids_are_as_many_and_keys_are_kept(self, vectorstore: AsyncAmprentaVectorStore) -> None:
        with pytest.raises(ConfigError, match="2 texts and 1 ids"):
            await vectorstore.aadd_texts(["a", "b"], ids=["1"])
        assert await vectorstore.aadd_texts([]) == []
        made = await AsyncAmprentaVectorStore.afrom_texts(
            ["a", "b"], self.get_embeddings(), [{"n": 1}, {"n": 2}], ids=["1", "2"], store=vectorstore.store
        )
        assert await made.aget_by_ids(["2", "3", "1"]) == [
            Document(id="2", page_content="b", metadata={"n": 2}),
            Document(id="1", page_content="a", metadata={"n": 1}),
        ]
        assert await made.adelete() is True
        assert await made.store.count() == 2

    async def test_what_does_not_await_names_what_does(self, vectorstore: AsyncAmprentaVectorStore) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "aadd_texts": lambda: vectorstore.add_texts(["a"]),
            "adelete": lambda: vectorstore.delete(["a"]),
            "aget_by_ids": lambda: vectorstore.get_by_ids(["a"]),
            "asimilarity_search": lambda: vectorstore.similarity_search("a"),
            "asimilarity_search_with_score": lambda: vectorstore.similarity_search_with_score("a"),
            "afrom_texts": lambda: AsyncAmprentaVectorStore.from_texts(["a"], self.get_embeddings()),
        }
        for name, call in calls.items():
            with pytest.raises(ConfigError, match="only awaits") as caught:
                call()
            assert f"await store.{name}(" in caught.value.hint


class TestPinecone(Standard):
    backend = "pinecone"


class TestDual(Standard):
    backend = "pgvector"
    mode: ClassVar[dict[str, Any]] = {"vector_mode": "dual", "vector_secondary": "pinecone"}


class StandardOfDocuments(VectorStoreIntegrationTests):
    variables: ClassVar[dict[str, str]]

    @staticmethod
    def get_embeddings() -> Embeddings:
        return DeterministicFakeEmbedding(size=DOCUMENT_DIMENSION)

    @pytest.fixture
    def vectorstore(  # type: ignore[override]
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[VectorStore]:
        monkeypatch.setenv("SIMPLE_STORE_ROOT", str(tmp_path))
        if "pgvector" in self.variables.values():
            monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("documents"))
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
        store = get_document_store(embedding_model=self.get_embeddings(), user_id=f"user-{next(NUMBERS)}")
        yield store
        store.close()


class TestDocumentsInFiles(StandardOfDocuments):
    variables: ClassVar[dict[str, str]] = {"VECTOR_BACKEND": "simple"}


class TestDocumentsInPgVector(StandardOfDocuments):
    variables: ClassVar[dict[str, str]] = {
        "VECTOR_BACKEND": "pgvector",
        "VECTOR_STORE_ENCRYPTION_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    }


def test_the_default_store_is_that_of_the_environment(upgraded_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    monkeypatch.setenv("DATABASE_URL", upgraded_url)
    made = AmprentaVectorStore(DeterministicFakeEmbedding(size=DIMENSION))
    assert made.store.name == "pgvector"
    made.add_texts(["a"])
    assert made.similarity_search("a")[0].page_content == "a"
    made.store.close()
