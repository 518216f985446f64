"""The Pinecone store through the real SDK: the same promises as the pgvector store's, and Pinecone's limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pinecone import Pinecone

from amprenta_vectors.backends.pinecone.client import PineconeIndex
from amprenta_vectors.backends.pinecone.store import PineconeStore
from amprenta_vectors.errors import (
    ConfigError,
    CredentialsRefused,
    DimensionMismatch,
    FilterError,
    RowError,
    SchemaMismatch,
    SourceError,
    SourceNotFound,
)
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.pinecone.faults import Fault
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record, VectorStore

API_KEY = "test-key"
DIMENSION = 8

Start = Callable[..., Any]
ODD_KEYS = [
    "it's",
    '"quoted"',
    "100% %s %(x)s",
    "back\\slash",
    "a&ids=b",
    "a b+c#d?e",
    "/../x",
    "x" * 512,
    "[1,2]",
    ",",
]


def open_store(emulator: Any, namespace: str = "a", **changes: Any) -> PineconeStore:
    described = {"dimension": DIMENSION, "metric": "cosine"} | changes
    rest = Pinecone(api_key=changes.pop("api_key", API_KEY)).index(host=emulator.host)
    index = PineconeIndex(
        name="test-index",
        host=emulator.host,
        grpc_host=emulator.grpc_host,
        dimension=described["dimension"],
        metric=described["metric"],
        model=None,
        api_key=API_KEY,
        rest=rest,
    )
    return PineconeStore(index, namespace, "text")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def unit(random: np.random.Generator, rows: int, dimension: int = DIMENSION) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = random.normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_record_comes_back_as_it_went_in(emulator: Start, random: np.random.Generator) -> None:
    store = open_store(emulator())
    vectors = random.normal(size=(3, DIMENSION)).astype(np.float32)
    metadata = {"genre": ["a", "b"], "year": 1990.5, "flag": True}
    records = [Record("x", vectors[0], "text", metadata), Record("y", vectors[1]), Record("z", vectors[2], "", {})]
    assert store.upsert(records) == 3
    found = store.fetch(["x", "y", "z", "absent", "x"])
    assert sorted(found) == ["x", "y", "z"]
    for record in records:
        assert found[record.key].vector.tobytes() == record.vector.tobytes()
        assert (found[record.key].text, found[record.key].metadata) == (record.text, record.metadata)
    (hit,) = store.query(vectors[0], top_k=1)
    assert (hit.key, hit.text, hit.metadata, hit.score) == ("x", "text", metadata, pytest.approx(1))
    assert store.count() == 3
    store.delete(["x", "absent"])
    assert sorted(store.fetch(["x", "y", "z"])) == ["y", "z"]
    store.close()


def test_a_text_field_that_is_no_text_stays_metadata(emulator: Start, random: np.random.Generator) -> None:
    running = emulator()
    running.load("a", ["k"], unit(random, 1), [{"text": ["a", "b"]}])
    record = open_store(running).fetch(["k"])["k"]
    assert (record.text, record.metadata) == (None, {"text": ["a", "b"]})


def test_keys_may_be_any_ascii(emulator: Start, random: np.random.Generator) -> None:
    store = open_store(emulator())
    store.upsert([Record(key, row, key, {key: key}) for key, row in zip(ODD_KEYS, unit(random, 10), strict=True)])
    assert {key: record.text for key, record in store.fetch(ODD_KEYS).items()} == {key: key for key in ODD_KEYS}
    store.delete(ODD_KEYS)
    assert store.fetch(ODD_KEYS) == {}


def test_no_method_reads_or_writes_another_namespace(emulator: Start, random: np.random.Generator) -> None:
    running = emulator()
    mine, theirs = open_store(running, "mine"), open_store(running, "theirs")
    vector, other = unit(random, 2)
    theirs.upsert([Record("shared", vector, "theirs", {"secret": 1}), Record("only", vector)])
    assert mine.query(vector) == []
    assert mine.query(vector, filter={"x": {"$ne": 1}}) == []
    assert mine.fetch(["shared", "only"]) == {}
    assert mine.count() == 0
    mine.delete(["shared", "only"])
    mine.upsert([Record("shared", other, "mine")])
    assert theirs.fetch(["shared"])["shared"].text == "theirs"
    assert (mine.count(), theirs.count()) == (1, 2)


def test_the_default_namespace_goes_by_both_its_names(emulator: Start, random: np.random.Generator) -> None:
    running = emulator()
    open_store(running, "").upsert([Record("k", unit(random, 1)[0])])
    named = open_store(running, "__default__")
    assert list(named.fetch(["k"])) == ["k"]
    assert named.count() == 1


def test_requests_stay_within_pinecones_limits(emulator: Start, random: np.random.Generator) -> None:
    running = emulator(dimension=200)
    store = open_store(running, dimension=200)
    keys = [f"{i:04}" + "%" * 500 for i in range(1500)]
    text = "ж" * 2000
    records = [Record(key, row, text) for key, row in zip(keys, unit(random, 1500, 200), strict=True)]
    assert store.upsert(records) == 1500
    assert store.count() == 1500
    assert sorted(store.fetch(keys)) == keys
    store.delete(keys)
    assert store.count() == 0


def test_nothing_to_do_asks_for_nothing(emulator: Start) -> None:
    store = open_store(emulator())
    assert store.upsert([]) == 0
    assert store.fetch([]) == {}
    store.delete([])
    assert store.count() == 0


@pytest.mark.parametrize(
    ("metric", "expected"), [("cosine", [1.0, 0.6]), ("dotproduct", [50.0, 6.0]), ("euclidean", [25.0, 17.0])]
)
def test_scores_are_those_of_the_pgvector_store(
    emulator: Start, engine: sa.Engine, metric: str, expected: list[float]
) -> None:
    distance = {"cosine": "cosine", "dotproduct": "ip", "euclidean": "l2"}[metric]
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE rag_chunks ALTER embedding TYPE vector(2)"))
    stores: list[VectorStore] = [
        open_store(emulator(dimension=2, metric=metric), dimension=2, metric=metric),
        PgVectorStore(engine, RAG_CHUNKS.with_columns(distance=distance), {"namespace": "a"}),
    ]
    for store in stores:
        store.upsert([Record("far", np.array([6, 8], np.float32)), Record("near", np.array([2, 0], np.float32))])
        hits = {hit.key: hit.score for hit in store.query([3, 4])}
        assert [hits["far"], hits["near"]] == pytest.approx(expected)
        assert next(iter(hits)) == ("near" if metric == "euclidean" else "far")


def test_both_stores_give_the_same_hits_to_the_same_filters(
    emulator: Start, engine: sa.Engine, random: np.random.Generator
) -> None:
    records = [
        Record(f"k{i}", row, f"text {i % 5}", metadata)
        for i, row in enumerate(unit(random, 120))
        for metadata in [
            [
                {"genre": "drama", "year": 1990 + i % 9},
                {"genre": ["drama", "comedy"], "flag": i % 2 == 0},
                {"year": str(i), "genre": ""},
                {},
            ][i % 4]
        ]
    ]
    pinecone, pgvector = open_store(emulator()), PgVectorStore(engine, RAG_CHUNKS, {"namespace": "a"})
    stores: list[VectorStore] = [pinecone, pgvector]
    for store in stores:
        store.upsert(records)
    for asked in (
        None,
        {},
        {"genre": "drama"},
        {"genre": {"$ne": "comedy"}},
        {"year": {"$gte": 1992, "$lt": 1996}},
        {"year": {"$in": [1990, 1995]}},
        {"genre": {"$nin": ["drama", ""]}},
        {"$or": [{"flag": True}, {"$and": [{"year": {"$gt": 1}}, {"genre": "drama"}]}]},
        {"flag": {"$exists": False}},
        {"text": "text 3"},
        {"text": {"$in": ["text 1", "text 2"]}, "genre": {"$exists": True}},
    ):
        query = unit(random, 1)[0]
        found = [[(hit.key, hit.text, hit.metadata) for hit in s.query(query, top_k=25, filter=asked)] for s in stores]
        assert found[0], asked
        assert found[0] == found[1], asked


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.query([1.0] * DIMENSION, filter={"a": {"$regex": "x"}}), FilterError),
        (lambda store: store.query([1.0] * DIMENSION, filter={"a": None}), FilterError),
        (lambda store: store.query([1.0] * 7), DimensionMismatch),
        (lambda store: store.query([math.nan] * DIMENSION), ConfigError),
        (lambda store: store.query([0.0] * DIMENSION), ConfigError),
        (lambda store: store.query([1.0] * DIMENSION, top_k=10_001), ConfigError),
        (lambda store: store.upsert([Record("k", np.ones(7, np.float32))]), RowError),
        (lambda store: store.upsert([Record("k", np.full(DIMENSION, np.inf, np.float32))]), RowError),
        (lambda store: store.upsert([Record("k", np.zeros(DIMENSION, np.float32))]), RowError),
    ],
)
def test_both_stores_refuse_the_same_with_the_same_error(
    emulator: Start, engine: sa.Engine, call: Callable[[VectorStore], Any], error: type[Exception]
) -> None:
    running = emulator()
    messages = []
    for store in (open_store(running), PgVectorStore(engine, RAG_CHUNKS, {"namespace": "a"})):
        with pytest.raises(error) as caught:
            call(store)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_deletion_goes_on_where_its_namespace_was_made_anew_meanwhile(
    emulator: Start, random: np.random.Generator
) -> None:
    running = emulator()
    store = open_store(running)
    store.upsert([Record(key, vector) for key, vector in zip("ab", unit(random, 2), strict=True)])
    running.faults.set("delete", Fault(status=404, times=2))
    store.delete(["a"])
    assert list(store.fetch(["a", "b"])) == ["b"]
    running.faults.set("delete", Fault(status=404))
    with pytest.raises(SourceNotFound):
        store.delete(["b"])


def test_what_the_service_refuses_is_an_error_of_ours(emulator: Start, random: np.random.Generator) -> None:
    running = emulator()
    (vector,) = unit(random, 1)
    with pytest.raises(SourceError, match="writing to index 'test-index'"):
        open_store(running).upsert([Record("naïve", vector)])
    with pytest.raises(CredentialsRefused):
        open_store(running, api_key="wrong").query(vector)
    with pytest.raises(SchemaMismatch, match="no dense vectors"):
        open_store(running, dimension=None)


def test_a_bad_record_is_refused_before_anything_is_sent(emulator: Start, random: np.random.Generator) -> None:
    store = open_store(emulator())
    with pytest.raises(RowError) as caught:
        store.upsert([Record("a", unit(random, 1)[0]), Record("b", np.ones(9, np.float32))])
    assert (caught.value.key, caught.value.reason) == ("b", Reason.DIMENSION)
    assert store.count() == 0
