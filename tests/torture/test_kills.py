"""Processes of one run that are killed at random moments, again and again, until it is finished."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable

import sqlalchemy as sa
from backfill_tools import (
    environment,
    execute,
    start_process,
    to_ids,
    to_vectors,
)
from forms import FORM, SEED
from portions import PORTION, WAIT_SECONDS, Portions
from wholeness import assert_whole, watch

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

PROCESSES = 3
BATCH_SIZE = 200
BATCHES_LEFT = 20
"""After the last kill, at least."""
ROWS = BATCH_SIZE * (PORTION * FORM.kills + BATCHES_LEFT)
LONGEST_WAIT_SECONDS = 0.2
"""From the moment at which a fetch is let through to the next one's, or to the kill."""


def test_processes_killed_at_random_moments_lose_nothing_and_write_nothing_twice(
    upgraded_url: str,
    engine: sa.Engine,
    emulator: Callable[..., PineconeEmulator],
    processes: list[subprocess.Popen[str]],
    chance: random.Random,
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(ROWS), to_vectors(ROWS, seed=SEED)
    pinecone.load("", ids, vectors)
    watch(engine)
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SECONDS="off")
    options = ("--keys-from", "source", "--resume", "--no-verify", "--batch-size", str(BATCH_SIZE))

    def start() -> subprocess.Popen[str]:
        return start_process(variables, *options, "--workers", str(chance.randint(1, 3)))

    pinecone.faults.set("fetch", Fault(latency=0.02))
    portions = Portions(pinecone)
    processes += [start() for _ in range(PROCESSES)]
    for _ in range(FORM.kills):
        process = processes[0]
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(PORTION):
            portions.give(1)
            time.sleep(chance.uniform(0, LONGEST_WAIT_SECONDS))
        # A run whose source has not given all its rows yet is not finished: what ended, failed.
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        processes.pop(0)
        processes.append(start())
    statement = "SELECT coalesce(sum(rows_written), 0)::int FROM migration_progress"
    assert 0 < execute(engine, statement)[0][0] <= ROWS - BATCHES_LEFT * BATCH_SIZE
    portions.lift()
    for process in processes:
        output, _ = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, output
    assert_whole(engine, ids, vectors)
