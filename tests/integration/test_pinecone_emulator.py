"""The Pinecone emulator as Pinecone's own client sees it, over HTTP and over gRPC."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from pinecone import Pinecone, RetryConfig
from pinecone.errors import exceptions as sdk
from pinecone.grpc import GrpcIndex
from pinecone.index import Index

from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_records, strange_unstorable, to_columns

KEY = "sandbox-key"
DIMENSION = 8


@pytest.fixture
def emulator() -> Iterator[PineconeEmulator]:
    with PineconeEmulator(dimension=DIMENSION) as emulator:
        yield emulator


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_index(emulator: PineconeEmulator, transport: str, api_key: str = KEY) -> Index | GrpcIndex:
    client = Pinecone(api_key=api_key, grpc_scheme="http")
    if transport == "grpc":
        return client.index(host=emulator.grpc_host, grpc=True)
    return client.index(host=emulator.host)


@pytest.fixture
def index(emulator: PineconeEmulator, transport: str) -> Index | GrpcIndex:
    return open_index(emulator, transport)


def vectors(count: int, dimension: int = DIMENSION, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)


def all_ids(index: Index | GrpcIndex, **arguments: Any) -> list[str]:
    return [item.id for page in index.list(**arguments) for item in page.vectors]


def bits(values: Any) -> bytes:
    return np.asarray(values, dtype=np.float32).tobytes()


def test_the_client_finds_the_index_by_name_on_the_control_plane() -> None:
    with PineconeEmulator(name="articles", dimension=4, metric="dotproduct", model="all-MiniLM-L6-v2") as emulator:
        client = Pinecone(api_key=KEY, host=emulator.host)
        found = client.indexes.describe("articles")
        assert (found.name, found.dimension, found.metric, found.host) == ("articles", 4, "dotproduct", emulator.host)
        assert found.status.ready
        assert found.embed.model == "all-MiniLM-L6-v2"
        assert [item.name for item in client.indexes.list()] == ["articles"]
        assert client.index("articles").describe_index_stats().total_vector_count == 0


def test_an_index_without_model_describes_none() -> None:
    with PineconeEmulator() as emulator:
        found = Pinecone(api_key=KEY, host=emulator.host).indexes.describe("sandbox")
    assert (found.dimension, found.metric, found.embed) == (256, "cosine", None)


def test_an_unknown_index_is_not_found(emulator: PineconeEmulator) -> None:
    with pytest.raises(sdk.NotFoundError, match="Resource other not found") as caught:
        Pinecone(api_key=KEY, host=emulator.host).indexes.describe("other")
    assert caught.value.error_code == "NOT_FOUND"


def test_a_wrong_key_is_refused_on_every_plane(emulator: PineconeEmulator, transport: str) -> None:
    with pytest.raises(sdk.UnauthorizedError, match="Invalid API key"):
        open_index(emulator, transport, api_key="wrong").fetch(ids=["a"])
    with pytest.raises(sdk.UnauthorizedError, match="Invalid API key"):
        Pinecone(api_key="wrong", host=emulator.host).indexes.describe("sandbox")


def test_what_was_upserted_is_fetched(index: Index | GrpcIndex) -> None:
    metadata = {"text": "zażółć 😀", "page": 3, "share": 0.1, "new": True, "tags": ["a", "b"], "none": []}
    values = vectors(2)
    answer = index.upsert(
        vectors=[("a", values[0].tolist(), metadata), ("b", values[1].tolist())], namespace="n", show_progress=False
    )
    assert answer.upserted_count == 2
    found = index.fetch(ids=["b", "absent", "a"], namespace="n")
    assert found.namespace == "n"
    assert set(found.vectors) == {"a", "b"}
    assert bits(found.vectors["a"].values) == values[0].tobytes()
    assert found.vectors["a"].metadata == metadata
    assert not found.vectors["b"].metadata


def test_an_upsert_replaces_the_whole_record(index: Index | GrpcIndex) -> None:
    index.upsert(vectors=[("a", [1.0] * DIMENSION, {"old": 1})])
    index.upsert(vectors=[("a", [2.0] * DIMENSION)])
    found = index.fetch(ids=["a"]).vectors["a"]
    assert found.values == [2.0] * DIMENSION
    assert not found.metadata


def test_an_id_asked_for_twice_is_sent_once(emulator: PineconeEmulator) -> None:
    emulator.load("", ["a"], vectors(1))
    with grpc.insecure_channel(emulator.grpc_host.removeprefix("http://")) as channel:
        request = wire.FetchRequest(ids=["a", "a"]).SerializeToString()
        answer = channel.unary_unary(f"/{wire.SERVICE}/Fetch")(request, metadata=[("api-key", KEY)])
    assert [entry.key for entry in wire.FetchResponse.FromString(answer).vectors] == ["a"]
    body = httpx.get(f"{emulator.host}/vectors/fetch?ids=a&ids=a", headers={"Api-Key": KEY}).text
    assert body.count('"values"') == 1


def test_sparse_values_come_back_where_the_metric_takes_them(transport: str) -> None:
    sparse = {"indices": [0, 7, 2**32 - 1], "values": [0.5, 0.1, -2.0]}
    with PineconeEmulator(dimension=2, metric="dotproduct") as emulator:
        index = open_index(emulator, transport)
        index.upsert(vectors=[{"id": "a", "values": [1.0, 2.0], "sparse_values": sparse}])
        emulator.load("", ["sparse only"], np.empty((1, 0)), sparse=[{"indices": [5], "values": [0.25]}])
        found = index.fetch(ids=["a", "sparse only"]).vectors
        matches = index.query(id="a", top_k=9, include_values=True).matches
    assert found["a"].sparse_values.indices == sparse["indices"]
    assert bits(found["a"].sparse_values.values) == bits(sparse["values"])
    assert found["sparse only"].values == []
    assert found["sparse only"].sparse_values.indices == [5]
    assert [match.sparse_values.indices for match in matches] == [sparse["indices"]]


def test_sparse_values_are_refused_under_other_metrics(index: Index | GrpcIndex) -> None:
    with pytest.raises(sdk.ApiError, match="does not support sparse values"):
        index.upsert(
            vectors=[{"id": "a", "values": [1.0] * DIMENSION, "sparse_values": {"indices": [1], "values": [1.0]}}]
        )


def test_the_default_namespace_has_two_names(index: Index | GrpcIndex) -> None:
    index.upsert(vectors=[("a", [1.0] * DIMENSION)], namespace="")
    index.upsert(vectors=[("b", [1.0] * DIMENSION)], namespace="__default__")
    for name in ("", "__default__"):
        assert set(index.fetch(ids=["a", "b"], namespace=name).vectors) == {"a", "b"}
        assert sorted(all_ids(index, namespace=name)) == ["a", "b"]
    assert list(index.describe_index_stats().namespaces) == ["__default__"]


def test_listing_gives_every_id_once_in_pages(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    ids = [f"doc{i}#chunk{j}" for i in range(10) for j in range(25)]
    emulator.load("n", ids, vectors(250))
    emulator.load("m", ["elsewhere"], vectors(1))
    pages = list(index.list(namespace="n"))
    assert [len(page.vectors) for page in pages] == [100, 100, 50]
    assert pages[-1].pagination is None
    assert sorted(item.id for page in pages for item in page.vectors) == sorted(ids)
    assert len(all_ids(index, namespace="n", limit=7)) == 250


def test_a_listing_that_fills_its_last_page_ends_there(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("", [f"{i}" for i in range(200)], vectors(200))
    assert [len(page.vectors) for page in index.list()] == [100, 100]


def test_a_prefix_lists_what_begins_with_it_and_nothing_else(
    emulator: PineconeEmulator, index: Index | GrpcIndex
) -> None:
    ids = ["doc1#a", "doc1#b", "Doc1#c", "doc10#a", "doc2#a", "do", "doc1", "doc1%", "doc1_"]
    emulator.load("", ids, vectors(len(ids)))
    for prefix in ("doc1#", "doc1", "d", "D", "doc1%", "absent", ""):
        expected = sorted(id_ for id_ in ids if id_.startswith(prefix))
        assert sorted(all_ids(index, prefix=prefix, limit=2)) == expected


def test_nobody_can_rely_on_the_order_of_a_listing(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("", ["b", "B", "a", "_", "C"], vectors(5))
    assert all_ids(index) == ["_", "a", "B", "b", "C"]


def test_a_listing_goes_on_where_it_was_after_writes_and_deletes(
    emulator: PineconeEmulator, index: Index | GrpcIndex
) -> None:
    emulator.load("", [f"id{i:02}" for i in range(10)], vectors(10))
    first = index.list_paginated(limit=3)
    index.upsert(vectors=[(id_, [1.0] * DIMENSION) for id_ in ("id00a", "id03a", "id03a", "id04")])
    second = index.list_paginated(limit=3, pagination_token=first.pagination.next)
    assert [item.id for item in second.vectors] == ["id03", "id03a", "id04"]
    index.delete(ids=["id05", "id08"])
    rest = index.list_paginated(limit=100, pagination_token=second.pagination.next)
    assert [item.id for item in rest.vectors] == ["id06", "id07", "id09"]


@pytest.mark.parametrize("token", ["garbage", "AAAA", "AAAAAGlkMDA=", "é"])
def test_a_token_that_no_listing_gave_is_refused(
    emulator: PineconeEmulator, index: Index | GrpcIndex, token: str
) -> None:
    emulator.load("", ["id00"], vectors(1))
    with pytest.raises(sdk.ApiError, match="Invalid pagination token") as caught:
        index.list_paginated(pagination_token=token)
    assert caught.value.status_code == 400


def test_a_token_of_another_namespace_is_refused(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("a", ["1", "2"], vectors(2))
    token = index.list_paginated(namespace="a", limit=1).pagination.next
    with pytest.raises(sdk.ApiError, match="Invalid pagination token"):
        index.list_paginated(namespace="b", pagination_token=token)


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda rows, query: rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query),
    "dotproduct": lambda rows, query: rows @ query,
    "euclidean": lambda rows, query: -((rows - query) ** 2).sum(axis=1),
}


@pytest.mark.parametrize("metric", sorted(SCORES))
def test_a_query_finds_the_exact_nearest_with_pinecones_scores(metric: str, transport: str) -> None:
    rows, query = vectors(500), vectors(1, seed=1)[0]
    nearness = SCORES[metric](rows.astype(np.float64), query.astype(np.float64))
    expected = np.argsort(-nearness)[:10]
    with PineconeEmulator(dimension=DIMENSION, metric=metric) as emulator:
        emulator.load("", [f"{i}" for i in range(500)], rows)
        matches = open_index(emulator, transport).query(vector=query.tolist(), top_k=10).matches
    assert [int(match.id) for match in matches] == expected.tolist()
    scores = [-match.score if metric == "euclidean" else match.score for match in matches]
    np.testing.assert_allclose(scores, nearness[expected], rtol=1e-5)
    assert all(not match.values and match.metadata is None for match in matches)


def test_a_query_sees_every_write_before_it(index: Index | GrpcIndex) -> None:
    def nearest() -> list[str]:
        return [match.id for match in index.query(vector=[1.0] * DIMENSION, top_k=2).matches]

    index.upsert(vectors=[("a", [1.0] * DIMENSION)])
    assert nearest() == ["a"]
    index.upsert(vectors=[("a", [-1.0] * DIMENSION), ("b", [1.0] * DIMENSION)])
    assert nearest() == ["b", "a"]
    index.delete(ids=["b"])
    assert nearest() == ["a"]


def test_a_query_shows_values_and_metadata_when_asked(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    rows = vectors(3)
    emulator.load("", ["a", "b", "c"], rows, [{"n": 1}, {"n": 2}, None])
    [match] = index.query(id="b", top_k=1, include_values=True, include_metadata=True).matches
    assert (match.id, match.metadata) == ("b", {"n": 2})
    assert match.score == pytest.approx(1.0)
    assert bits(match.values) == rows[1].tobytes()


def test_a_filter_never_costs_a_query_hits(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load(
        "", [f"{i}" for i in range(300)], vectors(300), [{"page": i, "tags": [f"t{i % 3}"]} for i in range(300)]
    )
    wanted = {"$and": [{"page": {"$gte": 100, "$lt": 130}}, {"tags": {"$in": ["t1"]}}]}
    matches = index.query(vector=[1.0] * DIMENSION, top_k=100, filter=wanted, include_metadata=True).matches
    assert sorted(match.metadata["page"] for match in matches) == [i for i in range(100, 130) if i % 3 == 1]


def test_queries_of_what_is_not_there_are_empty(index: Index | GrpcIndex) -> None:
    assert index.query(vector=[1.0] * DIMENSION, top_k=3, namespace="absent").matches == []
    assert index.query(id="absent", top_k=3).matches == []
    assert index.fetch(ids=["a"], namespace="absent").vectors == {}
    assert all_ids(index, namespace="absent") == []
    assert index.fetch_by_metadata(filter={"a": 1}, namespace="absent").vectors == {}


def test_a_filter_that_pinecone_would_refuse_is_refused(index: Index | GrpcIndex) -> None:
    index.upsert(vectors=[("a", [1.0] * DIMENSION)])
    bad = {"page": {"$regex": "x"}}
    calls: list[Callable[[], Any]] = [
        lambda: index.query(vector=[1.0] * DIMENSION, top_k=1, filter=bad),
        lambda: index.fetch_by_metadata(filter=bad),
        lambda: index.delete(filter=bad),
        lambda: index.update(filter=bad, set_metadata={"a": 1}),
    ]
    for call in calls:
        with pytest.raises(sdk.ApiError) as caught:
            call()
        assert caught.value.status_code == 400


def test_fetch_by_metadata_gives_every_match_once_in_pages(
    emulator: PineconeEmulator, index: Index | GrpcIndex
) -> None:
    emulator.load("", [f"{i:03}" for i in range(90)], vectors(90), [{"even": i % 2 == 0} for i in range(90)])
    found: list[str] = []
    token = None
    while True:
        page = index.fetch_by_metadata(filter={"even": True}, limit=20, pagination_token=token)
        found += page.vectors
        if page.pagination is None:
            break
        token = page.pagination.next
    assert sorted(found) == [f"{i:03}" for i in range(0, 90, 2)]


def test_a_page_by_metadata_has_at_most_4_mb(transport: str) -> None:
    with PineconeEmulator(dimension=1536) as emulator:
        emulator.load("", [f"{i}" for i in range(1000)], vectors(1000, 1536), [{"a": 1}] * 1000)
        page = open_index(emulator, transport).fetch_by_metadata(filter={"a": 1}, limit=1000)
    assert 600 < len(page.vectors) < 700
    assert page.pagination is not None


def test_an_update_changes_what_it_names_and_keeps_the_rest(index: Index | GrpcIndex) -> None:
    index.upsert(vectors=[("a", [1.0] * DIMENSION, {"kept": 1, "changed": 1})])
    index.update(id="a", set_metadata={"changed": 2, "added": "x"})
    found = index.fetch(ids=["a"]).vectors["a"]
    assert found.values == [1.0] * DIMENSION
    assert found.metadata == {"kept": 1, "changed": 2, "added": "x"}
    index.update(id="a", values=[2.0] * DIMENSION)
    found = index.fetch(ids=["a"]).vectors["a"]
    assert found.values == [2.0] * DIMENSION
    assert found.metadata == {"kept": 1, "changed": 2, "added": "x"}
    index.update(id="absent", values=[2.0] * DIMENSION)
    assert index.fetch(ids=["absent"]).vectors == {}


def test_an_update_by_filter_says_how_many_it_met(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("", ["a", "b", "c"], vectors(3), [{"page": 1}, {"page": 2}, {"page": 3}])
    wanted = {"page": {"$lte": 2}}
    assert index.update(filter=wanted, set_metadata={"seen": True}, dry_run=True).matched_records == 2
    assert not index.fetch_by_metadata(filter={"seen": True}).vectors
    assert index.update(filter=wanted, set_metadata={"seen": True}).matched_records == 2
    assert set(index.fetch_by_metadata(filter={"seen": True}).vectors) == {"a", "b"}


def test_deletes_by_id_by_filter_and_of_all(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("n", ["a", "b", "c", "d"], vectors(4), [{"page": i} for i in range(4)])
    emulator.load("m", ["a"], vectors(1))
    index.delete(ids=["a", "absent"], namespace="n")
    assert all_ids(index, namespace="n") == ["b", "c", "d"]
    index.delete(filter={"page": {"$gt": 2}}, namespace="n")
    assert all_ids(index, namespace="n") == ["b", "c"]
    assert len(index.query(vector=[1.0] * DIMENSION, top_k=9, namespace="n").matches) == 2
    index.delete(delete_all=True, namespace="n")
    assert all_ids(index, namespace="n") == []
    assert index.describe_namespace(name="n").record_count == 0
    assert all_ids(index, namespace="m") == ["a"]


def test_a_delete_in_an_unknown_namespace_is_not_found(index: Index | GrpcIndex) -> None:
    with pytest.raises(sdk.NotFoundError, match="Namespace not found"):
        index.delete(ids=["a"], namespace="absent")
    with pytest.raises(sdk.NotFoundError, match="Namespace not found"):
        index.describe_namespace(name="absent")


def test_stats_and_namespaces_count_what_is_there(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    emulator.load("", ["a", "b"], vectors(2))
    for i in range(5):
        emulator.load(f"tenant-{i}", ["a"], vectors(1))
    stats = index.describe_index_stats()
    assert (stats.dimension, stats.metric, stats.total_vector_count) == (DIMENSION, "cosine", 7)
    counts = {name: summary.vector_count for name, summary in stats.namespaces.items()}
    assert counts == {"__default__": 2, **{f"tenant-{i}": 1 for i in range(5)}}
    pages = list(index.list_namespaces(prefix="tenant-", limit=2))
    assert [len(page.namespaces) for page in pages] == [2, 2, 1]
    assert {page.total_count for page in pages} == {5}
    assert index.describe_namespace(name="__default__").record_count == 2


REFUSED_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong dimension": (
        {"id": "a", "values": [1.0, 2.0]},
        "Vector dimension 2 does not match the dimension of the index 8",
    ),
    "only zeros": ({"id": "a", "values": [0.0] * DIMENSION}, "contains only zeros"),
    "past float32": ({"id": "a", "values": [1e39] * DIMENSION}, "finite"),
    "null in metadata": ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"x": None}}, "got 'null' for field 'x'"),
    "object in metadata": ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"x": {"y": 1}}}, "for field 'x'"),
    "list of numbers": ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"x": [1]}}, "for field 'x'"),
    "40 KB and more": (
        {"id": "a", "values": [1.0] * DIMENSION, "metadata": {"x": "y" * 40960}},
        "limit of 40960 bytes",
    ),
    "dollar": ({"id": "a", "values": [1.0] * DIMENSION, "metadata": {"$x": 1}}, "must not start with"),
    "no ASCII": ({"id": "é", "values": [1.0] * DIMENSION}, "must be ASCII"),
    "513 characters": ({"id": "x" * 513, "values": [1.0] * DIMENSION}, "limit is 512"),
    "empty id": ({"id": "", "values": [1.0] * DIMENSION}, "non-empty"),
}


# The client itself leaves a null out of what it sends over gRPC.
@pytest.mark.parametrize("case", sorted(REFUSED_RECORDS.keys() - {"null in metadata"}))
def test_one_bad_record_keeps_its_whole_upsert_out(index: Index | GrpcIndex, case: str) -> None:
    record, _ = REFUSED_RECORDS[case]
    with pytest.raises((sdk.PineconeError, TypeError)):  # some by the client, before they are sent
        index.upsert(vectors=[{"id": "good", "values": [1.0] * DIMENSION}, record])
    assert index.fetch(ids=["good"]).vectors == {}


@pytest.mark.parametrize("case", REFUSED_RECORDS)
def test_the_server_itself_refuses_what_pinecone_refuses(emulator: PineconeEmulator, case: str) -> None:
    record, message = REFUSED_RECORDS[case]
    answer = httpx.post(f"{emulator.host}/vectors/upsert", json={"vectors": [record]}, headers={"Api-Key": KEY})
    assert answer.status_code == 400
    assert answer.json()["code"] == 3
    assert message in answer.json()["message"]


def test_requests_past_the_published_limits_are_refused(emulator: PineconeEmulator) -> None:
    def post(path: str, body: dict[str, Any]) -> int:
        return httpx.post(emulator.host + path, json=body, headers={"Api-Key": KEY}).status_code

    one = {"id": "a", "values": [1.0] * DIMENSION}
    assert post("/vectors/upsert", {"vectors": [{**one, "id": f"{i}"} for i in range(1000)]}) == 200
    assert post("/vectors/upsert", {"vectors": [one] * 1001}) == 400
    assert post("/vectors/upsert", {"vectors": [{**one, "metadata": {"x": "y" * 30_000}}] * 80}) == 413
    assert post("/vectors/delete", {"ids": ["a"] * 1001}) == 400
    assert post("/query", {"vector": [1.0] * DIMENSION, "topK": 10_001}) == 400
    assert post("/query", {"vector": [1.0] * DIMENSION, "topK": 0}) == 400
    assert post("/query", {"topK": 1}) == 400
    many = [("ids", f"{i}") for i in range(1001)]
    assert httpx.get(f"{emulator.host}/vectors/fetch", params=many, headers={"Api-Key": KEY}).status_code == 400
    assert httpx.get(f"{emulator.host}/vectors/fetch", headers={"Api-Key": KEY}).status_code == 400
    assert httpx.get(f"{emulator.host}/vectors/list?limit=101", headers={"Api-Key": KEY}).status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"vectors": 1}', b'{"vectors": [1]}', b'{"vectors": []}'])
def test_a_malformed_body_is_a_bad_request(emulator: PineconeEmulator, body: bytes) -> None:
    answer = httpx.post(f"{emulator.host}/vectors/upsert", content=body, headers={"Api-Key": KEY})
    assert (answer.status_code, answer.json()["code"]) == (400, 3)


def test_an_unknown_route_is_not_found(emulator: PineconeEmulator) -> None:
    for method, path in (("GET", "/"), ("POST", "/vectors/list"), ("GET", "/namespaces/"), ("PUT", "/_sandbox/calls")):
        assert httpx.request(method, emulator.host + path, headers={"Api-Key": KEY}).status_code == 404


def test_strange_records_come_back_bit_for_bit(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    records = strange_records(DIMENSION)
    for columns in to_columns(records):
        emulator.load(*columns)
    for namespace in {record.namespace for record in records}:
        expected = {record.id: record for record in records if record.namespace == namespace}
        assert sorted(all_ids(index, namespace=namespace)) == sorted(expected)
        found = index.fetch(ids=list(expected), namespace=namespace).vectors
        assert found.keys() == expected.keys()
        for id_, record in expected.items():
            assert bits(found[id_].values) == record.vector.tobytes(), (namespace, id_)
            assert (found[id_].metadata or {}) == record.metadata, (namespace, id_)
        if namespace:
            assert index.describe_namespace(name=namespace).record_count == len(expected)
    assert index.describe_index_stats().total_vector_count == len(records)


def test_strange_records_may_be_upserted(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    records = [*strange_records(DIMENSION)[:200], *strange_unstorable(DIMENSION)]
    for record in records:
        row = {"id": record.id, "values": record.vector.tolist(), "metadata": record.metadata}
        index.upsert(vectors=[row], namespace=record.namespace)
    for record in records:
        found = index.fetch(ids=[record.id], namespace=record.namespace).vectors[record.id]
        assert bits(found.values) == record.vector.tobytes(), record.id
        assert (found.metadata or {}) == record.metadata, record.id


@pytest.mark.parametrize("metric", sorted(SCORES))
def test_the_strangest_vectors_are_found_with_finite_scores(metric: str, transport: str) -> None:
    records = [record for record in strange_records(DIMENSION) if record.namespace == "plain"]
    with PineconeEmulator(dimension=DIMENSION, metric=metric) as emulator:
        for columns in to_columns(records):
            emulator.load(*columns)
        index = open_index(emulator, transport)
        for record in records[::7]:
            matches = index.query(id=record.id, top_k=10_000, namespace="plain").matches
            assert len(matches) == len(records)
            assert np.isfinite([match.score for match in matches]).all()
            if metric == "cosine":
                assert matches[0].score == pytest.approx(1.0)


def test_random_float32_survives_both_transports(emulator: PineconeEmulator, index: Index | GrpcIndex) -> None:
    patterns = np.random.default_rng(7).integers(0, 2**32, (2000, DIMENSION), dtype=np.uint32).view(np.float32)
    rows = patterns[np.isfinite(patterns).all(axis=1)]
    ids = [f"{i}" for i in range(len(rows))]
    emulator.load("", ids, rows)
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        found = index.fetch(ids=part).vectors
        assert b"".join(bits(found[id_].values) for id_ in part) == rows[start : start + 500].tobytes()


def test_a_write_over_one_transport_is_seen_over_the_other(emulator: PineconeEmulator) -> None:
    rest, rpc = open_index(emulator, "http"), open_index(emulator, "grpc")
    for writer, reader, value in ((rest, rpc, 1.0), (rpc, rest, 2.0), (rest, rpc, 3.0)):
        writer.upsert(vectors=[("a", [value] * DIMENSION, {"v": value})])
        found = reader.fetch(ids=["a"]).vectors["a"]
        assert (found.values, found.metadata) == ([value] * DIMENSION, {"v": value})


def test_everything_survives_a_restart(tmp_path: Path, transport: str) -> None:
    records = strange_records(DIMENSION)
    with PineconeEmulator(tmp_path / "index.db", name="kept", dimension=DIMENSION, metric="euclidean") as emulator:
        for columns in to_columns(records):
            emulator.load(*columns)
        index = open_index(emulator, transport)
        index.update(id="plain", set_metadata={"changed": True}, namespace="plain")
        index.delete(ids=["NULL"], namespace="plain")
        index.delete(delete_all=True, namespace="it's")
    with PineconeEmulator(tmp_path / "index.db", dimension=3) as emulator:
        found = Pinecone(api_key=KEY, host=emulator.host).indexes.describe("kept")
        assert (found.dimension, found.metric) == (DIMENSION, "euclidean")
        index = open_index(emulator, transport)
        emptied = sum(record.namespace == "it's" for record in records)
        assert index.describe_index_stats().total_vector_count == len(records) - emptied - 1
        assert index.describe_namespace(name="it's").record_count == 0
        assert index.fetch(ids=["plain"], namespace="plain").vectors["plain"].metadata["changed"] is True
        assert index.fetch(ids=["NULL"], namespace="plain").vectors == {}


def test_what_is_loaded_before_the_start_and_after_a_stop_is_kept(tmp_path: Path) -> None:
    emulator = PineconeEmulator(tmp_path / "index.db", dimension=DIMENSION)
    emulator.load("", ["before"], vectors(1))
    with emulator:
        assert all_ids(open_index(emulator, "http")) == ["before"]
    emulator.load("", ["after"], vectors(1))
    emulator.stop()
    with PineconeEmulator(tmp_path / "index.db") as emulator:
        assert all_ids(open_index(emulator, "http")) == ["after", "before"]


def test_an_outage_ends_with_the_same_addresses_and_records(
    tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)
    emulator = PineconeEmulator(tmp_path / "index.db", dimension=DIMENSION).start()
    index: Index | GrpcIndex
    if transport == "grpc":
        once = RetryConfig(max_retries=0)
        index = GrpcIndex(host=emulator.grpc_host, api_key=KEY, grpc_scheme="http", retry_config=once)
    else:
        index = open_index(emulator, transport)
    index.upsert(vectors=[("a", [1.0] * DIMENSION)])
    addresses = emulator.host, emulator.grpc_host
    emulator.stop()
    emulator.stop()
    with pytest.raises(sdk.PineconeConnectionError):
        index.fetch(ids=["a"])
    with emulator:
        assert (emulator.host, emulator.grpc_host) == addresses
        assert set(index.fetch(ids=["a"]).vectors) == {"a"}


def test_a_file_is_served_by_one_emulator_at_a_time(tmp_path: Path) -> None:
    with PineconeEmulator(tmp_path / "index.db"), pytest.raises(ConfigError, match="cannot be opened"):
        PineconeEmulator(tmp_path / "index.db")


@pytest.mark.parametrize("which", ["port", "grpc_port"])
def test_a_port_that_is_taken_is_an_error_that_names_it(emulator: PineconeEmulator, tmp_path: Path, which: str) -> None:
    host = emulator.host if which == "port" else emulator.grpc_host
    taken = int(host.rpartition(":")[2])
    refused = PineconeEmulator(tmp_path / "index.db", **{which: taken})
    with pytest.raises(ConfigError, match=f"port {taken} is taken"):
        refused.start()
    with PineconeEmulator(tmp_path / "index.db"):
        pass  # the file is free again


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(ConfigError, match="manhattan"):
        PineconeEmulator(metric="manhattan")


def test_many_clients_write_read_and_list_at_once(tmp_path: Path, transport: str) -> None:
    rows = vectors(400)
    with PineconeEmulator(tmp_path / "index.db", dimension=DIMENSION) as emulator:
        emulator.load("", [f"old{i:03}" for i in range(400)], vectors(400, seed=1))

        def write(worker: int) -> None:
            index = open_index(emulator, transport)
            for i in range(worker, 400, 4):
                index.upsert(vectors=[(f"new{i:03}", rows[i].tolist())])

        def read(_: int) -> None:
            index = open_index(emulator, transport)
            for _ in range(10):
                ids = all_ids(index)
                assert len(ids) == len(set(ids))
                assert sum(id_.startswith("old") for id_ in ids) == 400
                assert len(index.fetch(ids=[f"old{i:03}" for i in range(400)]).vectors) == 400
                assert len(index.query(vector=rows[0].tolist(), top_k=5).matches) == 5

        with ThreadPoolExecutor(8) as pool:
            for done in [*(pool.submit(write, i) for i in range(4)), *(pool.submit(read, i) for i in range(4))]:
                done.result()
        index = open_index(emulator, transport)
        found = index.fetch(ids=[f"new{i:03}" for i in range(400)]).vectors
        assert all(bits(found[f"new{i:03}"].values) == rows[i].tobytes() for i in range(400))


def test_calls_and_read_units_are_counted_over_both_transports(emulator: PineconeEmulator) -> None:
    emulator.load("", [f"{i:03}" for i in range(150)], vectors(150))
    for transport in ("http", "grpc"):
        index = open_index(emulator, transport)
        assert len(all_ids(index)) == 150
        assert index.fetch(ids=[f"{i:03}" for i in range(101)]).usage.read_units == 11
    assert dict(emulator.calls) == {"list": 4, "fetch": 2}
    assert emulator.calls.read_units == 2 * (2 + 11)
    answer = httpx.get(f"{emulator.host}/_sandbox/calls").json()
    assert answer == {"calls": {"list": 4, "fetch": 2}, "read_units": 26}
    before = emulator.calls.copy()
    index.fetch(ids=["000"])
    assert emulator.calls - before == {"fetch": 1}
    emulator.calls.clear()
    assert (dict(emulator.calls), emulator.calls.read_units) == ({}, 0)


def test_the_module_serves_until_told_to_stop_and_keeps_what_was_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amprenta_vectors.sandbox.pinecone", "--file", str(tmp_path / "index.db")]
    command += ["--name", "demo", "--dimension", str(DIMENSION), "--metric", "dotproduct", "--api-key", "secret"]
    for number, end in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                ready = json.loads(process.stdout.readline())
                assert ready["pid"] == process.pid
                client = Pinecone(api_key="secret", host=ready["host"], grpc_scheme="http")
                assert client.indexes.describe("demo").metric == "dotproduct"
                index = client.index(host=ready["grpc_host"], grpc=True)
                assert index.describe_index_stats().total_vector_count == number
                index.upsert(vectors=[(f"{number}", [1.0] * DIMENSION)])
            finally:
                process.send_signal(end)
                code = process.wait(10)
        assert code == (-signal.SIGKILL if end == signal.SIGKILL else 0)


def test_20_thousand_records_open_within_2_seconds(tmp_path: Path) -> None:
    count = 20_000
    metadata = [{"text": "some words " * 10, "page": i, "tags": ["a", "b"]} for i in range(count)]
    emulator = PineconeEmulator(tmp_path / "index.db", dimension=256)
    emulator.load("", [f"doc-{i}" for i in range(count)], vectors(count, 256), metadata)
    emulator.stop()
    started = time.monotonic()
    with PineconeEmulator(tmp_path / "index.db") as emulator:
        assert time.monotonic() - started < 2.0
        assert open_index(emulator, "grpc").describe_index_stats().total_vector_count == count
