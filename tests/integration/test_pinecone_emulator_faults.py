"""Every failure that the emulator can be told to have, as Pinecone's own client meets it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from pinecone import Pinecone, RetryConfig
from pinecone.errors import exceptions as sdk
from pinecone.grpc import GrpcIndex
from pinecone.index import Index

from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

KEY = "sandbox-key"
DIMENSION = 4
ATTEMPTS = 4
"""How often the client asks over HTTP before it gives up."""


@pytest.fixture
def emulator() -> Iterator[PineconeEmulator]:
    with PineconeEmulator(dimension=DIMENSION) as emulator:
        emulator.load("", ["a", "b"], [[1, 2, 3, 4], [4, 3, 2, 1]])
        yield emulator


@pytest.fixture
def rest(emulator: PineconeEmulator, monkeypatch: pytest.MonkeyPatch) -> Index:
    from pinecone._internal.http_client import get_budget_registry

    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)
    # The client stops retrying against a host after a burst of failures, and every test here is on the same host.
    get_budget_registry()._reset()
    return Index(host=emulator.host, api_key=KEY, timeout=0.5)


@pytest.fixture
def rpc(emulator: PineconeEmulator) -> GrpcIndex:
    once = RetryConfig(max_retries=0)
    return GrpcIndex(host=emulator.grpc_host, api_key=KEY, grpc_scheme="http", retry_config=once, timeout=0.5)


HTTP_ERRORS: dict[int, type[Exception]] = {
    400: sdk.ApiError,
    401: sdk.UnauthorizedError,
    402: sdk.PaymentRequiredError,
    403: sdk.ForbiddenError,
    404: sdk.NotFoundError,
    409: sdk.ConflictError,
    412: sdk.FailedPreconditionError,
    413: sdk.PayloadTooLargeError,
    429: sdk.RateLimitError,
    500: sdk.ServiceError,
    503: sdk.ServiceError,
}

GRPC_CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    418: grpc.StatusCode.UNKNOWN,
}

GRPC_ERRORS: dict[int, type[Exception]] = {
    400: sdk.ApiError,
    401: sdk.UnauthorizedError,
    403: sdk.ForbiddenError,
    404: sdk.NotFoundError,
    500: sdk.ServiceError,
    503: sdk.PineconeConnectionError,
    504: sdk.PineconeTimeoutError,
}


def raw_fetch(emulator: PineconeEmulator, **options: Any) -> Any:
    """A fetch of "a" through grpc alone, whose errors show what was on the wire."""
    with grpc.insecure_channel(emulator.grpc_host.removeprefix("http://")) as channel:
        call = channel.unary_unary(f"/{wire.SERVICE}/Fetch")
        request = wire.FetchRequest(ids=["a"]).SerializeToString()
        return wire.FetchResponse.FromString(call(request, metadata=[("api-key", KEY)], **options))


@pytest.mark.parametrize("status", HTTP_ERRORS)
def test_a_status_is_its_own_error_over_http(emulator: PineconeEmulator, rest: Index, status: int) -> None:
    emulator.faults.set("fetch", Fault(status=status))
    with pytest.raises(HTTP_ERRORS[status], match="told to fail") as caught:
        rest.fetch(ids=["a"])
    assert getattr(caught.value, "status_code", None) == status


@pytest.mark.parametrize("status", GRPC_ERRORS)
def test_a_status_is_its_own_error_over_grpc(emulator: PineconeEmulator, rpc: GrpcIndex, status: int) -> None:
    emulator.faults.set("fetch", Fault(status=status))
    with pytest.raises(GRPC_ERRORS[status], match="told to fail"):
        rpc.fetch(ids=["a"])


@pytest.mark.parametrize("status", GRPC_CODES)
def test_a_status_has_its_code_on_the_grpc_wire(emulator: PineconeEmulator, status: int) -> None:
    emulator.faults.set("fetch", Fault(status=status))
    with pytest.raises(grpc.RpcError) as caught:
        raw_fetch(emulator)
    assert caught.value.code() is GRPC_CODES[status]


def test_the_control_plane_words_its_errors_its_own_way(emulator: PineconeEmulator, rest: Index) -> None:
    emulator.faults.set("describe", Fault(status=403))
    with pytest.raises(sdk.ForbiddenError, match="told to fail") as caught:
        Pinecone(api_key=KEY, host=emulator.host).indexes.describe("sandbox")
    assert caught.value.error_code == "FORBIDDEN"
    assert caught.value.body["status"] == 403


def test_a_rate_limit_says_how_long_to_wait(emulator: PineconeEmulator, rest: Index) -> None:
    emulator.faults.set("query", Fault(status=429, retry_after=2.5))
    with pytest.raises(sdk.RateLimitError) as caught:
        rest.query(id="a", top_k=1)
    assert caught.value.retry_after == 2.5
    emulator.faults.set("fetch", Fault(status=429, retry_after=3))
    with pytest.raises(grpc.RpcError) as error:
        raw_fetch(emulator)
    trailers = {item.key: item.value for item in error.value.trailing_metadata()}
    assert (trailers["retry-after"], trailers["grpc-retry-pushback-ms"]) == ("3", "3000")


def test_the_client_gets_through_when_the_fault_has_had_its_times(emulator: PineconeEmulator, rest: Index) -> None:
    emulator.faults.set("fetch", Fault(status=503, times=ATTEMPTS - 1))
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}
    assert emulator.calls["fetch"] == ATTEMPTS
    emulator.faults.set("fetch", Fault(status=503, times=ATTEMPTS))
    with pytest.raises(sdk.ServiceError):
        rest.fetch(ids=["a"])
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}


def test_a_reset_reaches_the_client_as_a_reset(emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex) -> None:
    emulator.faults.set("fetch", Fault(reset=True))
    with pytest.raises(sdk.PineconeConnectionError, match="reset"):
        rest.fetch(ids=["a"])
    with pytest.raises(sdk.PineconeConnectionError, match="reset"):
        rpc.fetch(ids=["a"])
    emulator.faults.clear()
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}
    assert set(rpc.fetch(ids=["a"]).vectors) == {"a"}


def test_a_cut_answer_is_a_lost_connection_that_the_client_does_not_retry(
    emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex
) -> None:
    emulator.faults.set("fetch", Fault(truncate=True))
    with pytest.raises(sdk.PineconeConnectionError):
        rest.fetch(ids=["a"])
    assert emulator.calls["fetch"] == 1
    with pytest.raises(sdk.PineconeConnectionError):
        rpc.fetch(ids=["a"])


def test_a_cut_answer_comes_with_its_full_length_announced(emulator: PineconeEmulator) -> None:
    whole = httpx.get(f"{emulator.host}/vectors/fetch?ids=a", headers={"Api-Key": KEY}).content
    emulator.faults.set("fetch", Fault(truncate=True))
    request = f"GET /vectors/fetch?ids=a HTTP/1.1\r\nHost: x\r\nApi-Key: {KEY}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(emulator.host.rpartition(":")[2]))) as connection:
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(whole)}".encode() in head
    assert body == whole[: len(whole) // 2]


def test_a_write_whose_answer_is_cut_was_done_and_one_reset_was_not(emulator: PineconeEmulator, rest: Index) -> None:
    emulator.faults.set("upsert", Fault(truncate=True))
    with pytest.raises(sdk.PineconeConnectionError):
        rest.upsert(vectors=[("cut", [1.0] * DIMENSION)])
    emulator.faults.set("upsert", Fault(reset=True))
    with pytest.raises(sdk.PineconeConnectionError):
        rest.upsert(vectors=[("reset", [1.0] * DIMENSION)])
    assert set(rest.fetch(ids=["cut", "reset"]).vectors) == {"cut"}


@pytest.mark.parametrize("fault", [Fault(stall=5.0, times=1), Fault(latency=5.0)], ids=["stall", "latency"])
def test_a_late_answer_is_a_time_out(emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex, fault: Fault) -> None:
    for index in (rest, rpc):
        emulator.faults.set("fetch", fault)
        with pytest.raises(sdk.PineconeTimeoutError):
            index.fetch(ids=["a"])


def test_a_stop_does_not_wait_for_stalled_answers(emulator: PineconeEmulator, rpc: GrpcIndex) -> None:
    emulator.faults.set("*", Fault(latency=60.0))
    with pytest.raises(sdk.PineconeTimeoutError):
        rpc.fetch(ids=["a"])
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{emulator.host}/indexes", headers={"Api-Key": KEY}, timeout=0.1)
    started = time.monotonic()
    emulator.stop()
    assert time.monotonic() - started < 2.0


def test_latency_delays_every_answer_and_changes_none(emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex) -> None:
    emulator.faults.set("*", Fault(latency=0.1))
    for index in (rest, rpc):
        started = time.monotonic()
        assert set(index.fetch(ids=["a"]).vectors) == {"a"}
        assert time.monotonic() - started >= 0.1


def test_a_stall_within_patience_costs_time_only(emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex) -> None:
    emulator.faults.set("fetch", Fault(stall=0.1))
    for index in (rest, rpc):
        started = time.monotonic()
        assert set(index.fetch(ids=["a"]).vectors) == {"a"}
        assert time.monotonic() - started >= 0.1


def test_requests_above_the_rate_are_told_to_come_later(emulator: PineconeEmulator) -> None:
    emulator.faults.set("fetch", Fault(rate=5.0))
    with httpx.Client(base_url=emulator.host, headers={"Api-Key": KEY}) as client:
        answers = [client.get("/vectors/fetch?ids=a") for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 10 <= len(refused) <= 15
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


def test_a_fault_meets_its_own_route_only(emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex) -> None:
    emulator.faults.set("list", Fault(status=500))
    for index in (rest, rpc):
        assert set(index.fetch(ids=["a"]).vectors) == {"a"}
        with pytest.raises(sdk.ServiceError):
            index.list_paginated()


ROUTES = {
    "stats": lambda index: index.describe_index_stats(),
    "namespaces": lambda index: index.list_namespaces_paginated(),
    "list": lambda index: index.list_paginated(),
    "fetch": lambda index: index.fetch(ids=["a"]),
    "fetch_by_metadata": lambda index: index.fetch_by_metadata(filter={"a": 1}),
    "query": lambda index: index.query(id="a", top_k=1),
    "upsert": lambda index: index.upsert(vectors=[("a", [1.0] * DIMENSION)]),
    "update": lambda index: index.update(id="a", set_metadata={"a": 1}),
    "delete": lambda index: index.delete(ids=["a"]),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_fails_by_its_own_name_and_by_the_star(
    emulator: PineconeEmulator, rest: Index, rpc: GrpcIndex, route: str
) -> None:
    for name in (route, "*"):
        emulator.faults.set(name, Fault(status=404, times=2))
        for index in (rest, rpc):
            with pytest.raises(sdk.NotFoundError, match="told to fail"):
                ROUTES[route](index)
    ROUTES[route](rest)
    ROUTES[route](rpc)


def test_another_process_sets_and_ends_faults_over_http(emulator: PineconeEmulator, rest: Index) -> None:
    admin = f"{emulator.host}/_sandbox/faults"
    assert httpx.put(admin, json={"fetch": {"status": 401}, "list": {"latency": 0.01}}).status_code == 200
    with pytest.raises(sdk.UnauthorizedError):
        rest.fetch(ids=["a"])
    assert httpx.delete(admin).status_code == 200
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        '{"fetch": 1}',
        '{"nowhere": {}}',
        '{"fetch": {"colour": 1}}',
        '{"fetch": {"status": 200}}',
        '{"*": {"rate": 0}}',
        '{"*": {"latency": "long"}}',
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(emulator: PineconeEmulator, rest: Index, body: str) -> None:
    answer = httpx.put(f"{emulator.host}/_sandbox/faults", content=body)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}


def test_a_client_that_hangs_up_harms_nobody_else(
    emulator: PineconeEmulator, rest: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.faults.set("fetch", Fault(latency=0.1, times=1))
    with socket.create_connection(("127.0.0.1", int(emulator.host.rpartition(":")[2]))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(f"GET /vectors/fetch?ids=a HTTP/1.1\r\nHost: x\r\nApi-Key: {KEY}\r\n\r\n".encode())
    time.sleep(0.2)
    assert set(rest.fetch(ids=["a"]).vectors) == {"a"}
    assert capsys.readouterr().err == ""
