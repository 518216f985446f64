"""``amprenta-vectors serve`` as a process: where it listens, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from http_service import AUDIENCE, ISSUER, SECRET, bearer
from waiting import until

from amprenta_vectors.cli import main

TESTS = Path(__file__).parents[1]
SEARCH = "/api/v1/search"
TOKENS = {
    "AMPRENTA_JWT_ALGORITHM": "HS256",
    "AMPRENTA_JWT_SECRET": SECRET,
    "AMPRENTA_JWT_ISSUER": ISSUER,
    "AMPRENTA_JWT_AUDIENCE": AUDIENCE,
}
Launch = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A file; while it is there, calls wait."""
    return tmp_path / "hold"


@pytest.fixture
def launch(held: Path, tmp_path: Path) -> Iterator[Launch]:
    """A function that starts the command; the process, and the address that it says it serves at."""
    processes = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        said = tmp_path / "said"
        with said.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, str(TESTS / "http_process.py"), "--port", "0", *arguments],
                env={**os.environ, **TOKENS, "HOLD": str(held), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        processes.append(process)
        until(lambda: "serving at " in said.read_text() or process.poll() is not None)
        found = re.search(r"serving at (http://\S+?);", said.read_text())
        assert found, said.read_text()
        return process, found[1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ask(address: str) -> httpx.Response:
    return httpx.post(address + SEARCH, json={"query": "green"}, headers=bearer(), timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_130_once_the_requests_in_hand_are_answered(
    launch: Launch, held: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process, address = launch()
    assert ask(address).status_code == 200
    held.touch()
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address) as idle:
        # A connection that is only kept open is waited for no more than one that is not there.
        assert idle.get("/health").status_code == 200
        asked = pool.submit(ask, address)
        until(lambda: held.with_name("waiting").exists())
        process.send_signal(number)
        until(lambda: "waiting for the requests in hand" in (tmp_path / "said").read_text())
        until(lambda: not listens(address))
        with pytest.raises(TimeoutError):
            asked.result(0.5)
        assert process.poll() is None
        held.unlink()
        answer = asked.result()
    assert (answer.status_code, len(answer.json()["results"])) == (200, 2)
    assert process.wait(60) == 130
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert "POST /api/v1/search 200 in " in said


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def test_a_second_signal_ends_it_whatever_is_in_hand(launch: Launch, held: Path, tmp_path: Path) -> None:
    process, address = launch()
    held.touch()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, address)
        until(lambda: held.with_name("waiting").exists())
        process.send_signal(signal.SIGTERM)
        until(lambda: "waiting for the requests in hand" in (tmp_path / "said").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        with pytest.raises(httpx.TransportError):
            asked.result()


def test_with_json_each_line_of_the_log_is_an_object_that_tells_no_secret(launch: Launch, tmp_path: Path) -> None:
    process, address = launch("--json")
    ask(address)
    httpx.get(address + "/api/v1/models/search", headers=bearer("eyJ.eyJ.eyJ"))
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    text = (tmp_path / "said").read_text()
    # What is said by the thread that hears of a signal, is a text.
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("stopping: ")]
    assert [line["event"] for line in lines] == ["said", "log", "log"]
    assert lines[1]["text"].startswith("POST /api/v1/search 200 in ")
    assert not [word for word in (SECRET, "green", "eyJ", "Bearer") if word in text]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "1.2.3.4"])
def test_beyond_this_machine_it_serves_only_with_tokens_and_says_what_to_set(host: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--host", host, "--port", "0"])
    assert done.exit_code == 2
    if host == "1.2.3.4":
        assert "cannot listen at 1.2.3.4, port 0" in done.output
        return
    assert f"{host} is reached from beyond this machine, and no setting of tokens is set" in done.output
    assert "export AMPRENTA_JWT_ALGORITHM=HS256 AMPRENTA_JWT_SECRET=…" in done.output


def test_with_the_settings_of_the_hint_it_serves_beyond_this_machine(launch: Launch) -> None:
    _, address = launch("--host", "0.0.0.0")
    assert ask(address).status_code == 200
    assert httpx.get(address + "/api/v1/models/search").status_code == 401


def test_an_address_that_is_taken_is_named_and_exits_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(main, ["serve", "--port", port])
    assert done.exit_code == 2
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in done.output


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_a_server_that_does_not_answer_is_named_whatever_the_driver(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("DATABASE_URL", f"{driver}://app:hidden@127.0.0.1:{port}/vectors")
    done = CliRunner().invoke(main, ["serve", "--port", "0"])
    assert done.exit_code == 2
    assert "error: cannot connect to database 'vectors' at 127.0.0.1" in done.output
    assert "hint: check that the server runs and that DATABASE_URL names" in done.output
    assert "hidden" not in done.output


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("amprenta_vectors.service")]:
        monkeypatch.delitem(sys.modules, name)
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 2
    assert "pip install 'amprenta_vectors[service]'" in done.output
