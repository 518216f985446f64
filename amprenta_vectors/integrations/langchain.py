"""Any of our stores as a LangChain vector store. Needs the extra ``langchain``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.extras import needing
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore
from amprenta_vectors.stores.texts import TextStore

with needing("langchain"):
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore as LangChainVectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance


class AmprentaVectorStore(LangChainVectorStore):
    """LangChain's interface to ``store``, by default to the store that the environment names.

    ``filter`` is a metadata filter in Pinecone's language. Scores are the store's own: under cosine and inner product
    higher is nearer. The asynchronous methods run these in a thread; `AsyncAmprentaVectorStore` awaits.

    Where models are registered for the store's table, texts are embedded by the one that is searched; by ``embedding``
    if ``model``, the name of its model, is that one, or if nothing but the application can embed for that one. Vectors
    that are given are of ``model``.
    """

    def __init__(self, embedding: Embeddings, store: VectorStore | None = None, *, model: str | None = None) -> None:
        self._embedding = embedding
        own = store or get_vector_store()
        self._texts = TextStore(own, embedding.embed_documents, embedding.embed_query, model)

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that turn texts into vectors."""
        return self._embedding

    @property
    def store(self) -> VectorStore:
        """The store behind this one."""
        return self._texts.store

    @classmethod
    def from_texts(
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
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **_: Any,
    ) -> list[str]:
        """Insert or replace texts; return their ids."""
        return self._texts.add(list(texts), metadatas, ids)

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        """Delete by id; an absent id is no error. Without ids nothing is deleted."""
        self.store.delete(ids or [])
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that exist, in the order of ``ids``."""
        found = self.store.fetch(ids)
        return [to_document(found[id_]) for id_ in ids if id_ in found]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **_: Any) -> list[Document]:
        """Return the ``k`` nearest documents."""
        return [to_document(hit) for hit in self._texts.search(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        """Return the ``k`` nearest documents with their scores."""
        return [(to_document(hit), hit.score) for hit in self._texts.search(query, k, filter)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **_: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        found = self.store.query(embedding, top_k=k, filter=filter, **self._texts.named())
        return [to_document(hit) for hit in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **_: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` nearest documents, chosen to differ from each other."""
        vector, hits, named = self._texts.search_with_vector(query, max(k, fetch_k), filter)
        found = self.store.fetch([hit.key for hit in hits], **named)
        return differing(vector, hits, found, lambda_mult, k)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **_: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` documents nearest to a vector, chosen to differ from each other."""
        named = self._texts.named()
        hits = self.store.query(embedding, top_k=max(k, fetch_k), filter=filter, **named)
        return differing(embedding, hits, self.store.fetch([hit.key for hit in hits], **named), lambda_mult, k)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return a function to scores from 0 to 1."""
        return to_relevance(self.store.distance)


class EmbedderEmbeddings(Embeddings):
    """One of our embedders as LangChain's embeddings."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text, in order."""
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text."""
        return self.embed_documents([text])[0]


def differing(
    embedding: ArrayLike, hits: Sequence[Hit], found: Mapping[str, Record], lambda_mult: float, k: int
) -> list[Document]:
    """Return ``k`` of the hits that differ from each other, by the vectors ``found``; those gone meanwhile are not."""
    present = [hit for hit in hits if hit.key in found]
    vectors = [found[hit.key].vector.tolist() for hit in present]
    chosen = maximal_marginal_relevance(np.asarray(embedding, dtype=np.float32), vectors, lambda_mult, k)
    return [to_document(present[i]) for i in chosen]


def to_relevance(distance: Distance) -> Callable[[float], float]:
    """Return a function to scores from 0 to 1: from -1..1 under cosine, 1 / (1 + d) of a squared distance d²."""
    if distance == "l2":
        return lambda score: 1 / (1 + max(score, 0.0) ** 0.5)
    return lambda score: (1 + score) / 2


def to_document(found: Hit | Record) -> Document:
    """Return a row as LangChain's document."""
    return Document(id=found.key, page_content=found.text or "", metadata=dict(found.metadata))
