"""What the tests of scopes share: every public method of a store, called with what is another's, and what it tells."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from amprenta_vectors.backends.simple.store import SimpleStore
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.errors import RowError
from amprenta_vectors.integrations.langchain import AmprentaVectorStore
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.shadow import ShadowStore
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record
from amprenta_vectors.systems.documents.assistant import AssistantStore, SimpleVectorStore
from amprenta_vectors.systems.documents.assistant import PgVectorStore as PgDocuments

SECRET = "what nobody else may see"
THEIRS = ["shared", "only theirs", "only theirs 2"]
MINE = ["shared", "only mine"]
TEXT = "the same text everywhere"

FILTERS: list[dict[str, Any] | None] = [
    None,
    {"secret": SECRET},
    {"$or": [{"namespace": "theirs"}, {"user_id": "bob"}, {"absent": {"$ne": 1}}]},
    {"namespace": {"$in": ["theirs", "mine"]}},
    {"absent": {"$nin": []}},
    {"text": {"$ne": ""}},
    {"') OR true --": {"$exists": False}},
]
_FIELDS = ["namespace", "user_id", "chunk_id", "id", "text", "secret", "n", "original_id", "'; --", '") OR (true', "%s"]
_TEXTS = ["theirs", "mine", "bob", SECRET, "shared", "", "' OR 1=1 --", "%(scope)s", ":namespace"]
_texts = st.sampled_from(_TEXTS)
_numbers = st.integers(-3, 3)
_operators: dict[str, st.SearchStrategy[Any]] = {
    "$eq": _texts,
    "$ne": _texts,
    "$gte": _numbers,
    "$lt": _numbers,
    "$in": st.lists(_texts, max_size=3),
    "$nin": st.lists(_texts, max_size=3),
    "$exists": st.booleans(),
}
_operands = st.one_of(_texts, _numbers, st.booleans(), st.fixed_dictionaries({}, optional=_operators))
hostile_filters = st.recursive(
    st.dictionaries(st.sampled_from(_FIELDS), _operands, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$and": st.lists(inner, min_size=1, max_size=2), "$or": st.lists(inner, min_size=1, max_size=2)}
    ),
    max_leaves=4,
)


@dataclass
class World:
    """A store confined to one scope, and what is in others.

    ``foreign`` reads all that is another's, byte by byte. ``theirs`` are ids and keys of it, and ``made_with`` what a
    store of the same scope is made with.
    """

    store: Any
    engine: sa.Engine
    dimension: int
    foreign: Callable[[], Any]
    theirs: Sequence[str] = tuple(THEIRS)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @property
    def near(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A vector of theirs: nothing is nearer to it than what must not be found."""
        return vector_of(0, self.dimension)

    def mine(self, key: str, number: int = 4) -> Record:
        """A row to write."""
        return record_of(key, number, self.dimension, "mine")

    def in_transaction(self, call: Callable[..., Any]) -> Any:
        """``call`` with the caller's own connection."""
        with self.engine.begin() as connection:
            return call(connection=connection)

    def ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A method's answer, and that of the one which repeats it asynchronously."""
        first = getattr(self.store, name)(*arguments, **options)
        return first, asyncio.run(getattr(self.store, f"a{name}")(*arguments, **options))


class Texts(Embeddings):
    """Every text is next to a vector of theirs."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return list((vector_of(0, self._dimension) + np.float32(len(text) * 1e-3)).tolist())


class TextsEmbedder:
    """The same as an embedder of ours."""

    def __init__(self, dimension: int) -> None:
        self.model = Model("m", dimension, "wordllama")
        self._texts = Texts(dimension)

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array(self._texts.embed_documents(list(texts)), np.float32)


def vector_of(number: int, dimension: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(number).standard_normal(dimension, dtype=np.float32)


def record_of(key: str, number: int, dimension: int, owner: str) -> Record:
    metadata = {"n": number, "secret": SECRET} if owner == "theirs" else {"n": number}
    return Record(key, vector_of(number, dimension), TEXT, metadata)


def public(kind: type) -> set[str]:
    """Methods and properties, inherited ones too; an asynchronous one goes by the name of the one it repeats."""
    names = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    return {name for name in names if not (name.startswith("a") and name[1:] in names)}


Case = Callable[[World, Any], Any]
"""Calls a method with what is theirs, and a filter; returns what it gave."""

WRITING = {"upsert", "upsert_possible", "delete", "add_texts", "add_documents", "from_texts", "from_documents"}

_OF_EVERY_STORE: dict[str, Case] = {
    "query": lambda world, where: world.store.query(world.near, top_k=100, filter=where),
    "fetch": lambda world, where: world.store.fetch(world.theirs),
    "upsert": lambda world, where: world.store.upsert([world.mine("shared"), world.mine("only theirs")]),
    "delete": lambda world, where: world.store.delete(world.theirs),
    "count": lambda world, where: world.store.count(),
    "name": lambda world, where: world.store.name,
    "distance": lambda world, where: world.store.distance,
    "close": lambda world, where: world.store.close(),
}
_OF_ADAPTERS: dict[str, Case] = {
    "embeddings": lambda world, where: world.store.embeddings,
    "store": lambda world, where: world.store.store.query(world.near, top_k=100, filter=where),
    "add_texts": lambda world, where: world.ask("add_texts", ["a"] * len(world.theirs), ids=list(world.theirs)),
    "add_documents": lambda world, where: world.ask(
        "add_documents", [Document(id=key, page_content="mine") for key in world.theirs]
    ),
    "from_texts": lambda world, where: world.ask(
        "from_texts", ["a", "b"], Texts(world.dimension), ids=list(world.theirs[:2]), **world.made_with
    ),
    "from_documents": lambda world, where: world.ask(
        "from_documents",
        [Document(id=key, page_content="a") for key in world.theirs],
        Texts(world.dimension),
        **world.made_with,
    ),
    "delete": lambda world, where: world.ask("delete", list(world.theirs)),
    "get_by_ids": lambda world, where: world.ask("get_by_ids", world.theirs),
    "similarity_search": lambda world, where: world.ask("similarity_search", "x", k=100, filter=where),
    "similarity_search_with_score": lambda world, where: world.ask(
        "similarity_search_with_score", "x", k=100, filter=where
    ),
    "similarity_search_with_relevance_scores": lambda world, where: world.ask(
        "similarity_search_with_relevance_scores", "x", k=100, filter=where
    ),
    "similarity_search_by_vector": lambda world, where: world.ask(
        "similarity_search_by_vector", world.near.tolist(), k=100, filter=where
    ),
    "max_marginal_relevance_search": lambda world, where: world.ask(
        "max_marginal_relevance_search", "x", k=100, fetch_k=100, filter=where
    ),
    "max_marginal_relevance_search_by_vector": lambda world, where: world.ask(
        "max_marginal_relevance_search_by_vector", world.near.tolist(), k=100, fetch_k=100, filter=where
    ),
    "search": lambda world, where: [
        world.ask("search", "x", way, k=100, filter=where) for way in ("similarity", "mmr")
    ],
    "as_retriever": lambda world, where: world.store.as_retriever(search_kwargs={"k": 100, "filter": where}).invoke(
        "x"
    ),
}
_OF_ASSISTANTS: dict[str, Case] = _OF_ADAPTERS | {
    "get_collection_stats": lambda world, where: world.store.get_collection_stats(),
    "close": lambda world, where: world.store.close(),
}

CASES: dict[type, dict[str, Case]] = {
    PgVectorStore: _OF_EVERY_STORE
    | {
        "query": lambda world, where: [
            world.store.query(world.near, top_k=100, filter=where, exact=exact) for exact in (True, False)
        ],
        "search": lambda world, where: [
            world.store.search("x", top_k=100, filter=where, exact=exact) for exact in (True, False)
        ],
        "model": lambda world, where: world.store.model,
        "text_embedder": lambda world, where: world.store.text_embedder(),
        "prepare": lambda world, where: world.store.prepare([world.mine("shared")]),
        "explain": lambda world, where: world.store.explain(world.near, top_k=100, filter=where),
        "scores": lambda world, where: world.store.scores(world.near, world.theirs),
        "sample_keys": lambda world, where: world.store.sample_keys(100),
        "sample": lambda world, where: world.store.sample(100),
        "stored_vector": lambda world, where: world.store.stored_vector(),
        "upsert": lambda world, where: (
            world.store.upsert([world.mine("shared")]),
            world.in_transaction(
                lambda connection: world.store.upsert([world.mine("only theirs")], connection=connection)
            ),
        ),
        "delete": lambda world, where: (
            world.store.delete(world.theirs[:1]),
            world.in_transaction(lambda connection: world.store.delete(world.theirs[1:], connection=connection)),
        ),
        "upsert_possible": lambda world, where: world.store.upsert_possible(
            [world.mine("shared"), world.mine("only theirs")]
        ),
        "open_outbox": lambda world, where: _outbox(world),
    },
    DualStore: _OF_EVERY_STORE
    | {
        "breaker": lambda world, where: world.store.breaker.state,
        "upsert": lambda world, where: (
            world.store.upsert([world.mine("only theirs")]),
            world.in_transaction(lambda connection: world.store.upsert([world.mine("shared")], connection=connection)),
        ),
        "delete": lambda world, where: (
            world.store.delete(world.theirs[:1]),
            world.in_transaction(lambda connection: world.store.delete(world.theirs[1:], connection=connection)),
        ),
    },
    FallbackStore: _OF_EVERY_STORE,
    HybridStore: _OF_EVERY_STORE,
    ShadowStore: _OF_EVERY_STORE | {"dropped": lambda world, where: world.store.dropped},
    SimpleStore: _OF_EVERY_STORE
    | {
        "stored_vector": lambda world, where: world.store.stored_vector(),
        "upsert": lambda world, where: [_refused(world, key) for key in world.theirs],
    },
    AmprentaVectorStore: _OF_ADAPTERS,
    PgDocuments: _OF_ASSISTANTS,
    SimpleVectorStore: _OF_ASSISTANTS,
    AssistantStore: _OF_ASSISTANTS,
}


def _refused(world: World, key: str) -> None:
    """A key that is made of another user and id is of no row here, whatever its metadata says."""
    for metadata in ({}, {"original_id": "only theirs"}, {"original_id": key}):
        with pytest.raises(RowError):
            world.store.upsert([Record(key, world.near, TEXT, metadata)])


def _outbox(world: World) -> Any:
    """What the outbox claims and says of a deletion in the other namespace."""
    others = PgVectorStore(world.engine, world.store._table, {"namespace": "theirs"}).open_outbox()
    with others.transaction() as connection:
        others.intend_deletion(connection, ["only theirs"])
    mine = world.store.open_outbox()
    with mine.transaction() as connection:
        moment = connection.scalar(sa.text("SELECT clock_timestamp() - interval '1 hour'"))
        deleted = mine.deleted_since(connection, world.theirs, moment)
    return mine.claim(100), deleted, mine.claim(100, keys=world.theirs, at_once=True)


def leaves(answer: Any) -> Iterator[Any]:
    """All that an answer is made of."""
    if dataclasses.is_dataclass(answer):
        yield from leaves(dataclasses.asdict(answer))  # type: ignore[arg-type]
    elif isinstance(answer, Document):
        yield from leaves(answer.model_dump())
    elif isinstance(answer, Mapping):
        yield from leaves([*answer.keys(), *answer.values()])
    elif isinstance(answer, list | tuple | set | frozenset):
        for item in answer:
            yield from leaves(item)
    elif isinstance(answer, np.ndarray):
        yield from (row.tobytes() for row in np.atleast_2d(answer))
    else:
        yield answer


def assert_tells_nothing(world: World, method: str, answer: Any) -> None:
    """Nothing of an answer is theirs: neither what they keep secret, nor a vector, nor an id that is only theirs."""
    vectors = {vector_of(number, world.dimension).tobytes() for number in range(len(THEIRS))}
    forbidden = {SECRET, *THEIRS[1:], *vectors}
    assert not [leaf for leaf in leaves(answer) if leaf in forbidden], method
