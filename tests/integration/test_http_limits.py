"""What one request may take, and all of them together: the size of a body, time, requests in hand."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from http_service import InMemoryModels, asking, bearer, is_problem
from waiting import until

from amprenta_vectors.service import health, limits

SEARCH = "/api/v1/search"
JSON = {"Content-Type": "application/json"}
HUNDRED_MB = 100 * 2**20
CHUNK = 2**20


@pytest.fixture
def models() -> InMemoryModels:
    return InMemoryModels()


@pytest.fixture
def client(models: InMemoryModels) -> Iterator[httpx.Client]:
    with asking(models, request_seconds=0.5) as client:
        yield client


@pytest.fixture
def patient(models: InMemoryModels) -> Iterator[httpx.Client]:
    with asking(models) as client:
        yield client


class Body:
    """A body that is made while it is sent, and counts what was taken of it."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.left > 0:
            self.left -= CHUNK
            self.sent += CHUNK
            yield b"x" * CHUNK


def connect(client: httpx.Client) -> socket.socket:
    address = urlsplit(str(client.base_url))
    return socket.create_connection((address.hostname, address.port), timeout=60)


def start_of(client: httpx.Client, *headers: str) -> bytes:
    lines = [f"POST {SEARCH} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in bearer().items()), *headers]
    return "\r\n".join((*lines, "", "")).encode()


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while more := connection.recv(65536):
        found += more
    return found


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
def test_a_body_of_100_mb_is_413_and_is_held_nowhere(patient: httpx.Client, announced: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = JSON | ({"Content-Length": str(HUNDRED_MB)} if announced else {})
    answer = patient.post(SEARCH, content=iter(Body(HUNDRED_MB)), headers=headers)
    is_problem(answer, 413)
    assert answer.headers["connection"] == "close"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


def test_a_body_that_is_announced_too_large_is_413_before_any_of_it_came(patient: httpx.Client) -> None:
    with closing(connect(patient)) as connection:
        connection.sendall(start_of(patient, "Content-Type: application/json", f"Content-Length: {HUNDRED_MB}"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_without_end_is_413_and_the_connection_ends(patient: httpx.Client) -> None:
    with closing(connect(patient)) as connection:
        connection.sendall(start_of(patient, "Content-Type: application/json", "Transfer-Encoding: chunked"))
        connection.settimeout(0.05)
        began = time.monotonic()
        answer = send_until_closed(connection, b"10000\r\n" + b"x" * 2**16 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert limits.LINGER_SECONDS / 2 < time.monotonic() - began < 30


def send_until_closed(connection: socket.socket, chunk: bytes) -> bytes:
    """What is answered while a chunk is sent again and again, for a minute at most."""
    answer, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(TimeoutError):
            try:
                connection.sendall(chunk)
                found = connection.recv(65536)
            except ConnectionError:
                return answer
            if not found:
                return answer
            answer += found
    raise AssertionError("the connection is open still")


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(patient: httpx.Client) -> None:
    body = json.dumps({"query": "red"}).encode()
    for spaces, status in ((0, 200), (1, 413)):
        padded = body + b" " * (limits.MAX_BODY_BYTES - len(body) + spaces)
        assert patient.post(SEARCH, content=padded, headers=JSON).status_code == status
        assert patient.post(SEARCH, content=iter([padded]), headers=JSON).status_code == status


def test_a_client_that_waits_for_leave_is_not_asked_for_a_body_that_is_too_large(patient: httpx.Client) -> None:
    with closing(connect(patient)) as connection:
        connection.sendall(start_of(patient, f"Content-Length: {HUNDRED_MB}", "Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_408(patient: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    with closing(connect(patient)) as connection:
        connection.sendall(start_of(patient, "Content-Type: application/json", "Content-Length: 100") + b"{")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


def test_a_request_that_takes_too_long_is_504_and_its_work_is_cancelled(
    client: httpx.Client, models: InMemoryModels
) -> None:
    models.holds.set()
    for answer in (client.post(SEARCH, json={"query": "red"}), client.get("/api/v1/models/search")):
        is_problem(answer, 504)
    assert (models.cancelled, models.waiting) == (2, 0)
    models.holds.clear()
    assert client.post(SEARCH, json={"query": "red"}).status_code == 200


def test_a_client_that_goes_away_leaves_a_server_that_answers_others(
    client: httpx.Client, models: InMemoryModels
) -> None:
    models.holds.set()
    for _ in range(3):
        with closing(connect(client)) as connection:
            body = b'{"query": "red"}'
            connection.sendall(
                start_of(client, "Content-Type: application/json", f"Content-Length: {len(body)}") + body
            )
            until(lambda: models.waiting > 0)
        with closing(connect(client)) as connection:
            connection.sendall(start_of(client, "Content-Length: 10")[:60])
    until(lambda: models.waiting == 0)
    models.holds.clear()
    assert client.post(SEARCH, json={"query": "red"}).status_code == 200


def test_beyond_so_many_requests_in_hand_the_next_is_503_and_probes_are_answered(
    patient: httpx.Client, models: InMemoryModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_IN_HAND", 2)
    models.holds.set()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(patient.post, SEARCH, json={"query": "red"}) for _ in range(2)]
        until(lambda: models.waiting == 2)
        refused = patient.post(SEARCH, json={"query": "red"})
        is_problem(refused, 503)
        assert refused.headers["retry-after"] == "1"
        assert patient.get("/health").status_code == 200
        models.holds.clear()
        assert [each.result().status_code for each in asked] == [200, 200]
    assert patient.post(SEARCH, json={"query": "red"}).status_code == 200


def test_a_live_process_is_ready_while_its_database_answers(
    patient: httpx.Client, models: InMemoryModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(health, "PING_SECONDS", 0.2)
    assert patient.get("/health/ready").json() == {"status": "ok"}
    models.fails = ConnectionError("postgresql://me:secret@db")
    answer = patient.get("/health/ready")
    assert is_problem(answer, 503)["detail"] == "the database does not answer"
    assert "retry-after" in answer.headers
    models.fails = None
    models.holds.set()
    is_problem(patient.get("/health/ready"), 503)
    assert patient.get("/health").json() == {"status": "ok"}
    models.holds.clear()
    assert patient.get("/health/ready").status_code == 200


def test_however_often_readiness_is_asked_the_database_is_asked_once_a_second(
    patient: httpx.Client, models: InMemoryModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "KEPT_SECONDS", 60.0)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: patient.get("/health/ready").status_code, range(40)))
    assert (set(answers), models.pings) == ({200}, 1)


def test_the_server_closes_the_models_system_when_it_ends(models: InMemoryModels) -> None:
    with asking(models) as client:
        assert client.get("/health").status_code == 200
        assert not models.closed
    assert models.closed
