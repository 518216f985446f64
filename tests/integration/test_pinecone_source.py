"""A namespace of a Pinecone index as a source: the same records over both transports, and errors by their kind."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import pytest
from backfill_tools import open_pinecone, settings_for, to_ids, to_vectors
from google.protobuf.struct_pb2 import Struct
from pinecone._internal.adapters.vectors_adapter import VectorsAdapter

from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.backends.pinecone.client import ANSWERS, open_index
from amprenta_vectors.backends.pinecone.source import PineconeSource, open_source
from amprenta_vectors.backends.pinecone.transports import GrpcTransport, RestTransport
from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    CredentialsRefused,
    RateLimited,
    SchemaMismatch,
    SourceNotFound,
    TimedOut,
    TransientError,
)
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_records, strange_unstorable, to_columns

StartEmulator = Callable[..., PineconeEmulator]
TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "rest"])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from pinecone._internal.http_client import get_budget_registry

    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)
    get_budget_registry()._reset()


def listed(source: Any) -> list[str]:
    return [key for page, _ in source.iter_keys() for key in page]


def by_key(batch: VectorBatch) -> dict[str, tuple[bytes, str | None, Any]]:
    texts, metadata = batch.texts or [None] * len(batch), batch.metadata or [None] * len(batch)
    return {
        key: (vector.tobytes(), text, repr(fields))
        for key, vector, text, fields in zip(batch.source_keys, batch.vectors, texts, metadata, strict=True)
    }


def test_both_transports_give_the_same_of_the_strangest_records(emulator: StartEmulator) -> None:
    pinecone = emulator()
    records = [*strange_records(8), *strange_unstorable(8)]
    for namespace, ids, vectors, metadata in to_columns(sorted(records, key=lambda record: record.namespace)):
        pinecone.load(namespace, ids, vectors, metadata)
        grpc, rest = (open_pinecone(pinecone, namespace, transport=transport) for transport in ("grpc", "rest"))
        assert sorted(listed(grpc)) == sorted(listed(rest)) == sorted(ids)
        fetched = by_key(grpc.fetch(ids))
        assert fetched == by_key(rest.fetch(ids))
        assert {key: vector for key, (vector, *_) in fetched.items()} == {
            key: vector.tobytes() for key, vector in zip(ids, vectors, strict=True)
        }


@TRANSPORTS
def test_pages_begin_after_any_token_and_keys_that_are_not_there_are_left_out(
    emulator: StartEmulator, transport: str
) -> None:
    pinecone, ids = emulator(), to_ids(250)
    pinecone.load("", ids, to_vectors(250))
    source = open_pinecone(pinecone, transport=transport)
    pages = list(source.iter_keys())
    assert [len(keys) for keys, _ in pages] == [100, 100, 50]
    assert [key for keys, _ in source.iter_keys(pages[0][1]) for key in keys] == ids[100:]
    assert pages[-1][1] is None
    batch = source.fetch([ids[3], "not there", ids[7]])
    assert sorted(batch.source_keys) == [ids[3], ids[7]]
    assert source.fetch(["not there"]).vectors.shape == (0, 8)


@TRANSPORTS
def test_a_fetch_of_many_long_ids_is_cut_into_requests_that_pinecone_takes(
    emulator: StartEmulator, transport: str
) -> None:
    pinecone = emulator()
    ids = [f"{number:04d}" + "&" * 508 for number in range(1200)]
    pinecone.load("", ids, to_vectors(1200))
    source = open_pinecone(pinecone, transport=transport)
    assert sorted(source.fetch(ids).source_keys) == ids
    # Every & takes three characters of a URL of at most 65,536.
    assert pinecone.calls["fetch"] == (2 if transport == "grpc" else 31)


@TRANSPORTS
def test_without_metadata_neither_texts_nor_fields_are_read(emulator: StartEmulator, transport: str) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1), [{"text": "x"}])
    batch = open_pinecone(pinecone, transport=transport, with_metadata=False).fetch(["a"])
    assert (batch.texts, batch.metadata) == (None, None)


@TRANSPORTS
def test_a_text_field_that_holds_no_text_stays_a_field(emulator: StartEmulator, transport: str) -> None:
    pinecone = emulator()
    pinecone.load("", ["a", "b", "c"], to_vectors(3), [{"text": 5}, {"text": ["x"]}, {"other": "x"}])
    batch = open_pinecone(pinecone, transport=transport).fetch(["a", "b", "c"])
    found = {key: value[1:] for key, value in by_key(batch).items()}
    assert found == {"a": (None, "{'text': 5}"), "b": (None, "{'text': ['x']}"), "c": (None, "{'other': 'x'}")}


@TRANSPORTS
def test_a_token_of_another_listing_is_refused(emulator: StartEmulator, transport: str) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(150), to_vectors(150))
    source = open_pinecone(pinecone, transport=transport)
    with pytest.raises(TokenRefused):
        next(iter(source.iter_keys("stale")))
    assert len(listed(source)) == 150


ERRORS: dict[int, type[AmprentaError]] = {
    401: CredentialsRefused,
    403: CredentialsRefused,
    404: SourceNotFound,
    429: RateLimited,
    500: TransientError,
    503: TransientError,
    504: TimedOut,
}


@TRANSPORTS
@pytest.mark.parametrize("status", ERRORS)
def test_an_error_is_of_the_kind_that_decides_what_follows(
    emulator: StartEmulator, transport: str, status: int
) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1))
    source = open_pinecone(pinecone, transport=transport)
    pinecone.faults.set("*", Fault(status=status, retry_after=2.0 if status == 429 else None))
    for attempt in (lambda: source.fetch(["a"]), lambda: listed(source)):
        with pytest.raises(AmprentaError) as caught:
            attempt()
        assert type(caught.value) is ERRORS[status]
        assert getattr(caught.value, "retry_after", 2.0) == 2.0
        assert "test-key" not in str(caught.value)


@TRANSPORTS
@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(truncate=True)], ids=["reset", "truncated"])
def test_an_answer_that_breaks_off_passes(emulator: StartEmulator, transport: str, fault: Fault) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(500), to_vectors(500))
    source = open_pinecone(pinecone, transport=transport)
    pinecone.faults.set("*", fault)
    for attempt in (lambda: source.fetch(to_ids(500)), lambda: listed(source)):
        with pytest.raises(TransientError):
            attempt()


def test_a_namespace_that_is_not_there_is_named_beside_those_that_are(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1))
    pinecone.load("other", ["a", "b"], to_vectors(2))
    with pytest.raises(SourceNotFound, match=r"no namespace 'absent'; it has: __default__ \(1\), other \(2\)"):
        open_pinecone(pinecone, "absent")


def test_the_default_namespace_goes_by_both_its_names(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("__default__", ["a"], to_vectors(1))
    both = [open_pinecone(pinecone, namespace) for namespace in ("", "__default__")]
    assert both[0].description == both[1].description
    assert [listed(source) for source in both] == [["a"], ["a"]]


def test_what_a_source_says_of_itself_has_no_secret(emulator: StartEmulator) -> None:
    pinecone = emulator(metric="dotproduct")
    pinecone.load("ns", to_ids(3), to_vectors(3))
    described = open_pinecone(pinecone, "ns").description
    assert (described.kind, described.dimension, described.distance, described.count) == ("pinecone", 8, "ip", 3)
    assert described.identity.endswith("/ns")
    assert "test-key" not in repr(described)


def test_an_index_without_dense_vectors_is_refused(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1))
    index = replace(open_index(settings_for(pinecone)), dimension=None)
    with pytest.raises(SchemaMismatch, match="no dense vectors"):
        PineconeSource(index, "", RestTransport(index), None, 0)


def test_the_key_never_crosses_a_network_unencrypted(emulator: StartEmulator) -> None:
    index = open_index(settings_for(emulator()))
    with pytest.raises(ConfigError, match="unencrypted"):
        GrpcTransport(replace(index, grpc_host="http://example.com:80"))


def test_a_refused_key_is_said_when_the_index_is_opened(emulator: StartEmulator) -> None:
    settings = settings_for(emulator()).model_copy(update={"pinecone_index_name": "another"})
    with pytest.raises(SourceNotFound, match="another"):
        open_source(settings, open_index(settings), "")


def test_metadata_is_read_without_a_detour_over_json() -> None:
    struct = Struct()
    values = {
        "s": "x",
        "n": 1.5,
        "b": True,
        "none": None,
        "list": ["a", 1.0, None, {"k": [False]}],
        "nan": float("inf"),
    }
    struct.update(values)
    assert wire.decode_struct(struct.SerializeToString()) == values
    assert wire.decode_struct(b"") == {}


def test_a_vector_stays_the_bytes_it_came_as(emulator: StartEmulator) -> None:
    pinecone = emulator()
    bits = np.random.default_rng(2).integers(0, 2**32, (300, 8), dtype=np.uint32).view(np.float32)
    pinecone.load("", to_ids(300), bits)
    batch = open_pinecone(pinecone).fetch(to_ids(300))
    assert {key: vector.tobytes() for key, vector in zip(batch.source_keys, batch.vectors, strict=True)} == {
        key: vector.tobytes() for key, vector in zip(to_ids(300), bits, strict=True)
    }


def test_a_rest_call_that_fails_is_one_request_so_that_trying_again_is_ours_alone(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(500), to_vectors(500))
    source = open_pinecone(pinecone, transport="rest")
    for fault in (Fault(status=429, retry_after=1.0), Fault(status=503), Fault(reset=True), Fault(truncate=True)):
        pinecone.faults.set("*", fault)
        pinecone.calls.clear()
        with pytest.raises(TransientError):
            source.fetch(to_ids(500))
        with pytest.raises(TransientError):
            listed(source)
        assert (pinecone.calls["fetch"], pinecone.calls["list"]) == (1, 1)


def test_failures_without_number_do_not_end_the_trying_over_rest(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(100), to_vectors(100))
    source = open_pinecone(pinecone, transport="rest")
    retry = Backoff(60.0, threading.Event(), lambda reason: None, longest_wait_seconds=0.0)
    # The SDK gives up trying for good at 50 failures in one process, of any of its clients.
    for fault in (Fault(status=503, times=70), Fault(truncate=True, times=70)):
        pinecone.faults.set("*", fault)
        assert len(retry(lambda: source.fetch(to_ids(100)))) == 100


def test_grpc_is_used_where_it_is_open(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(3), to_vectors(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        source = open_pinecone(pinecone, transport="auto")
    assert source.transport == "grpc"
    assert len(source.fetch(to_ids(3))) == 3


def test_rest_is_used_with_a_warning_where_grpc_is_not_open(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(3), to_vectors(3))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for grpc_host in (f"http://127.0.0.1:{closed.getsockname()[1]}", pinecone.host):
            settings = settings_for(pinecone).model_copy(update={"pinecone_grpc_host": grpc_host})
            with pytest.warns(UserWarning, match="over REST, which is several times slower"):
                source = open_source(settings, open_index(settings), "")
            assert source.transport == "rest"
            assert listed(source) == to_ids(3)


def test_a_key_that_grpc_refuses_is_no_closed_port(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", to_ids(3), to_vectors(3))
    index = replace(open_index(settings_for(pinecone)), api_key="wrong")
    source = open_source(settings_for(pinecone), index, "")
    assert source.transport == "grpc"
    with pytest.raises(CredentialsRefused):
        source.fetch(["a"])


@TRANSPORTS
def test_a_pod_index_gives_what_is_asked_for_by_key_and_says_that_it_lists_nothing(
    emulator: StartEmulator, transport: str
) -> None:
    pinecone = emulator(kind="pod")
    pinecone.load("", to_ids(3), to_vectors(3))
    source = open_pinecone(pinecone, transport=transport)
    assert len(source.fetch(to_ids(3))) == 3
    assert not source.description.lists
    with pytest.raises(ConfigError, match="pod index cannot list") as caught:
        source.iter_keys()
    assert "--keys-from table" in caught.value.hint
    assert pinecone.calls["list"] == 0


def test_every_answer_that_workers_decode_is_known_to_msgspec_before_there_are_any() -> None:
    kinds = ("stats", "fetch", "list", "query", "update", "upsert")
    decoded = {get_type_hints(getattr(VectorsAdapter, f"to_{kind}_response"))["return"] for kind in kinds}
    assert decoded == set(ANSWERS)
