"""The asynchronous pgvector store as a LangChain vector store. Needs the extras ``langchain`` and ``async``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Self

from numpy.typing import ArrayLike

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.extras import needing
from amprenta_vectors.integrations.langchain import differing, to_document, to_relevance
from amprenta_vectors.stores.factory import get_async_vector_store
from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit
from amprenta_vectors.stores.texts import to_keys, to_records

with needing("langchain"):
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore as LangChainVectorStore


class AsyncAmprentaVectorStore(LangChainVectorStore):
    """LangChain's asynchronous interface to ``store``, by default to the one that the environment names.

    ``filter`` is a metadata filter in Pinecone's language. Scores are the store's own: under cosine and inner product
    higher is nearer. LangChain's methods that do not await raise `ConfigError`: `AmprentaVectorStore` has them. Which
    model embeds texts is as `AmprentaVectorStore` says.
    """

    def __init__(
        self, embedding: Embeddings, store: AsyncPgVectorStore | None = None, *, model: str | None = None
    ) -> None:
        self._embedding = embedding
        self._model = model
        self.store = store or get_async_vector_store()

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that turn texts into vectors."""
        return self._embedding

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Return a store with ``texts`` added to it; ``options`` are those of the class."""
        made = cls(embedding, **options)
        await made.aadd_texts(texts, metadatas, ids=ids)
        return made

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **_: Any,
    ) -> list[str]:
        """Insert or replace texts; return their ids."""
        texts = list(texts)
        keys = to_keys(texts, metadatas, ids)
        if texts:
            embedder = await self.store.text_embedder(self._model)
            if embedder is None:
                vectors: ArrayLike = await self._embedding.aembed_documents(texts)
            else:
                vectors = await asyncio.to_thread(embedder.embed, texts)
            name = self._model if embedder is None else embedder.model.name
            await self.store.upsert(to_records(keys, vectors, texts, metadatas), model=name)
        return keys

    async def aadd_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Insert or replace documents; return their ids, the documents' own where they have one."""
        if "ids" not in options and any(document.id for document in documents):
            options["ids"] = [document.id for document in documents]
        texts = [document.page_content for document in documents]
        return await self.aadd_texts(texts, [document.metadata for document in documents], **options)

    async def adelete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        """Delete by id; an absent id is no error. Without ids nothing is deleted."""
        await self.store.delete(ids or [])
        return True

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that exist, in the order of ``ids``."""
        found = await self.store.fetch(ids)
        return [to_document(found[id_]) for id_ in ids if id_ in found]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **_: Any
    ) -> list[Document]:
        """Return the ``k`` nearest documents."""
        return [to_document(hit) for hit in await self._search(query, k, filter)]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        """Return the ``k`` nearest documents with their scores."""
        return [(to_document(hit), hit.score) for hit in await self._search(query, k, filter)]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **_: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        hits = await self.store.query(embedding, top_k=k, filter=filter, model=self._model)
        return [to_document(hit) for hit in hits]

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **_: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` nearest documents, chosen to differ from each other."""
        vector, name = await self._embed(query)
        hits = await self.store.query(vector, top_k=max(k, fetch_k), filter=filter, model=name)
        return differing(vector, hits, await self.store.fetch([hit.key for hit in hits], model=name), lambda_mult, k)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **_: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` documents nearest to a vector, chosen to differ from each other."""
        hits = await self.store.query(embedding, top_k=max(k, fetch_k), filter=filter, model=self._model)
        found = await self.store.fetch([hit.key for hit in hits], model=self._model)
        return differing(embedding, hits, found, lambda_mult, k)

    async def _search(self, query: str, k: int, filter: Filter | None) -> list[Hit]:
        vector, name = await self._embed(query)
        return await self.store.query(vector, top_k=k, filter=filter, model=name)

    async def _embed(self, query: str) -> tuple[ArrayLike, str | None]:
        """Return the vector of a query, and the model that made it if that is known."""
        embedder = await self.store.text_embedder(self._model)
        if embedder is None:
            return await self._embedding.aembed_query(query), self._model
        return await asyncio.to_thread(embedder.embed_query, query), embedder.model.name

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return a function to scores from 0 to 1."""
        return to_relevance(self.store.distance)

    def add_texts(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("aadd_texts")

    def delete(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("adelete")

    def get_by_ids(self, *_: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("aget_by_ids")

    def similarity_search(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("asimilarity_search")

    def similarity_search_with_score(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("asimilarity_search_with_score")

    @classmethod
    def from_texts(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise `ConfigError`."""
        raise _only_awaited("afrom_texts")


def _only_awaited(method: str) -> ConfigError:
    return ConfigError(
        "this vector store only awaits", hint=f"await store.{method}(…), or AmprentaVectorStore of the same settings"
    )
