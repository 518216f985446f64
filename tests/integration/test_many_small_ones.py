"""Many small runs cost what they do, and no waiting: what one thread waits for is told by the thread that does it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, add_rows, run_job, settings_for, to_ids, to_job, to_vectors

from amprenta_vectors.backends.pinecone import origin as pinecone_origin
from amprenta_vectors.backends.pinecone.client import PineconeIndex
from amprenta_vectors.backends.pinecone.origin import open_pinecone_origin
from amprenta_vectors.backfill.database.throttle import RECENT_SECONDS, Throttle
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.progress import batches
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.config import Thresholds
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.registry import RAG_CHUNKS

StartEmulator = Callable[..., PineconeEmulator]

FOR_EVER = 3600.0
"""Seconds between two looks at what other processes do: what one's own threads do must not be waited for so long."""


def run_without_polling(engine: sa.Engine, job: Job, mode: Mode = "new") -> Summary:
    stop = threading.Event()
    try:
        return run_job(engine, job, mode, stop=stop)
    finally:
        stop.set()


def stub(count: int) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(to_ids(count), to_vectors(count), strict=True)}, page=10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [0, 1, 200])
def test_a_run_ends_when_its_work_does_and_not_at_the_next_look(engine: sa.Engine, count: int) -> None:
    add_rows(engine, to_ids(count))
    job = to_job(engine, stub(count), keys_from="source", batch_size=10, workers=3, poll_seconds=FOR_EVER)
    summary = run_without_polling(engine, job)
    assert summary.run.state == RunState.FINISHED
    assert summary.counts.written == count


@pytest.mark.timeout(60)
def test_batches_that_another_process_planned_are_taken_at_once(engine: sa.Engine) -> None:
    add_rows(engine, to_ids(50))
    interrupted = threading.Event()
    source = stub(50)
    source.before_fetch = lambda keys: interrupted.set()
    job = to_job(engine, source, keys_from="source", batch_size=10, workers=1)
    assert run_job(engine, job, stop=interrupted).interrupted
    job = to_job(engine, stub(50), keys_from="source", batch_size=10, workers=3, poll_seconds=FOR_EVER)
    assert run_without_polling(engine, job, "resume").run.state == RunState.FINISHED


def test_one_batch_is_asked_for_by_one_worker(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(engine, to_ids(5))
    asked: list[str] = []
    claim = batches.claim

    def noted(*arguments: Any) -> Any:
        asked.append(threading.current_thread().name)
        return claim(*arguments)

    monkeypatch.setattr(batches, "claim", noted)
    job = to_job(engine, stub(5), keys_from="source", workers=5, poll_seconds=FOR_EVER)
    assert run_without_polling(engine, job).counts.written == 5
    # The batch, and that there is no other.
    assert len(asked) == 2
    assert len(set(asked)) == 1


def test_the_database_is_not_looked_at_again_within_a_second(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 100.0, []
    throttle = Throttle(engine, RAG_CHUNKS, Thresholds(), clock=lambda: now)
    monkeypatch.setattr(throttle, "_look", lambda: looks.append(now))
    for _ in range(3):
        throttle.recent_reason()
    assert looks == [100.0]
    now += RECENT_SECONDS
    throttle.recent_reason()
    assert looks == [100.0, 101.0]


def test_the_namespaces_of_an_index_share_a_transport_and_a_count(
    emulator: StartEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinecone = emulator()
    for name in ("a", "b", "c"):
        pinecone.load(name, to_ids(3), to_vectors(3))
    opened, counted = [], []
    open_transport, namespaces = pinecone_origin.open_transport, PineconeIndex.namespaces
    monkeypatch.setattr(pinecone_origin, "open_transport", lambda *given: opened.append(1) or open_transport(*given))
    monkeypatch.setattr(PineconeIndex, "namespaces", lambda index: counted.append(1) or namespaces(index))
    origin = open_pinecone_origin(settings_for(pinecone))
    sources = [origin.open(RAG_CHUNKS, name, with_metadata=False) for name in origin.namespaces()]
    assert [len(source.fetch(to_ids(3))) for source in sources] == [3, 3, 3]
    assert (len(opened), len(counted)) == (1, 1)
    pinecone.load("later", to_ids(2), to_vectors(2))
    assert origin.open(RAG_CHUNKS, "later", with_metadata=False).description.count == 2
    origin.close()
