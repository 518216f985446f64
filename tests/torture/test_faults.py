"""Everything that production does to a backfill, and every vector there afterwards."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from backfill_tools import ROOT, end_process, environment, execute, start_process, to_ids, to_vectors
from forms import FORM, SEED
from poolers import pooled
from portions import WAIT_SECONDS, Portions
from stopping import PLACES
from wholeness import assert_whole, watch

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

PROCESSES = 3
ROWS, BATCH_SIZE = 4_000, 100
BATCHES = ROWS // BATCH_SIZE
TROUBLED = BATCHES * 3 // 4
"""The batches that are done by the last trouble; those under way then are not the last ones."""
OPTIONS = ("--keys-from", "source", "--resume", "--no-verify", "--batch-size", str(BATCH_SIZE))
IDS, VECTORS = to_ids(ROWS), to_vectors(ROWS, seed=SEED)


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


def ends(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, output


def begins(process: subprocess.Popen[str]) -> None:
    """Wait until a process works at the run: one that is only starting does not wait for a database that is away."""
    assert process.stdout is not None
    said = []
    while not (line := process.stdout.readline()).startswith("run "):
        said.append(line)
        assert line, said


def batches_done(engine: sa.Engine) -> int:
    done: int = execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'done'")[0][0]
    return done


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("place", PLACES)
def test_a_process_stopped_in_the_middle_and_continued_past_its_lease_writes_nothing_more(
    upgraded_url: str,
    engine: sa.Engine,
    pinecone: PineconeEmulator,
    processes: list[subprocess.Popen[str]],
    chance: random.Random,
    place: str,
) -> None:
    watch(engine)
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SECONDS="off")
    script = [sys.executable, str(Path(__file__).with_name("stopping.py")), place, str(chance.randint(1, 8))]
    stopped = subprocess.Popen(
        [*script, *OPTIONS], env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    processes.append(stopped)
    until(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)
    processes.append(start_process(variables, *OPTIONS))
    ends(processes[-1])
    assert_whole(engine, IDS, VECTORS)
    attempts = execute(engine, "SELECT max(attempt) FROM migration_progress")[0][0]
    assert attempts > 1, "no batch was taken from the stopped process"
    stopped.send_signal(signal.SIGCONT)
    ends(stopped)
    assert_whole(engine, IDS, VECTORS)


def test_postgresql_crashing_again_and_again_is_waited_for(
    own_server: EmbeddedPostgres,
    pinecone: PineconeEmulator,
    processes: list[subprocess.Popen[str]],
    chance: random.Random,
) -> None:
    own_server.create_database("own")
    url = own_server.url("own")
    settings = Settings.load(database_url=url, vector_dimension=8)
    upgrade(settings)
    engine = create_engine(settings)
    watch(engine)
    pinecone.faults.set("fetch", Fault(latency=0.02))
    portions = Portions(pinecone)
    processes += [
        start_process(environment(url, pinecone, AMPRENTA_BATCH_SECONDS="off"), *OPTIONS, "--workers", "1")
        for _ in range(PROCESSES)
    ]
    for process in processes:
        begins(process)
    for crash in range(1, FORM.crashes + 1):
        portions.until(lambda crash=crash: batches_done(engine) >= crash * TROUBLED // FORM.crashes)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.3))
        own_server.stop("immediate")
        time.sleep(chance.uniform(0, 1.0))
        own_server.start()
        engine.dispose()
    assert batches_done(engine) < BATCHES, "nothing was left to do after the last crash"
    portions.lift()
    for process in processes:
        ends(process)
    assert_whole(engine, IDS, VECTORS)
    engine.dispose()


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_source_in_every_kind_of_trouble_costs_time_and_nothing_else(
    upgraded_url: str,
    engine: sa.Engine,
    pinecone: PineconeEmulator,
    processes: list[subprocess.Popen[str]],
    chance: random.Random,
    transport: str,
) -> None:
    watch(engine)
    troubles = [
        Fault(status=429, retry_after=1.0, times=chance.randint(3, 9)),
        Fault(status=500, times=chance.randint(3, 9)),
        Fault(status=503, times=chance.randint(3, 9)),
        Fault(reset=True, times=chance.randint(3, 9)),
        Fault(truncate=True, times=chance.randint(3, 9)),
        Fault(stall=FORM.stall_seconds, times=2),
    ]
    chance.shuffle(troubles)
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SECONDS="off", PINECONE_TRANSPORT=transport)
    pinecone.faults.set("*", Fault(latency=0.05))
    # Listing begins at once, and has only this trouble for certain.
    pinecone.faults.set("list", troubles[0])
    portions = Portions(pinecone)
    processes += [start_process(variables, *OPTIONS, "--workers", "2") for _ in range(PROCESSES)]
    for number, trouble in enumerate(troubles):
        share = TROUBLED * number // len(troubles)
        portions.until(lambda share=share: batches_done(engine) >= share)  # type: ignore[misc]
        for route in ("list", "fetch")[number == 0 :]:
            pinecone.faults.set(route, trouble)
        over = portions.met + (trouble.times or 0)
        portions.until(lambda over=over: portions.met >= over)  # type: ignore[misc]
    for route in ("list", "fetch"):
        pinecone.faults.set(route, Fault(latency=0.02))
    portions.lift()
    for process in processes:
        ends(process)
    assert_whole(engine, IDS, VECTORS)


def test_processes_killed_behind_a_pooler_lose_nothing_and_write_nothing_twice(
    upgraded_url: str,
    engine: sa.Engine,
    pinecone: PineconeEmulator,
    processes: list[subprocess.Popen[str]],
    chance: random.Random,
) -> None:
    watch(engine)
    pinecone.faults.set("fetch", Fault(latency=0.02))
    portions = Portions(pinecone)
    with pooled(upgraded_url) as url:
        variables = environment(url, pinecone, AMPRENTA_BATCH_SECONDS="off")
        processes += [start_process(variables, *OPTIONS, "--workers", "2") for _ in range(PROCESSES)]
        for kill in range(1, FORM.pooler_kills + 1):
            portions.until(lambda kill=kill: batches_done(engine) >= kill * BATCHES // 2 // FORM.pooler_kills)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.3))
            assert processes[0].poll() is None, processes[0].communicate()[0]
            end_process(processes.pop(0))
            processes.append(start_process(variables, *OPTIONS, "--workers", "2"))
        assert batches_done(engine) < BATCHES, "nothing was left to do after the last kill"
        portions.lift()
        for process in processes:
            ends(process)
    assert_whole(engine, IDS, VECTORS)
