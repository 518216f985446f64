"""Processes that write to two stores, killed at random moments: the outbox brings the other store what it lacks."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import sqlalchemy as sa
from backfill_tools import environment, execute
from forms import FORM
from test_dual import (  # noqa: F401 - fixtures among them
    KEYS,
    SCOPE,
    TARGET,
    assert_identical,
    pending,
    pinecone,
    settings,
    sides,
)

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.stores.composites.dual import drain
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import VectorStore

TESTS = Path(__file__).parents[1]
WRITER = """
import random, sys
sys.path.insert(0, sys.argv[1])
from test_dual import KEYS, record
from amprenta_vectors import get_vector_store
chance, store = random.Random(int(sys.argv[2])), get_vector_store()
print("writing", flush=True)
while True:
    key = chance.choice(KEYS)
    if chance.random() < 0.3:
        store.delete([key])
    else:
        store.upsert([record(key, chance.randrange(10**6))])
"""


def test_processes_killed_between_the_two_writes_leave_both_alike_once_drained(
    engine: sa.Engine,
    upgraded_url: str,
    pinecone: PineconeEmulator,  # noqa: F811
    sides: tuple[PgVectorStore, VectorStore],  # noqa: F811
    chance: random.Random,
) -> None:
    variables = environment(upgraded_url, pinecone, VECTOR_MODE="dual", VECTOR_SECONDARY="pgvector")
    variables["PYTHONPATH"] = str(TESTS)
    pinecone.faults.set("upsert", Fault(latency=0.05))
    pinecone.faults.set("delete", Fault(latency=0.05))
    kills = between = 0
    while kills < FORM.writer_kills or between < FORM.writer_kills // 5:
        assert kills < 10 * FORM.writer_kills, "hardly any process was killed between its two writes"
        before = pending(engine)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(TESTS / "integration"), str(kills)],
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(chance.uniform(0, 0.3))
        assert process.poll() is None, "a writer failed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        between += pending(engine) > before
    pinecone.faults.clear()
    # The claims of those that died have not run out yet.
    execute(engine, "UPDATE vector_outbox SET claimed_until = now() WHERE cleared_at IS NULL")
    drain(Outbox(engine, TARGET, SCOPE), *sides, at_once=True)
    assert pending(engine) == 0
    assert assert_identical(sides, KEYS)
