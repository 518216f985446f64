"""``VECTOR_MODE=dual``: both stores end with the same rows, whatever fails, dies or comes late."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import environment, execute, open_pinecone, run_job, to_job

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, RowError, SourceError, TransientError
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.stores.composites.dual import DualStore, drain
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record, VectorStore

DIMENSION = 8
TARGET, SCOPE = "rag_chunks.embedding", {"namespace": ""}


def record(key: str, version: int = 0) -> Record:
    vector = np.random.default_rng([hash_of(key), version]).standard_normal(DIMENSION, dtype=np.float32)
    return Record(key, vector, f"{key} {version}", {"version": version})


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode()[-6:], "big")


RECORDS = [record(f"k{i:04d}") for i in range(50)]


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    return emulator()


@pytest.fixture
def settings(pinecone: PineconeEmulator, upgraded_url: str) -> Settings:
    return Settings.load(
        database_url=upgraded_url,
        pinecone_api_key="test-key",
        pinecone_index_name="test-index",
        pinecone_controller_host=pinecone.host,
        vector_mode="dual",
        vector_secondary="pgvector",
    )


@pytest.fixture
def sides(settings: Settings) -> Iterator[tuple[PgVectorStore, VectorStore]]:
    pgvector, other = open_pgvector_store(settings), open_pinecone_store(settings)
    yield pgvector, other
    pgvector.close()
    other.close()


@pytest.fixture
def dual(settings: Settings) -> Iterator[VectorStore]:
    store = get_vector_store(settings)
    yield store
    store.close()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's own thread brings nothing during the test."""
    monkeypatch.setattr("amprenta_vectors.stores.composites.dual.DRAIN_SECONDS", 3600.0)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's own thread looks for what is pending all the time."""
    monkeypatch.setattr("amprenta_vectors.stores.composites.dual.DRAIN_SECONDS", 0.05)


def contents(store: VectorStore, keys: list[str]) -> dict[str, tuple[bytes, str | None, Any]]:
    found: dict[str, tuple[bytes, str | None, Any]] = {}
    for start in range(0, len(keys), 500):
        rows = store.fetch(keys[start : start + 500])
        found |= {key: (row.vector.tobytes(), row.text, dict(row.metadata)) for key, row in rows.items()}
    return found


def assert_identical(sides: tuple[PgVectorStore, VectorStore], keys: list[str]) -> dict[str, Any]:
    pgvector, other = (contents(store, keys) for store in sides)
    assert pgvector == other
    return pgvector


def pending(engine: sa.Engine) -> int:
    count: int = execute(engine, "SELECT count(*) FROM vector_outbox WHERE cleared_at IS NULL")[0][0]
    return count


def let_claims_run_out(engine: sa.Engine) -> None:
    execute(engine, "UPDATE vector_outbox SET claimed_until = clock_timestamp() WHERE claimed_by IS NOT NULL")


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


KEYS = [item.key for item in RECORDS]


@pytest.mark.usefixtures("quiet")
def test_a_write_reaches_both_and_leaves_nothing_pending(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], dual: VectorStore
) -> None:
    assert dual.upsert(RECORDS) == 50
    dual.delete(KEYS[:10])
    assert set(assert_identical(sides, KEYS)) == set(KEYS[10:])
    assert pending(engine) == 0
    assert dual.name == "pinecone, writing to both"
    assert [hit.key for hit in dual.query(RECORDS[20].vector, top_k=1)] == [KEYS[20]]


@pytest.mark.usefixtures("quiet")
def test_a_store_that_is_closed_gives_back_what_it_claimed_and_did_not_begin(
    engine: sa.Engine, settings: Settings, sides: tuple[PgVectorStore, VectorStore]
) -> None:
    dual: Any = get_vector_store(settings)
    with engine.begin() as connection:
        dual.upsert([record(f"w{i:04d}") for i in range(250)], connection=connection)
    upsert, begun, closed = dual._other.upsert, threading.Event(), threading.Event()

    def wait_and_upsert(records: Sequence[Record]) -> int:
        begun.set()
        assert closed.wait(30)
        return int(upsert(records))

    dual._other.upsert = wait_and_upsert
    with ThreadPoolExecutor(1) as other:
        draining = other.submit(dual._try_to_drain, None)
        assert begun.wait(30)
        dual.close()
        closed.set()
        draining.result(30)
    assert execute(engine, "SELECT count(*), count(claimed_by), count(claimed_until) FROM vector_outbox") == [
        (150, 0, 0)
    ]
    assert drain(Outbox(engine, TARGET, SCOPE), *sides) == (150, None)
    assert len(assert_identical(sides, [f"w{i:04d}" for i in range(250)])) == 250


@pytest.mark.usefixtures("quiet")
def test_what_the_other_store_could_not_get_is_brought_later_in_order(
    engine: sa.Engine, settings: Settings, pinecone: PineconeEmulator, sides: tuple[PgVectorStore, VectorStore]
) -> None:
    dual: Any = get_vector_store(settings)
    dual.upsert(RECORDS)
    pinecone.stop()
    dual.upsert([RECORDS[0]])
    # Each of the writes that follow would be tried, and wait for its answer, until so many have failed in a row.
    while dual.breaker.state == "closed":
        dual.breaker.failed()
    chance, written = random.Random(3), {RECORDS[0].key}
    for number in range(200):
        key = chance.choice(KEYS)
        written.add(key)
        if chance.random() < 0.3:
            dual.delete([key])
        else:
            dual.upsert([record(key, number)])
    assert pending(engine) == 201
    pinecone.start()
    outbox = Outbox(engine, TARGET, SCOPE)
    brought, refusal = drain(outbox, *sides, at_once=True)
    assert (brought, refusal) == (len(written), None)
    assert pending(engine) == 0
    assert_identical(sides, KEYS)
    # Once more: nothing is pending, nothing changes.
    assert drain(outbox, *sides, at_once=True) == (0, None)
    dual.close()


@pytest.mark.usefixtures("brisk")
def test_the_application_s_transaction_takes_the_intent_along(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], dual: DualStore
) -> None:
    with engine.begin() as connection:
        dual.upsert(RECORDS[:5], connection=connection)
        dual.delete([KEYS[4]], connection=connection)
        assert sides[1].fetch(KEYS[:5]) == {}
    until(lambda: pending(engine) == 0)
    assert set(assert_identical(sides, KEYS)) == set(KEYS[:4])
    with engine.connect() as connection:
        dual.upsert([record(KEYS[0], 7)], connection=connection)
        connection.rollback()
    assert pending(engine) == 0
    assert_identical(sides, KEYS)


def test_a_record_that_no_store_takes_is_refused_before_anything_is_written(
    engine: sa.Engine, dual: VectorStore
) -> None:
    with pytest.raises(RowError):
        dual.upsert([RECORDS[0], Record("bad", np.full(DIMENSION, np.nan, np.float32))])
    assert execute(engine, "SELECT count(*) FROM vector_outbox") == [(0,)]
    assert dual.count() == 0


@pytest.mark.usefixtures("quiet")
def test_a_refusal_for_good_is_raised_stays_pending_and_holds_up_no_other(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], dual: VectorStore
) -> None:
    nested = Record("nested", RECORDS[0].vector, "text", {"a": {"b": 1}})
    with pytest.raises(SourceError):
        dual.upsert([RECORDS[0], nested, RECORDS[1]])
    assert set(contents(sides[1], [*KEYS, "nested"])) == {KEYS[0], KEYS[1]}
    status = Outbox(engine, TARGET, SCOPE).status()
    assert (status.pending, status.failing) == (1, 1)
    assert status.oldest_seconds is not None
    ((error, keys),) = status.errors
    assert keys == 1
    assert error
    dual.upsert([Record("nested", RECORDS[0].vector, "text", {"a": 1})])
    assert pending(engine) == 0
    assert_identical(sides, [*KEYS, "nested"])


@pytest.mark.usefixtures("brisk")
def test_a_store_that_is_away_fails_no_write_and_the_error_is_seen(
    engine: sa.Engine, pinecone: PineconeEmulator, dual: VectorStore
) -> None:
    pinecone.faults.set("upsert", Fault(status=503))
    assert dual.upsert(RECORDS[:3]) == 3
    status = Outbox(engine, TARGET, SCOPE).status()
    assert (status.pending, status.failing) == (3, 3)
    pinecone.faults.clear()
    until(lambda: pending(engine) == 0)


@pytest.mark.usefixtures("quiet")
def test_a_claim_that_ran_out_while_its_write_was_late_does_not_leave_the_older_value(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], settings: Settings
) -> None:
    """A process stops before it writes; another claims the key, writes a later value and clears; the first goes on."""
    pgvector, other = sides
    dual = get_vector_store(settings)
    slow, quick = Outbox(engine, TARGET, SCOPE), Outbox(engine, TARGET, SCOPE)
    with engine.begin() as connection:
        dual.upsert([record("k", 1)], connection=connection)  # type: ignore[call-arg]
    late, written, order = threading.Event(), threading.Event(), list[str]()

    class Late:
        name = other.name

        def upsert(self, records: Any) -> int:
            late.set()
            assert written.wait(60)
            order.append(records[0].text)
            return other.upsert(records)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(drain, slow, pgvector, Late())  # type: ignore[arg-type]
        assert late.wait(60)
        let_claims_run_out(engine)
        with engine.begin() as connection:
            dual.upsert([record("k", 2)], connection=connection)  # type: ignore[call-arg]
        assert drain(quick, pgvector, other)[0] == 1
        assert pending(engine) == 0
        written.set()
        running.result()
    # The late one came last; that it had lost its claim had the later value written once more.
    assert order == ["k 1", "k 2"]
    assert pending(engine) == 0
    assert assert_identical(sides, ["k"])["k"][1] == "k 2"
    dual.close()


@pytest.mark.usefixtures("quiet")
def test_an_older_intent_is_never_written_after_a_later_one(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], settings: Settings
) -> None:
    dual = get_vector_store(settings)
    for version in range(3):
        with engine.begin() as connection:
            dual.upsert([record("k", version)], connection=connection)  # type: ignore[call-arg]
    first, second = (Outbox(engine, TARGET, SCOPE) for _ in range(2))
    (intent,) = first.claim(10)
    assert intent.record is not None
    assert intent.record.text == "k 2"
    with engine.begin() as connection:
        dual.upsert([record("k", 3)], connection=connection)  # type: ignore[call-arg]
    assert second.claim(10) == []
    sides[1].upsert([intent.record])
    assert first.clear([intent]) == []
    (later,) = second.claim(10)
    assert later.record is not None
    assert later.record.text == "k 3"
    dual.close()


@pytest.mark.usefixtures("brisk")
def test_many_writers_of_the_same_keys_end_alike_on_both_sides(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], settings: Settings
) -> None:
    stores = [get_vector_store(settings) for _ in range(3)]
    few = KEYS[:6]

    def write(number: int) -> None:
        chance = random.Random(number)
        for version in range(40):
            chosen = sorted(chance.sample(few, 2))
            if chance.random() < 0.4:
                stores[number].delete(chosen)
            else:
                stores[number].upsert([record(key, 100 * number + version) for key in chosen])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    until(lambda: pending(engine) == 0)
    assert_identical(sides, few)
    for store in stores:
        store.close()


@pytest.mark.usefixtures("quiet")
def test_a_claim_that_ran_out_is_noticed_by_another_thread_of_the_same_process_too(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], settings: Settings
) -> None:
    dual = get_vector_store(settings)
    with engine.begin() as connection:
        dual.upsert([record("k", 1)], connection=connection)  # type: ignore[call-arg]
    shared = Outbox(engine, TARGET, SCOPE)
    first = shared.claim(10)
    let_claims_run_out(engine)
    second = shared.claim(10)
    assert [intent.key for intent in second] == ["k"]
    assert shared.clear(first) == ["k"]
    shared.fail(first, "too late")
    assert shared.status().failing == 0
    assert shared.clear(second) == []
    dual.close()


@pytest.mark.usefixtures("quiet")
def test_after_a_time_out_nobody_writes_a_later_value_before_the_claim_has_run_out(
    engine: sa.Engine, settings: Settings
) -> None:
    dual = get_vector_store(settings)
    with engine.begin() as connection:
        dual.upsert([record("k", 1)], connection=connection)  # type: ignore[call-arg]
    outbox = Outbox(engine, TARGET, SCOPE)
    outbox.fail(outbox.claim(10), "no answer in time", under_way=True)
    assert outbox.claim(10, at_once=True) == []
    assert outbox.status().failing == 1
    dual.close()


def test_a_transaction_that_would_not_see_what_it_waited_for_is_refused(engine: sa.Engine, dual: DualStore) -> None:
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        pytest.raises(ConfigError, match="REPEATABLE READ"),
    ):
        dual.delete(KEYS[:1], connection=connection)


@pytest.mark.usefixtures("quiet")
def test_a_breaker_is_not_closed_by_having_nothing_to_bring(dual: DualStore) -> None:
    for _ in range(5):
        dual.breaker.failed()
    assert dual.breaker.state == "open"
    dual.breaker._opened_at = time.monotonic() - 60
    dual._try_to_drain(None)
    assert dual.breaker.state == "half-open"
    dual.upsert(RECORDS[:1])
    assert dual.breaker.state == "closed"


@pytest.mark.usefixtures("quiet")
def test_more_than_one_claim_of_keys_are_brought_in_one_call(
    engine: sa.Engine, sides: tuple[PgVectorStore, VectorStore], dual: VectorStore
) -> None:
    many = [record(f"m{i:04d}") for i in range(1200)]
    dual.upsert(many)
    assert pending(engine) == 0
    assert sides[1].count() == 1200


# A backfill at the same time.


class Interrupted:
    """A source that lets something happen between its fetch and the write of what it fetched."""

    def __init__(self, source: Source, happening: Callable[[], None]) -> None:
        self.description = source.description
        self.iter_keys = source.iter_keys
        self._source = source
        self._happening = happening

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        batch = self._source.fetch(keys)
        self._happening()
        return batch


@pytest.mark.usefixtures("quiet")
def test_a_deletion_while_a_batch_is_fetched_is_not_undone_by_it(
    engine: sa.Engine, pinecone: PineconeEmulator, sides: tuple[PgVectorStore, VectorStore], dual: VectorStore
) -> None:
    sides[1].upsert(RECORDS)
    deleted = KEYS[3:9]
    source = Interrupted(open_pinecone(pinecone), lambda: dual.delete(deleted))
    summary = run_job(engine, to_job(engine, source))
    assert (summary.counts.written, summary.counts.skipped) == (44, 6)
    assert set(assert_identical(sides, KEYS)) == set(KEYS) - set(deleted)


@pytest.mark.usefixtures("brisk")
def test_a_deletion_that_is_not_committed_yet_is_waited_for(
    engine: sa.Engine, pinecone: PineconeEmulator, sides: tuple[PgVectorStore, VectorStore], dual: DualStore
) -> None:
    sides[1].upsert(RECORDS)
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        dual.delete(KEYS[:3], connection=connection)
        running = pool.submit(run_job, engine, to_job(engine, open_pinecone(pinecone)))
        blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND mode = 'ShareLock'"
        until(lambda: execute(engine, blocked)[0][0] > 0)
        connection.commit()
        assert running.result().counts.skipped == 3
    until(lambda: pending(engine) == 0)
    assert set(assert_identical(sides, KEYS)) == set(KEYS[3:])


@pytest.mark.usefixtures("brisk")
def test_an_application_that_holds_a_row_and_then_deletes_is_not_the_one_to_give_way(
    engine: sa.Engine, pinecone: PineconeEmulator, sides: tuple[PgVectorStore, VectorStore], dual: DualStore
) -> None:
    sides[1].upsert(RECORDS)
    # Twice PostgreSQL's own, so that a machine that is busy does not stretch a batch's wait, of 0.8 s, beyond it.
    execute(engine, f"ALTER DATABASE {engine.url.database} SET deadlock_timeout = '2s'")
    engine.dispose()
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        dual.upsert([record(KEYS[5], 9)], connection=connection)
        running = pool.submit(run_job, engine, to_job(engine, open_pinecone(pinecone)))
        blocked = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'"
        )
        until(lambda: execute(engine, blocked)[0][0] > 0)
        # Longer than PostgreSQL waits before it looks for a deadlock: the batch would not be looked at once more, and
        # the application, which asks for a bucket that the batch holds, would be found to be the one too many.
        time.sleep(2.2)
        dual.delete(KEYS[:20], connection=connection)
        connection.commit()
        running.result()
    until(lambda: pending(engine) == 0)
    assert set(assert_identical(sides, KEYS)) == set(KEYS[20:])


@pytest.mark.usefixtures("quiet")
def test_a_tombstone_is_forgotten_after_a_day(engine: sa.Engine, dual: VectorStore) -> None:
    dual.delete(KEYS[:2])
    assert execute(engine, "SELECT key FROM vector_outbox ORDER BY key") == [(KEYS[0],), (KEYS[1],)]
    execute(
        engine, "UPDATE vector_outbox SET cleared_at = cleared_at - interval '25 hours' WHERE key = :key", key=KEYS[0]
    )
    dual.delete(KEYS[2:3])
    assert execute(engine, "SELECT key FROM vector_outbox ORDER BY key") == [(KEYS[1],), (KEYS[2],)]


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_dual import KEYS, record
from amprenta_vectors import get_vector_store
store = get_vector_store()
store.upsert([record(KEYS[0], 2)]) if sys.argv[2] == "upsert" else store.delete(KEYS[:1])
"""


@pytest.mark.parametrize("fault", [Fault(latency=600), Fault(stall=600)], ids=["before", "after"])
@pytest.mark.parametrize("command", ["upsert", "delete"])
def test_a_process_killed_before_or_after_its_second_write_leaves_both_alike_once_drained(
    engine: sa.Engine,
    upgraded_url: str,
    pinecone: PineconeEmulator,
    sides: tuple[PgVectorStore, VectorStore],
    command: str,
    fault: Fault,
) -> None:
    for side in sides:
        side.upsert([record(KEYS[0], 1)])
    pinecone.faults.set(command, fault)
    variables = environment(upgraded_url, pinecone, VECTOR_MODE="dual", VECTOR_SECONDARY="pgvector")
    tests = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tests), command], env={**variables, "PYTHONPATH": str(tests.parent)}
    )
    before = contents(sides[1], KEYS[:1])
    asked = pinecone.calls[command]
    wanted = {} if command == "delete" else {KEYS[0]: f"{KEYS[0]} 2"}

    def texts(side: VectorStore) -> dict[str, str | None]:
        return {key: row.text for key, row in side.fetch(KEYS[:1]).items()}

    try:
        until(lambda: pinecone.calls[command] > asked, 60)
        if fault.stall:
            until(lambda: texts(sides[1]) == wanted, 60)
    finally:
        process.kill()
        process.wait()
    assert texts(sides[0]) == wanted
    assert fault.stall or contents(sides[1], KEYS[:1]) == before
    assert pending(engine) == 1
    pinecone.faults.clear()
    # The claim of the one that died has not run out yet.
    execute(engine, "UPDATE vector_outbox SET claimed_until = now() WHERE cleared_at IS NULL")
    drain(Outbox(engine, TARGET, SCOPE), *sides, at_once=True)
    assert pending(engine) == 0
    assert_identical(sides, KEYS)
    assert texts(sides[1]) == wanted


@pytest.mark.usefixtures("brisk")
def test_going_over_and_back_loses_no_write(
    engine: sa.Engine, settings: Settings, pinecone: PineconeEmulator, sides: tuple[PgVectorStore, VectorStore]
) -> None:
    over = get_vector_store(settings.model_copy(update={"vector_backend": "pgvector", "vector_secondary": "pinecone"}))
    over.upsert(RECORDS)
    pinecone.faults.set("upsert", Fault(status=503, times=3))
    over.upsert([record(KEYS[0], 5)])
    over.delete([KEYS[1]])
    assert over.fetch(KEYS[:2])[KEYS[0]].text == f"{KEYS[0]} 5"
    over.close()
    back = get_vector_store(settings)
    until(lambda: pending(engine) == 0)
    assert back.fetch(KEYS[:2]).keys() == {KEYS[0]}
    assert back.fetch(KEYS[:2])[KEYS[0]].text == f"{KEYS[0]} 5"
    assert_identical(sides, KEYS)
    back.close()


def test_two_stores_without_postgresql_cannot_write_to_both(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amprenta_vectors.stores import factory

    monkeypatch.setitem(factory.BACKENDS, "another", factory.open_pinecone_store)
    with pytest.raises(ConfigError, match="keeps its intents in PostgreSQL"):
        get_vector_store(settings.model_copy(update={"vector_secondary": "another"}))


def test_an_outage_of_postgresql_fails_the_write_as_a_whole(settings: Settings, pinecone: PineconeEmulator) -> None:
    away = Settings.load(database_url="postgresql://nobody@127.0.0.1:1/none").database_url
    store = get_vector_store(settings.model_copy(update={"database_url": away}))
    with pytest.raises(TransientError):
        store.upsert(RECORDS[:1])
    assert pinecone.calls["upsert"] == 0
    store.close()
