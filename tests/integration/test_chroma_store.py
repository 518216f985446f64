"""A real Chroma as a store: the same answers as every other, whatever Chroma itself can say or find."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute, to_vectors
from chroma_tools import ChromaServer, fill
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_filters_sql import FIELDS, NUMBERS, TEXTS, filters

from amprenta_vectors.backends.chroma.store import ChromaStore
from amprenta_vectors.backends.chroma.where import to_where
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import (
    ConfigError,
    DimensionMismatch,
    FilterError,
    MissingExtra,
    RowError,
    SourceNotFound,
    TransientError,
)
from amprenta_vectors.stores.factory import get_vector_store, open_chroma_store, open_pgvector_store
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.protocol import Record, VectorStore

VECTORS = to_vectors(40, seed=7)
RECORDS = [Record(f"k{i:02d}", vector, f"text {i}", {"even": i % 2 == 0, "n": i}) for i, vector in enumerate(VECTORS)]
QUERY = VECTORS[0]
UUIDS = [str(uuid5(UUID(int=7), str(number))) for number in range(12)]

Open = Callable[..., ChromaStore]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vector_db"


@pytest.fixture
def opened(folder: Path) -> Iterator[Open]:
    """A function that opens a collection, made where it is not there, as a store; all are closed after the test."""
    stores = []

    def open_store(*, space: str = "cosine", **more: Any) -> ChromaStore:
        if not folder.exists():
            fill(folder, [], to_vectors(0), space=space)
        stores.append(open_chroma_store(Settings.load(chroma_path=folder, **more)))
        assert isinstance(stores[-1], ChromaStore)
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def keys(store: VectorStore, **options: Any) -> list[str]:
    return [hit.key for hit in store.query(QUERY, **options)]


def test_never_more_are_asked_for_than_chroma_can_give(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    store.upsert(RECORDS)
    asked, query = list[int](), store._collection.handle.query

    def count(**options: Any) -> Any:
        asked.append(options["n_results"])
        return query(**options)

    monkeypatch.setattr(store._collection.handle, "query", count)
    assert len(keys(store, top_k=10_000, filter={"even": True})) == 20
    assert asked == [10_000]


def measure(distance: str, vector: Any) -> float:
    """A score as every store gives it."""
    if distance == "l2":
        return float(((vector - QUERY) ** 2).sum())
    scale = np.linalg.norm(vector) * np.linalg.norm(QUERY) if distance == "cosine" else 1.0
    return float(vector @ QUERY / scale)


def ranked(distance: str, records: list[Record]) -> list[str]:
    sign = 1 if distance == "l2" else -1
    return [record.key for record in sorted(records, key=lambda record: sign * measure(distance, record.vector))]


# Reading and writing.


@pytest.mark.parametrize("distance", ["cosine", "l2", "ip"])
def test_records_come_back_and_the_nearest_first_with_every_distances_score(opened: Open, distance: str) -> None:
    store = opened(space=distance)
    assert store.upsert(RECORDS) == 40
    assert (store.name, store.distance, store.count()) == ("chroma", distance, 40)
    found = store.fetch(["k03", "absent", "", "k01"])
    assert set(found) == {"k03", "k01"}
    assert found["k03"].vector == pytest.approx(VECTORS[3], rel=1e-6)
    assert (found["k03"].text, found["k03"].metadata) == ("text 3", {"even": False, "n": 3})
    hits = store.query(QUERY, top_k=10)
    assert [hit.key for hit in hits] == ranked(distance, RECORDS)[:10]
    assert [hit.score for hit in hits] == pytest.approx(
        [measure(distance, VECTORS[int(hit.key[1:])]) for hit in hits], abs=1e-5
    )
    assert hits[0].text == f"text {int(hits[0].key[1:])}"
    store.delete(["k00", "absent"])
    store.delete([])
    assert (store.count(), store.fetch(["k00"])) == (39, {})


def test_an_upsert_replaces_whole_records(opened: Open) -> None:
    store = opened()
    first = Record("a", VECTORS[0], "a text", {"gone": 1, "list": ["x", "y"], "kept": "old"})
    store.upsert([first, Record("b", VECTORS[1], "beside", {"b": 1})])
    store.upsert([Record("a", VECTORS[2], None, {"kept": "new"}), Record("c", VECTORS[3])])
    found = store.fetch(["a", "b", "c"])
    assert {key: (item.text, item.metadata) for key, item in found.items()} == {
        "a": (None, {"kept": "new"}),
        "b": ("beside", {"b": 1}),
        "c": (None, {}),
    }
    assert found["a"].vector == pytest.approx(VECTORS[2], rel=1e-6)
    store.upsert([Record("b", VECTORS[1], "beside"), Record("a", VECTORS[1], "1"), Record("a", VECTORS[0], "2")])
    found = store.fetch(["a", "b"])
    assert [(found[key].text, found[key].metadata) for key in "ab"] == [("2", {}), ("beside", {})]


def test_more_records_than_one_request_takes_are_written_and_deleted(opened: Open) -> None:
    store = opened()
    many = [Record(f"r{number}", vector) for number, vector in enumerate(to_vectors(2500))]
    assert store.upsert(many) == 2500
    assert len(store.fetch([f"r{number}" for number in range(40_000)])) == 2500
    store.delete([record.key for record in many[100:]])
    assert store.count() == 100


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": {"a": "secret"}}, "is no string, number, boolean or list"),
        ({"x": ["secret", 1]}, "is no string"),
        ({"x": []}, "is no string"),
        ({"x": None}, "is no string"),
        ({"x": 2**63}, "an integer past 64 bits"),
        ({"": "secret"}, "has a name that Chroma does not take"),
        ({"$x": "secret"}, "has a name"),
        ({"chroma:document": "secret"}, "has a name"),
    ],
)
def test_what_chroma_does_not_take_is_refused_before_anything_is_sent(
    opened: Open, metadata: dict[str, Any], message: str
) -> None:
    store = opened()
    with pytest.raises(RowError, match=message) as caught:
        store.upsert([RECORDS[0], Record("bad", VECTORS[1], None, metadata)])
    assert caught.value.key == "bad"
    assert "secret" not in str(caught.value)
    assert store.count() == 0


def test_vectors_of_another_length_and_zero_are_refused(opened: Open) -> None:
    store = opened()
    store.upsert(RECORDS)
    with pytest.raises(RowError, match="wrong_dimension"):
        store.upsert([Record("x", np.ones(7, np.float32))])
    with pytest.raises(RowError, match="zero_under_cosine"):
        store.upsert([Record("x", np.zeros(8, np.float32))])
    with pytest.raises(DimensionMismatch, match=r"expected \(8,\)"):
        store.query(np.ones(7))
    with pytest.raises(ConfigError, match="top_k"):
        store.query(QUERY, top_k=0)
    with pytest.raises(FilterError):
        store.query(QUERY, filter={"a": {"$near": 1}})


def test_an_empty_collection_answers_nothing_and_takes_the_dimension_of_the_first_record(opened: Open) -> None:
    store, other = opened(), opened()
    assert (store.query(QUERY), store.count(), store.fetch(["a"]), store.stored_vector()) == ([], 0, {}, None)
    assert store.upsert([]) == 0
    other.upsert(RECORDS)
    assert keys(store, top_k=1) == ["k00"]
    assert store.stored_vector() is not None


# Always k hits, and the filter language.


def test_there_are_as_many_hits_as_match_however_few_or_many(opened: Open) -> None:
    store = opened()
    vectors = to_vectors(3000, 16, seed=3)
    texts = [f"t{number}" for number in range(3000)]
    store.upsert(
        [
            Record(
                f"r{number}",
                vector,
                texts[number],
                {"n": number, "rare": number % 500 == 0, "tags": ["a", f"t{number % 3}"]},
            )
            for number, vector in enumerate(vectors)
        ]
    )
    query = vectors[0] + 0.1
    for asked, wanted in (
        (3000, None),
        (10_000, None),
        (6, {"rare": True}),
        (10, {"rare": True}),
        (10, {"tags": "t2"}),
        (1000, {"tags": {"$ne": "t2"}}),
        (50, {"text": {"$in": texts[100:160]}}),
        (7, {"n": {"$gte": 10.5, "$lt": 20}, "rare": {"$ne": True}}),
    ):
        condition = None if wanted is None else parse_filter(wanted)
        fields = [{"n": n, "rare": n % 500 == 0, "tags": ["a", f"t{n % 3}"], "text": texts[n]} for n in range(3000)]
        match = [n for n in range(3000) if condition is None or condition.matches(fields[n])]
        hits = store.query(query, top_k=asked, filter=wanted)
        assert len(hits) == min(asked, len(match))
        assert len({hit.key for hit in hits}) == len(hits)
        assert {int(hit.key[1:]) for hit in hits} <= set(match)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("distance", ["cosine", "l2", "ip"])
def test_what_comes_short_is_compared_one_by_one_and_exactly(opened: Open, distance: str) -> None:
    store = opened(space=distance)
    store.upsert(RECORDS)
    store._collection.handle.query = _finds_nothing
    hits = store.query(QUERY, top_k=10, filter={"even": True})
    wanted = ranked(distance, RECORDS[::2])[:10]
    assert [hit.key for hit in hits] == wanted
    assert [hit.score for hit in hits] == pytest.approx(
        [measure(distance, VECTORS[int(key[1:])]) for key in wanted], abs=1e-5
    )
    assert keys(store, top_k=40) == ranked(distance, RECORDS)


def _finds_nothing(**_: Any) -> dict[str, Any]:
    """An index that has lost its way."""
    return {name: [[]] for name in ("ids", "metadatas", "documents", "distances")}


def test_a_zero_vector_has_no_distance_and_is_no_hit_of_an_exact_search(folder: Path, opened: Open) -> None:
    fill(folder, ["zero", "one"], np.stack([np.zeros(8, np.float32), VECTORS[1]]))
    store = opened()
    store._collection.handle.query = _finds_nothing
    assert keys(store) == ["one"]


fields = st.sampled_from([name for name in FIELDS[:-2] if name])
strings = st.sampled_from(list(TEXTS)) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3
)
numbers = st.sampled_from([number for number in NUMBERS if isinstance(number, float) or abs(number) < 2**63])
integers = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    strings,
    st.booleans(),
    numbers,
    integers,
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(strings, min_size=1, max_size=3),
    st.lists(integers, min_size=1, max_size=2),
    st.lists(st.booleans(), min_size=1, max_size=2),
)
documents = st.dictionaries(fields, values, max_size=5)


@pytest.fixture
def filtered(opened: Open) -> ChromaStore:
    return opened(text_field="genre")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(documents, min_size=1, max_size=8), st.lists(filters, min_size=1, max_size=5))
def test_a_filter_finds_what_its_meaning_says(
    filtered: ChromaStore, documents: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    filtered.delete([f"k{i:02d}" for i in range(8)])
    # The text field is the document, not metadata; a string only.
    texts = [item.get("genre") if isinstance(item.get("genre"), str) else None for item in documents]
    kept = [{name: value for name, value in item.items() if name != "genre"} for item in documents]
    filtered.upsert(
        [Record(f"k{i:02d}", VECTORS[i], text, item) for i, (text, item) in enumerate(zip(texts, kept, strict=True))]
    )
    # As Chroma keeps it: the last digit of a float may be another.
    stored = filtered.fetch([f"k{i:02d}" for i in range(len(documents))])
    assert {key: set(record.metadata) for key, record in stored.items()} == {
        f"k{i:02d}": set(item) for i, item in enumerate(kept)
    }
    whole = [
        {**stored[f"k{i:02d}"].metadata, **({} if text is None else {"genre": text})} for i, text in enumerate(texts)
    ]
    for asked in filters:
        condition = parse_filter(asked)
        expected = [f"k{i:02d}" for i, item in enumerate(whole) if condition.matches(item)]
        assert sorted(keys(filtered, filter=asked)) == expected, asked


STORED = [0, 1, -1, 1990, 1990.0, 0.1, 2**53 - 1, 2**53, 2**53 + 1, -(2**53), 2**62, 1e300, 5e-324, True, False]
STORED += ["", "a", "1", "true", ["a"], ["a", "b"], [1], [True], [1.5], ["1", "true"]]


def test_a_float_that_chroma_changed_is_found_by_what_it_is_now(opened: Open) -> None:
    store = opened()
    numbers = np.random.default_rng(5).uniform(-1000, 1000, 200).tolist()
    store.upsert([Record(str(i), vector, None, {"f": numbers[i]}) for i, vector in enumerate(to_vectors(200))])
    stored = {key: record.metadata["f"] for key, record in store.fetch([str(i) for i in range(200)]).items()}
    assert [stored[str(i)] for i in range(200)] == pytest.approx(numbers, rel=1e-12)
    changed = [key for key, number in stored.items() if number != numbers[int(key)]]
    assert changed, "this Chroma keeps every digit: the test says nothing"
    for key in changed:
        for operator in ("$eq", "$gte", "$lte"):
            assert key in keys(store, top_k=200, filter={"f": {operator: stored[key]}})


def test_every_operator_means_at_the_edges_what_it_means_elsewhere(opened: Open) -> None:
    store = opened()
    vectors = to_vectors(len(STORED) + 1)
    items: list[dict[str, Any]] = [*({"f": value} for value in STORED), {}]
    store.upsert(
        [Record(str(i), vector, None, item) for i, (vector, item) in enumerate(zip(vectors, items, strict=True))]
    )
    for operand in STORED:
        if isinstance(operand, list):
            continue
        operators = ["$eq", "$ne"]
        operators += [] if isinstance(operand, bool) else ["$in", "$nin"]
        operators += [] if isinstance(operand, bool | str) else ["$gt", "$gte", "$lt", "$lte"]
        for operator in operators:
            asked = {"f": {operator: [operand] if operator in ("$in", "$nin") else operand}}
            condition = parse_filter(asked)
            expected = {str(i) for i, item in enumerate(items) if condition.matches(item)}
            assert set(keys(store, top_k=100, filter=asked)) == expected, asked


@pytest.mark.parametrize(
    ("filter", "where"),
    [
        ({"stock": {"$gt": 0}}, {"stock": {"$gt": 0.0}}),
        ({"price": {"$lt": 9.5}}, {"price": {"$lte": 10.0}}),
        ({"price": {"$gte": -9.5}}, {"price": {"$gte": -10.0}}),
        (
            {"price": {"$gte": 10, "$lt": 20}, "active": True},
            {"$and": [{"price": {"$gte": 10.0}}, {"price": {"$lt": 20.0}}, {"active": {"$eq": True}}]},
        ),
        ({"brand": "ASUS"}, {"$or": [{"brand": {"$in": ["ASUS"]}}, {"brand": {"$contains": "ASUS"}}]}),
        ({"n": {"$in": [1, 2]}}, {"n": {"$in": [1.0, 2.0]}}),
        ({"n": 2.5}, {"$and": [{"n": {"$gte": 2.0}}, {"n": {"$lte": 3.0}}]}),
        (
            {"n": {"$in": [1, 2.5]}},
            {"$or": [{"n": {"$in": [1.0]}}, {"$and": [{"n": {"$gte": 2.0}}, {"n": {"$lte": 3.0}}]}]},
        ),
        ({"$or": [{"n": 1}, {"n": {"$ne": 2}}]}, None),
        ({"$and": [{"n": 1}, {"n": {"$ne": 2}}]}, {"n": {"$in": [1.0]}}),
        ({"$or": [{"n": 1}, {"m": 2}]}, {"$or": [{"n": {"$in": [1.0]}}, {"m": {"$in": [2.0]}}]}),
        ({"n": {"$exists": False}}, None),
        ({"n": 2**48}, None),
        ({"text": "a"}, None),
        ({"a.b": 1}, None),
        ({"n": {"$in": []}}, None),
        ({"t": ""}, None),
        ({"n": {"$in": list(range(1001))}}, None),
        ({"n": {"$in": [n + 0.5 for n in range(101)]}}, None),
        ({"t": {"$in": [f"t{n}" for n in range(101)]}}, None),
        ({}, None),
    ],
)
def test_chroma_is_told_of_a_filter_what_it_can_say_exactly_enough(filter: dict[str, Any], where: Any) -> None:
    assert to_where(parse_filter(filter), "text") == where


def test_filters_too_large_or_deep_for_chroma_still_hold(opened: Open) -> None:
    store = opened()
    store.upsert(RECORDS)
    wide = {"$or": [{"n": number} for number in range(-990, 4)]}
    deep: dict[str, Any] = {"n": {"$lt": 4}}
    for _ in range(48):
        deep = {"$or": [{"$and": [deep, {"n": {"$gte": 0}}]}, {"n": -1}]}
    many = {"n": {"$in": list(range(-9000, 4))}}
    for asked in (wide, deep, many):
        assert sorted(keys(store, filter=asked)) == ["k00", "k01", "k02", "k03"]


def test_category_brand_price_and_stock_are_applied_during_the_search(opened: Open) -> None:
    store = opened()
    store.upsert(RECORDS)
    seen: list[Any] = []
    query = store._collection.handle.query

    def watched(**asked: Any) -> Any:
        seen.append(asked["where"])
        return query(**asked)

    store._collection.handle.query = watched
    assert keys(store, top_k=3, filter={"n": {"$gte": 20}, "even": True}) == ranked("cosine", RECORDS[20::2])[:3]
    assert seen == [{"$and": [{"n": {"$gte": 20.0}}, {"even": {"$eq": True}}]}]


# Keys of products.


def test_keys_are_the_products_however_chroma_spells_them(folder: Path, opened: Open) -> None:
    ids = [*(f"product_{key}" for key in UUIDS[:4]), *(key.upper() for key in UUIDS[4:8]), "row 8", "row 9", "none"]
    metadata = [{"a": 1}] * 8 + [{"product_id": UUIDS[8]}, {"product_id": UUIDS[9].upper()}, {"a": 1}]
    fill(folder, ids, VECTORS[:11], metadata, [f"text {n}" for n in range(11)])
    store = opened(table="products", chroma_similarity_threshold=-1)
    assert set(keys(store, top_k=20)) == {*UUIDS[:10], "none"}
    found = store.fetch([*UUIDS, "amprenta-canary"])
    assert set(found) == set(UUIDS[:10])
    assert [found[key].text for key in UUIDS[:10]] == [f"text {n}" for n in range(10)]
    store.upsert(
        [Record(key, VECTORS[20], "new", {"product_id": key}) for key in (UUIDS[1], UUIDS[5], UUIDS[8], UUIDS[10])]
    )
    assert store.count() == 12
    handle = store._collection.handle
    written = handle.get(where={"product_id": {"$in": UUIDS}})["ids"]
    assert set(written) == {ids[1], ids[5], ids[8], f"product_{UUIDS[10]}"}
    store.delete([UUIDS[2], UUIDS[6], UUIDS[9], UUIDS[11]])
    assert set(handle.get()["ids"]) == {*ids, f"product_{UUIDS[10]}"} - {ids[2], ids[6], ids[9]}


# The settings and the modes.


def test_the_settings_open_it_and_a_threshold_leaves_out_what_is_not_as_near(folder: Path, opened: Open) -> None:
    opened().upsert(RECORDS)
    scores = [hit.score for hit in opened().query(QUERY, top_k=20)]
    threshold = (scores[6] + scores[7]) / 2
    store = get_vector_store(
        Settings.load(vector_backend="chroma", chroma_path=folder, chroma_similarity_threshold=threshold)
    )
    assert keys(store, top_k=20) == ranked("cosine", RECORDS)[:7]
    store.close()
    with pytest.raises(SourceNotFound):
        get_vector_store(Settings.load(vector_backend="chroma", chroma_path=folder / "absent"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "chromadb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "chromadb", None)
    with pytest.raises(MissingExtra, match="chromadb") as caught:
        get_vector_store(Settings.load(vector_backend="chroma"))
    assert caught.value.hint == "pip install 'amprenta_vectors[chroma]'"


def test_the_canary_sings_on_chroma(folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    opened().upsert(RECORDS)
    monkeypatch.setenv("VECTOR_BACKEND", "chroma")
    monkeypatch.setenv("CHROMA_PATH", str(folder))
    result = CliRunner().invoke(main, ["canary", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["hits"] == 10


@pytest.fixture
def joined(folder: Path, opened: Open, upgraded_url: str, engine: sa.Engine) -> dict[str, Any]:
    """Chroma with the first thirty records, pgvector with the last thirty."""
    opened().upsert(RECORDS[:30])
    shared = {"database_url": upgraded_url, "chroma_path": folder}
    pgvector = open_pgvector_store(Settings.load(**shared))
    pgvector.upsert(RECORDS[10:])
    pgvector.close()
    return shared


@pytest.mark.parametrize(("backend", "other"), [("chroma", "pgvector"), ("pgvector", "chroma")])
def test_it_is_either_side_of_hybrid_and_shadow(
    joined: dict[str, Any], engine: sa.Engine, backend: str, other: str
) -> None:
    pair = {**joined, "vector_backend": backend, "vector_secondary": other}
    hybrid = get_vector_store(Settings.load(**pair, vector_mode="hybrid"))
    assert keys(hybrid, top_k=10) == ranked("cosine", RECORDS)[:10]
    assert keys(hybrid, top_k=10, filter={"even": True}) == ranked("cosine", RECORDS[::2])[:10]
    hybrid.close()
    shadow = get_vector_store(Settings.load(**pair, vector_mode="shadow"))
    own = RECORDS[:30] if backend == "chroma" else RECORDS[10:]
    assert keys(shadow, top_k=5) == ranked("cosine", own)[:5]
    shadow.close()
    ((names, overlap),) = execute(engine, "SELECT ARRAY[primary_store, secondary_store], overlap FROM shadow_query")
    assert (names, 0 < overlap < 1) == ([backend, other], True)


def test_it_answers_for_a_pgvector_that_fails_and_the_other_way_round(
    folder: Path, joined: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**joined, "database_url": "postgresql://127.0.0.1:1/none"}
    store = get_vector_store(
        Settings.load(**wrong, vector_backend="pgvector", vector_mode="fallback", vector_secondary="chroma")
    )
    assert keys(store, top_k=5) == ranked("cosine", RECORDS[:30])[:5]
    store.close()
    store = get_vector_store(
        Settings.load(
            **joined,
            vector_backend="chroma",
            vector_mode="fallback",
            vector_secondary="pgvector",
            vector_timeout_seconds=30,
        )
    )
    assert keys(store, top_k=5) == ranked("cosine", RECORDS[:30])[:5]
    store.close()


def test_dual_writes_reach_it_and_what_it_refuses_is_said(joined: dict[str, Any]) -> None:
    store = get_vector_store(
        Settings.load(**joined, vector_backend="pgvector", vector_mode="dual", vector_secondary="chroma")
    )
    store.upsert([RECORDS[39], Record("new", VECTORS[5], "new", {"a": "b"})])
    store.delete(["k12"])
    store.close()
    chroma = open_chroma_store(Settings.load(**joined))
    assert set(chroma.fetch(["k39", "new", "k12"])) == {"k39", "new"}
    assert chroma.fetch(["new"])["new"].metadata == {"a": "b"}
    chroma.close()


def test_a_server_is_used_as_a_folder_is_and_its_absence_is_no_empty_answer(folder: Path) -> None:
    fill(folder, [], to_vectors(0))
    server = ChromaServer(folder)
    server.start()
    try:
        store = open_chroma_store(Settings.load(chroma_host="127.0.0.1", chroma_port=server.port))
        store.upsert(RECORDS)
        store.upsert([Record("k00", VECTORS[0], None, {})])
        assert keys(store, top_k=10) == ranked("cosine", RECORDS)[:10]
        assert keys(store, filter={"n": {"$in": [3, 4]}, "text": "text 4"}) == ["k04"]
        assert store.fetch(["k00"])["k00"].text is None
        server.kill()
        with pytest.raises(TransientError):
            store.query(QUERY)
        with pytest.raises(TransientError):
            store.upsert(RECORDS)
    finally:
        server.kill()
