"""Processes of one run that are killed at random moments, again and again, until it is finished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from backfill_tools import (
    end_process,
    environment,
    execute,
    start_process,
    to_ids,
    to_vectors,
)
from wholeness import SEED, SEED_VARIABLE, assert_whole, watch

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

KILLS = int(os.environ.get("AMPRENTA_TORTURE_KILLS") or 25)
PROCESSES = 3
ROWS, BATCH_SIZE = 20_000, 200
LONGEST_LIFE_SECONDS = 1.0
"""From the moment at which a process is seen at work."""


@pytest.mark.torture
def test_processes_killed_at_random_moments_lose_nothing_and_write_nothing_twice(
    upgraded_url: str, engine: sa.Engine, emulator: Callable[..., PineconeEmulator]
) -> None:
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201 - shown where the test fails, to repeat it
    chance = random.Random(SEED)
    pinecone, ids, vectors = emulator(), to_ids(ROWS), to_vectors(ROWS, seed=SEED)
    pinecone.load("", ids, vectors)
    watch(engine)

    def rows_written() -> int:
        written: int = execute(engine, "SELECT coalesce(sum(rows_written), 0)::int FROM migration_progress")[0][0]
        return written

    def pace(killed: int) -> None:
        """Let the source be as fast as makes the rows last until the last kill, on whatever machine."""
        ahead = rows_written() / ROWS > 0.9 * killed / KILLS
        pinecone.faults.set("fetch", Fault(latency=2.0 if ahead else 0.05))

    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SECONDS="off")
    options = ("--keys-from", "source", "--resume", "--no-verify", "--batch-size", str(BATCH_SIZE))

    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            process = start_process(variables, *options, "--workers", str(chance.randint(1, 3)))
            stack.callback(end_process, process)
            return process

        at_work = [(start(), chance.uniform(0, LONGEST_LIFE_SECONDS)) for _ in range(PROCESSES)]
        for killed in range(KILLS):
            pace(killed)
            process, life = at_work.pop(0)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(life)
            assert process.poll() is None, "it ended before it was to be killed; the rows did not last"
            process.send_signal(signal.SIGKILL)
            process.wait()
            at_work.append((start(), chance.uniform(0, LONGEST_LIFE_SECONDS)))
        assert rows_written() < ROWS, "nothing was left to do after the last kill"
        pinecone.faults.clear()
        for process, _ in at_work:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output

    assert_whole(engine, ids, vectors)
