"""A Pinecone document index: read through the official client, and carried over like an index of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import expected, open_pinecone, run_job, settings_for, stored, to_ids, to_job, to_vectors
from pinecone import Pinecone
from pinecone.errors.exceptions import ApiError

from amprenta_vectors.backends import listing
from amprenta_vectors.backends.pinecone.client import open_index
from amprenta_vectors.backends.pinecone.source import open_source
from amprenta_vectors.backends.pinecone.store import PineconeStore
from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.errors import ConfigError, SchemaMismatch, TransientError
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_records

StartEmulator = Callable[..., PineconeEmulator]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)


def documents(ids: list[str], vectors: Any, field: str = "embedding", **more: Any) -> list[dict[str, Any]]:
    return [{"_id": id_, field: vector, **more} for id_, vector in zip(ids, vectors.tolist(), strict=True)]


def handle(emulator: PineconeEmulator) -> Any:
    return Pinecone(api_key="test-key").index(host=emulator.host)


def listed(source: Any) -> list[str]:
    return [key for page, _ in source.iter_keys() for key in page]


def test_the_official_client_writes_and_reads_documents(emulator: StartEmulator) -> None:
    index = handle(emulator(kind="documents"))
    ids, vectors = to_ids(250), to_vectors(250)
    for start in (0, 125):
        answer = index.documents.upsert(
            namespace="ns", documents=documents(ids, vectors, text="x", year=2024)[start : start + 125]
        )
        assert answer.upserted_count == 125
    assert sorted(item.id for item in index.documents.list(namespace="ns")) == ids
    assert [item.id for item in index.documents.list(namespace="ns", prefix="chunk-00000")] == ids[:10]
    fetched = index.documents.fetch(namespace="ns", ids=[ids[7], "not there"]).documents
    assert list(fetched) == [ids[7]]
    assert (fetched[ids[7]].text, fetched[ids[7]].year) == ("x", 2024)
    assert np.array(fetched[ids[7]].embedding, np.float32).tobytes() == vectors[7].tobytes()
    assert index.describe_index_stats().namespaces["ns"].vector_count == 250


def test_a_document_without_its_vector_is_refused(emulator: StartEmulator) -> None:
    index = handle(emulator(kind="documents"))
    for document in ({"_id": "a", "text": "x"}, {"_id": "a", "embedding": [1.0]}):
        with pytest.raises(ApiError, match=r"embedding|dimension"):
            index.documents.upsert(namespace="ns", documents=[document])


def test_the_kinds_refuse_each_others_calls(emulator: StartEmulator) -> None:
    of_documents, of_vectors = emulator(kind="documents"), emulator()
    for call in (
        lambda index: index.list_paginated(),
        lambda index: index.fetch(ids=["a"]),
        lambda index: index.query(vector=[1.0] * 8, top_k=1),
        lambda index: index.upsert(vectors=[("a", [1.0] * 8)]),
    ):
        with pytest.raises(ApiError, match="use the document operations"):
            call(handle(of_documents))
    with pytest.raises(ApiError, match="use the vector operations"):
        handle(of_vectors).documents.fetch(namespace="ns", ids=["a"])
    with pytest.raises(ApiError, match="use the document operations"):
        Pinecone(api_key="test-key", grpc_scheme="http").index(host=of_documents.grpc_host, grpc=True).fetch(ids=["a"])


@pytest.mark.parametrize("transport", ["auto", "grpc", "rest"])
def test_documents_are_read_over_rest_whatever_is_set(emulator: StartEmulator, transport: str) -> None:
    pinecone = emulator(kind="documents")
    pinecone.load_documents("", documents(to_ids(3), to_vectors(3)))
    source = open_pinecone(pinecone, transport=transport)
    assert source.transport == "rest"
    assert sorted(source.fetch(to_ids(3)).source_keys) == to_ids(3)


def test_text_and_metadata_are_the_other_fields(emulator: StartEmulator) -> None:
    pinecone = emulator(kind="documents", metric="dotproduct", vector_fields=("embedding", "other"))
    [vector, other] = to_vectors(2).tolist()
    terms = {"indices": [3, 5], "values": [0.5, 1.0]}
    plain = {"text": "the text", "year": 2024.0, "share": 0.5, "open": True, "tags": ["a", "b"]}
    pinecone.load_documents("", [{"_id": "a", "embedding": vector, "other": other, "terms": terms, **plain}])
    settings = settings_for(pinecone, pinecone_vector_field="other")
    index = open_index(settings)
    batch = open_source(settings, index, "", with_sparse=True).fetch(["a"])
    assert batch.texts == ["the text"]
    assert batch.metadata == [{"year": 2024, "share": 0.5, "open": True, "tags": ["a", "b"]}]
    assert batch.vectors.tobytes() == np.array(other, np.float32).tobytes()
    assert batch.sparse is not None
    assert batch.sparse[0] is not None
    assert [values.tolist() for values in batch.sparse[0]] == [[3, 5], [0.5, 1.0]]
    without = open_source(settings, index, "").fetch(["a"])
    assert [error.reason for error in without.quarantined] == ["sparse_without_column"]


def test_of_several_vector_fields_one_is_to_be_chosen(emulator: StartEmulator) -> None:
    pinecone = emulator(kind="documents", vector_fields=("title_vector", "body_vector"))
    pinecone.load_documents("", [{"_id": "a", "title_vector": [1.0] * 8, "body_vector": [2.0] * 8}])
    with pytest.raises(ConfigError, match=r"body_vector \(8\), title_vector \(8\)") as caught:
        open_pinecone(pinecone)
    assert "export PINECONE_VECTOR_FIELD=body_vector" in caught.value.hint
    with pytest.raises(ConfigError, match="no field 'absent' of vectors; it has: body_vector, title_vector"):
        open_index(settings_for(pinecone, pinecone_vector_field="absent"))
    fields = ("body_vector", "title_vector")
    identities = {open_index(settings_for(pinecone, pinecone_vector_field=field)).named for field in fields}
    assert len(identities) == 2


def test_the_strangest_documents_are_listed_by_several_cursors(
    emulator: StartEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PROBE_SHARE", 20.0)
    pinecone = emulator(kind="documents")
    records = [record for record in strange_records(8) if record.namespace == "a/b?c=d&e#f"]
    rows = [{**record.metadata, "_id": record.id, "embedding": record.vector} for record in records]
    rows += documents(to_ids(700), to_vectors(700))
    pinecone.load_documents("a/b?c=d&e#f", rows)
    source = open_pinecone(pinecone, "a/b?c=d&e#f")
    ids = [row["_id"] for row in rows]
    assert sorted(listed(source)) == sorted(ids)
    found = source.fetch(ids)
    vectors = {row["_id"]: np.asarray(row["embedding"], np.float32).tobytes() for row in rows}
    assert {key: vector.tobytes() for key, vector in zip(found.source_keys, found.vectors, strict=True)} == vectors


def test_errors_are_of_the_same_kinds_as_those_of_vectors(emulator: StartEmulator) -> None:
    pinecone = emulator(kind="documents")
    pinecone.load_documents("", documents(to_ids(150), to_vectors(150)))
    source = open_pinecone(pinecone)
    with pytest.raises(TokenRefused):
        next(source.iter_keys('[[["","stale"]],[],0]'))
    for fault in (Fault(status=503), Fault(truncate=True), Fault(reset=True)):
        pinecone.faults.set("*", fault)
        pinecone.calls.clear()
        for attempt in (lambda: source.fetch(to_ids(150)), lambda: listed(source)):
            with pytest.raises(TransientError):
                attempt()
        assert (pinecone.calls["fetch"], pinecone.calls["list"]) == (1, 1)


def test_a_backfill_carries_documents_over(emulator: StartEmulator, engine: sa.Engine) -> None:
    pinecone = emulator(kind="documents")
    ids, vectors = to_ids(320), to_vectors(320)
    pinecone.load_documents("ns", documents(ids, vectors, text="its text", year=2024))
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone, "ns"), namespace="ns"))
    assert (summary.counts.written, summary.errors) == (320, {})
    assert stored(engine, "ns") == expected(ids, vectors)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT DISTINCT content, metadata FROM rag_chunks")).all()
    assert [(content, fields) for content, fields in rows] == [("its text", {"year": 2024})]


def test_a_store_says_that_it_does_not_query_documents(emulator: StartEmulator) -> None:
    index = open_index(settings_for(emulator(kind="documents")))
    with pytest.raises(SchemaMismatch, match="document index"):
        PineconeStore(index, "", "text")


def test_an_index_file_keeps_its_kind(emulator: StartEmulator, tmp_path: Any) -> None:
    path = tmp_path / "index.db"
    first = emulator(kind="documents", path=path, vector_fields=("v",))
    first.load_documents("", documents(["a"], to_vectors(1), field="v"))
    first.stop()
    again = open_index(settings_for(emulator(path=path)))
    assert (again.kind, again.vector_field) == ("documents", "v")
