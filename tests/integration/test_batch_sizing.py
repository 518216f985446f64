"""Batches grow towards a duration, and what times out is cut in two, in one process or several."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from backfill_tools import (
    add_rows,
    count_writes,
    execute,
    expected,
    open_pinecone,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    writes_per_key,
)
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.engine.sizing import BatchSizer
from amprenta_vectors.backfill.progress import batches, plans, runs
from amprenta_vectors.backfill.progress.batches import Batch
from amprenta_vectors.backfill.progress.plans import Plan
from amprenta_vectors.backfill.progress.sizes import cut_batch
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

COUNT = 2000
IDS, VECTORS = to_ids(COUNT), to_vectors(COUNT)


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amprenta_vectors.backfill.engine.sizing.LOOK_SECONDS", 0.0)


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


def sizes(engine: sa.Engine) -> list[int]:
    rows: list[tuple[int]] = execute(engine, "SELECT keys_done FROM migration_progress ORDER BY batch")
    return [size for (size,) in rows]


def cuts(engine: sa.Engine) -> list[int]:
    rows: list[tuple[int]] = execute(
        engine, "SELECT CAST(detail ->> 'keys' AS int) FROM migration_event WHERE event = 'batch_cut' ORDER BY id"
    )
    return [size for (size,) in rows]


def test_quick_batches_grow_and_every_vector_arrives(
    engine: sa.Engine, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.backfill.engine.planner.MOST_PENDING", 1)
    run_job(engine, to_job(engine, open_pinecone(pinecone), batch_size=100, batch_seconds=30.0, workers=1))
    done = sizes(engine)
    assert done[0] == 100
    assert max(done) > 130, done
    assert stored(engine) == expected(IDS, VECTORS)


def test_without_a_wanted_duration_every_batch_is_of_the_size_given(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_job(engine, to_job(engine, open_pinecone(pinecone), batch_size=100, batch_seconds=None))
    assert set(sizes(engine)) == {100}


def test_a_fetch_that_times_out_is_cut_in_two(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    count_writes(engine)
    add_rows(engine, IDS)
    pinecone.faults.set("fetch", Fault(status=504, times=1))
    run_job(engine, to_job(engine, open_pinecone(pinecone), keys_from="table", batch_size=500, workers=1))
    assert cuts(engine) == [500]
    assert sorted(sizes(engine))[:2] == [250, 250]
    assert stored(engine) == expected(IDS, VECTORS)
    assert set(writes_per_key(engine).values()) == {1}


def test_a_write_that_times_out_is_cut_until_it_goes_through(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    """A trigger stands for the server: it ends a statement that touches more than 150 rows as a time-out would."""
    execute(
        engine,
        """
        CREATE FUNCTION time_out() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT count(*) FROM written) > 150 THEN
                RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
            END IF;
            RETURN NULL;
        END $$
        """,
    )
    execute(
        engine,
        "CREATE TRIGGER time_out AFTER UPDATE ON rag_chunks REFERENCING NEW TABLE AS written "
        "FOR EACH STATEMENT EXECUTE FUNCTION time_out()",
    )
    add_rows(engine, IDS)
    run_job(engine, to_job(engine, open_pinecone(pinecone), keys_from="table", batch_size=1000))
    assert sorted(cuts(engine)) == [250] * 8 + [500] * 4 + [1000] * 2
    assert set(sizes(engine)) == {125}
    assert stored(engine) == expected(IDS, VECTORS)


def test_after_a_time_out_the_next_batches_are_planned_at_half(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    run = _begin(engine, pinecone)
    sizer = BatchSizer(engine, run, 1000, wanted_seconds=2.0, dimension=8)
    assert sizer() == 1000
    with transaction(engine) as connection:
        _cut(connection, run, _claim(engine, run))
    assert sizer() == 300
    assert sizer() == 300


def test_a_size_stays_within_its_bounds(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    run = _begin(engine, pinecone)
    execute(
        engine,
        "UPDATE migration_progress SET status = 'done', attempt = 1, keys_done = 100000, "
        "started_at = now() - make_interval(secs => 0.001), finished_at = now() WHERE run_id = :run",
        run=run,
    )
    wide = BatchSizer(engine, run, 1000, wanted_seconds=2.0, dimension=1536)
    narrow = BatchSizer(engine, run, 9000, wanted_seconds=2.0, dimension=8)
    for _ in range(5):
        execute(engine, "UPDATE migration_progress SET batch = batch + 1 WHERE run_id = :run", run=run)
        wide(), narrow()
    assert wide() == 8 * 1024 * 1024 // (4 * 1536)
    assert narrow() == 10_000


def test_a_batch_is_cut_while_the_planner_stores_others_and_each_gets_its_own_number(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run = _begin(engine, pinecone, complete=False)
    batch = _claim(engine, run)
    planned = threading.Thread(target=_plan, args=(engine, run, 600, IDS[600:900]))
    with transaction(engine) as connection:
        _cut(connection, run, batch)
        planned.start()
        planned.join(0.5)
        assert planned.is_alive()
    planned.join()
    rows = execute(
        engine, "SELECT cardinality(keys) FROM migration_progress WHERE run_id = :run ORDER BY batch", run=run
    )
    assert rows == [(300,), (300,), (300,)]


def test_a_batch_that_went_to_another_owner_is_not_cut(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    run = _begin(engine, pinecone)
    batch = _claim(engine, run)
    with transaction(engine) as connection:
        cut_batch(connection, run, "somebody else", batch, "late")
    assert execute(engine, "SELECT status, cardinality(keys) FROM migration_progress") == [("running", 600)]
    assert cuts(engine) == []


def _begin(engine: sa.Engine, pinecone: PineconeEmulator, *, complete: bool = True) -> int:
    """A run with one pending batch of 600 keys; returns its number."""
    with transaction(engine) as connection:
        run = runs.begin_run(connection, to_job(engine, open_pinecone(pinecone)).spec).id
    _plan(engine, run, 0, IDS[:600], complete=complete)
    return run


def _plan(engine: sa.Engine, run: int, before: int, keys: list[str], *, complete: bool = False) -> None:
    with transaction(engine) as connection:
        plans.claim_plan(connection, run, "planner", 60.0)
        plans.extend_plan(connection, run, "planner", Plan(None, before), [keys], "token", complete=complete)


def _claim(engine: sa.Engine, run: int) -> Batch:
    with transaction(engine) as connection:
        batch = batches.claim(connection, run, "worker", 60.0)
    assert batch is not None
    return batch


def _cut(connection: Connection, run: int, batch: Batch) -> None:
    cut_batch(connection, run, "worker", batch, "it timed out")
