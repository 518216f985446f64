"""Ctrl-C and SIGTERM end every command with exit code 130, at once where it has nothing to end first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import ROOT, environment
from forked import ForkedProcess

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

MAIN = ROOT / "amprenta_vectors" / "__main__.py"
SIGNALS = [signal.SIGINT, signal.SIGTERM]
Launch = Callable[..., ForkedProcess]


def until(condition: Callable[[], bool]) -> None:
    """Wait for an event, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    started = emulator()
    started.load("", ["a", "b", "c"], np.eye(3, 8, dtype=np.float32), [{"text": key} for key in "abc"])
    return started


@pytest.fixture
def variables(upgraded_url: str, pinecone: PineconeEmulator) -> dict[str, str]:
    return environment(upgraded_url, pinecone) | {"VECTOR_BACKEND": "pgvector"}


@pytest.fixture
def launch(variables: Mapping[str, str]) -> Iterator[Launch]:
    processes = []

    def start(*arguments: str) -> ForkedProcess:
        processes.append(ForkedProcess(MAIN, arguments, variables))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def locked(engine: sa.Engine) -> Iterator[Callable[[], int]]:
    """Hold every table of ours; return a function that counts the sessions that wait for one."""
    with engine.begin() as connection:
        names = connection.scalars(
            sa.text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        ).all()
        tables = ", ".join(connection.dialect.identifier_preparer.quote(name) for name in names)
        connection.exec_driver_sql(f"LOCK TABLE {tables}")

        def waiting() -> int:
            found = connection.scalar(
                sa.text(
                    "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE NOT l.granted AND a.datname = current_database()"
                )
            )
            return int(found or 0)

        yield waiting


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("benchmark",),
        ("compare", "run", "--from", "stored"),
        ("compare", "report"),
        ("tune",),
        ("doctor",),
        ("canary",),
        ("index", "build"),
        ("index", "rebuild"),
        ("gate",),
        ("errors",),
        ("status",),
        ("backfill", "--dry-run"),
        ("db", "current"),
    ],
    ids=" ".join,
)
def test_a_command_that_waits_for_the_database_is_ended_by_the_first_signal(
    launch: Launch, locked: Callable[[], int], arguments: tuple[str, ...], number: signal.Signals
) -> None:
    process = launch(*arguments)
    until(lambda: locked() > 0 or process.poll() is not None)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, "interrupted" in output) == (130, True), output
    assert "Traceback" not in output
    # PostgreSQL does not continue what nobody waits for.
    until(lambda: locked() == 0)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_waits_for_its_source_is_ended_by_the_first_signal(
    launch: Launch, pinecone: PineconeEmulator, number: signal.Signals
) -> None:
    pinecone.faults.set("stats", Fault(stall=60.0))
    process = launch("sources", "inspect")
    until(lambda: pinecone.calls["stats"] > 0 or process.poll() is not None)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, "interrupted" in output) == (130, True), output


@pytest.mark.parametrize("numbers", [SIGNALS, SIGNALS[::-1], [signal.SIGTERM] * 2])
def test_a_run_says_at_once_what_it_waits_for_and_a_second_signal_ends_it(
    launch: Launch, pinecone: PineconeEmulator, numbers: list[signal.Signals]
) -> None:
    pinecone.faults.set("fetch", Fault(stall=60.0))
    process = launch("backfill", "--keys-from", "source", "--drain-seconds", "600")
    until(lambda: pinecone.calls["fetch"] > 0 or process.poll() is not None)
    process.send_signal(numbers[0])
    until(lambda: "waiting for the batches in hand" in process.said())
    assert process.poll() is None
    process.send_signal(numbers[1])
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("script", ["-m amprenta_vectors doctor", "scripts/backfill.py --resume"])
def test_a_signal_in_the_first_moments_ends_the_process_with_130(
    variables: dict[str, str], number: signal.Signals, script: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, *script.split()],
        env={"PATH": os.environ["PATH"], **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def catches() -> bool:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    until(catches)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("before", ["threading.Thread.start", "click.Group.main"])
def test_a_signal_before_the_command_begins_ends_the_process_with_130(number: signal.Signals, before: str) -> None:
    """Each is a step between the first handler and the command; Python runs a handler between any two steps."""
    script = f"""
import os, threading, click
from amprenta_vectors.entry import run
step = {before}
def interrupted(self, *args, **kwargs):
    os.kill(os.getpid(), {int(number)})
    return step(self, *args, **kwargs)
{before} = interrupted
run("doctor")
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "interrupted\n")
