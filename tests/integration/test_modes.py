"""``VECTOR_MODE``: two stores behind one, and what a search gives when one of them is in trouble."""

from __future__ import annotations

import logging
import queue
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
from waiting import until

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, FilterError, SourceNotFound, TimedOut, TransientError, UnknownBackend
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.composites import late
from amprenta_vectors.stores.composites.breaker import Breaker
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import CALLS_AT_ONCE, HybridStore
from amprenta_vectors.stores.daemons import DaemonPool
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Hit, Record, VectorStore

DIMENSION = 8
VECTORS = np.random.default_rng(7).standard_normal((40, DIMENSION), dtype=np.float32)
RECORDS = [Record(f"k{i:02d}", vector, f"text {i}", {"even": i % 2 == 0}) for i, vector in enumerate(VECTORS)]
QUERY = VECTORS[0]


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    return emulator()


@pytest.fixture
def shared(pinecone: PineconeEmulator, upgraded_url: str) -> dict[str, Any]:
    return {
        "database_url": upgraded_url,
        "pinecone_api_key": "test-key",
        "pinecone_index_name": "test-index",
        "pinecone_controller_host": pinecone.host,
    }


@pytest.fixture
def sides(shared: dict[str, Any]) -> Iterator[tuple[VectorStore, PgVectorStore]]:
    """Pinecone with the first thirty records, pgvector with the last thirty."""
    settings = Settings.load(**shared)
    pinecone, pgvector = open_pinecone_store(settings), open_pgvector_store(settings)
    pinecone.upsert(RECORDS[:30])
    pgvector.upsert(RECORDS[10:])
    yield pinecone, pgvector
    pinecone.close()
    pgvector.close()


def nearest(records: Sequence[Record], top_k: int) -> list[str]:
    def cosine(record: Record) -> float:
        return float(record.vector @ QUERY / np.linalg.norm(record.vector) / np.linalg.norm(QUERY))

    return [record.key for record in sorted(records, key=cosine, reverse=True)[:top_k]]


def keys(store: VectorStore, **options: Any) -> list[str]:
    return [hit.key for hit in store.query(QUERY, **options)]


# Fallback.


def test_the_primary_answers_while_it_can(sides: tuple[VectorStore, PgVectorStore]) -> None:
    store = FallbackStore(*sides, timeout_seconds=5)
    assert keys(store, top_k=5) == nearest(RECORDS[:30], 5)
    assert store.count() == 30
    assert set(store.fetch(["k00", "k39"])) == {"k00"}
    assert store.breaker.state == "closed"


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(status=401), Fault(stall=3.0)])
def test_the_secondary_answers_when_the_primary_fails_or_takes_too_long(
    pinecone: PineconeEmulator, sides: tuple[VectorStore, PgVectorStore], fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    store = FallbackStore(*sides, timeout_seconds=60 if fault.status else 0.5)
    pinecone.faults.set("query", fault)
    with caplog.at_level(logging.WARNING):
        assert keys(store, top_k=5) == nearest(RECORDS[10:], 5)
    assert "pinecone failed, pgvector answers" in caplog.text
    pinecone.faults.clear()
    patient = store if fault.status else FallbackStore(*sides, timeout_seconds=60)
    assert keys(patient, top_k=5) == nearest(RECORDS[:30], 5)


def test_a_primary_that_keeps_failing_is_left_alone_until_its_time_is_up(
    pinecone: PineconeEmulator, sides: tuple[VectorStore, PgVectorStore]
) -> None:
    now = [0.0]
    breaker = Breaker(failures=2, open_seconds=30.0, clock=lambda: now[0])
    store = FallbackStore(*sides, timeout_seconds=5, breaker=breaker)
    pinecone.faults.set("query", Fault(status=401))
    for _ in range(2):
        keys(store)
    assert breaker.state == "open"
    asked = pinecone.calls["query"]
    assert keys(store, top_k=5) == nearest(RECORDS[10:], 5)
    assert pinecone.calls["query"] == asked
    now[0] = 31.0
    assert breaker.state == "half-open"
    keys(store)
    assert breaker.state == "open"
    now[0] = 62.0
    pinecone.faults.clear()
    assert keys(store, top_k=5) == nearest(RECORDS[:30], 5)
    assert breaker.state == "closed"


def test_one_call_at_a_time_tries_a_breaker_that_is_half_open() -> None:
    now = [0.0]
    breaker = Breaker(failures=1, open_seconds=1.0, clock=lambda: now[0])
    breaker.failed()
    now[0] = 2.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]


def test_a_call_that_is_stopped_while_it_tries_leaves_the_next_one_to_try() -> None:
    now = [0.0]
    breaker = Breaker(failures=1, open_seconds=1.0, clock=lambda: now[0])
    breaker.failed()
    now[0] = 2.0

    def stopped(*_: Any, **__: Any) -> list[Hit]:
        raise KeyboardInterrupt

    primary, secondary = Side("primary", stopped), Side("secondary", answering)
    store = FallbackStore(primary, secondary, timeout_seconds=5, breaker=breaker)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        keys(store)
    primary.query = answering
    assert keys(store) == ["k"]
    assert breaker.state == "closed"
    store.close()


def test_a_call_that_tells_nothing_does_not_end_the_try_of_another() -> None:
    breaker = Breaker(failures=1, open_seconds=0.0)
    breaker.failed()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(breaker.allows).result()
        breaker.released()
        assert not breaker.allows()
        other.submit(breaker.released).result()
    assert breaker.allows()


def test_a_question_that_is_wrong_is_refused_and_no_failure(sides: tuple[VectorStore, PgVectorStore]) -> None:
    store = FallbackStore(*sides, timeout_seconds=5, breaker=Breaker(failures=1))
    with pytest.raises(FilterError):
        store.query(QUERY, filter={"a": {"$near": 1}})
    with pytest.raises(ConfigError):
        store.query(QUERY, top_k=0)
    assert store.breaker.state == "closed"


def test_writes_go_to_the_primary_and_fail_with_it(
    pinecone: PineconeEmulator, sides: tuple[VectorStore, PgVectorStore]
) -> None:
    store = FallbackStore(*sides, timeout_seconds=5)
    pinecone.faults.set("upsert", Fault(status=503))
    with pytest.raises(TransientError):
        store.upsert([RECORDS[39]])
    pinecone.faults.clear()
    store.upsert([RECORDS[39]])
    store.delete(["k29"])
    assert (sides[0].count(), sides[1].count()) == (30, 30)


def test_callers_are_not_served_one_after_another(sides: tuple[VectorStore, PgVectorStore]) -> None:
    """A breaker that held its lock during a call would let the barrier wait for ever."""
    meeting = threading.Barrier(4, timeout=10)
    ask = sides[0].query

    def query(*arguments: Any, **options: Any) -> Any:
        meeting.wait()
        return ask(*arguments, **options)

    sides[0].query = query  # type: ignore[method-assign]
    store = FallbackStore(*sides, timeout_seconds=10)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: keys(store, top_k=5), range(4)))
    assert answers == [nearest(RECORDS[:30], 5)] * 4


# Hybrid.


def test_a_union_has_the_nearest_of_both(sides: tuple[VectorStore, PgVectorStore]) -> None:
    store = HybridStore(*sides, join="union", timeout_seconds=5)
    assert keys(store, top_k=10) == nearest(RECORDS, 10)
    assert set(store.fetch(["k00", "k39"])) == {"k00", "k39"}


def test_an_intersection_has_what_both_found(sides: tuple[VectorStore, PgVectorStore]) -> None:
    store = HybridStore(*sides, join="intersection", timeout_seconds=5)
    assert keys(store, top_k=5) == nearest(RECORDS[10:30], 5)
    assert keys(store, top_k=10, filter={"even": True}) == nearest(RECORDS[10:30:2], 10)


def test_a_key_of_both_has_its_nearer_score_and_the_primarys_text(sides: tuple[VectorStore, PgVectorStore]) -> None:
    pinecone, pgvector = sides
    pinecone.upsert([Record("k20", -QUERY, "of pinecone", {})])
    pgvector.upsert([Record("k20", QUERY, "of pgvector", {})])
    for primary, secondary in (sides, sides[::-1]):
        hits = {
            hit.key: hit
            for hit in HybridStore(primary, secondary, join="union", timeout_seconds=5).query(QUERY, top_k=40)
        }
        assert hits["k20"].score == pytest.approx(1.0)
        assert hits["k20"].text == f"of {primary.name}"


def test_a_union_goes_on_without_one_side_and_an_intersection_does_not(
    pinecone: PineconeEmulator, sides: tuple[VectorStore, PgVectorStore], caplog: pytest.LogCaptureFixture
) -> None:
    pinecone.faults.set("query", Fault(status=401))
    for primary, secondary in (sides, sides[::-1]):
        assert keys(HybridStore(primary, secondary, join="union", timeout_seconds=5), top_k=5) == nearest(
            RECORDS[10:], 5
        )
        with pytest.raises(Exception, match="querying"):
            keys(HybridStore(primary, secondary, join="intersection", timeout_seconds=5))
    assert caplog.text.count("answers alone") == 2


def test_a_side_that_does_not_answer_in_time_has_failed(
    pinecone: PineconeEmulator, sides: tuple[VectorStore, PgVectorStore], caplog: pytest.LogCaptureFixture
) -> None:
    # The first search of a store connects, and reads its table: that is not to be what takes too long.
    for side in sides:
        assert keys(side)
    pinecone.faults.set("query", Fault(stall=3.0))
    pinecone.faults.set("fetch", Fault(stall=3.0))
    for primary, secondary in (sides, sides[::-1]):
        union = HybridStore(primary, secondary, join="union", timeout_seconds=0.5)
        assert keys(union, top_k=5) == nearest(RECORDS[10:], 5)
        with pytest.raises(TimedOut, match=r"pinecone gave no answer in 0\.5 s"):
            keys(HybridStore(primary, secondary, join="intersection", timeout_seconds=0.5))
        with pytest.raises(TimedOut):
            union.fetch(["k00"])
    assert caplog.text.count("pinecone failed, pgvector answers alone: TimedOut: pinecone gave no answer") == 2


class Side:
    """A store of one record whose ``query`` is what a test makes of it."""

    distance = "cosine"

    def __init__(self, name: str, query: Callable[..., Any]) -> None:
        self.name = name
        self.query = query

    def close(self) -> None:
        pass


def answering(*_: Any, **__: Any) -> list[Hit]:
    return [Hit("k", 1.0)]


def failing(*_: Any, **__: Any) -> list[Hit]:
    raise RuntimeError("a text that was asked for")


def test_calls_that_hang_on_one_side_leave_the_other_its_threads(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    hanging = Side("hanging", lambda *_, **__: ended.wait(60))
    store = HybridStore(hanging, Side("healthy", answering), join="union", timeout_seconds=0.3)  # type: ignore[arg-type]
    for _ in range(CALLS_AT_ONCE + 2):
        assert keys(store) == ["k"]
    assert caplog.text.count("hanging failed, healthy answers alone") == CALLS_AT_ONCE + 2
    ended.set()
    store.close()


def test_an_error_of_another_library_leaves_a_union_its_other_side_and_is_not_quoted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, healthy = Side("broken", failing), Side("healthy", answering)
    for sides in ((broken, healthy), (healthy, broken)):
        store = HybridStore(*sides, join="union", timeout_seconds=5)  # type: ignore[arg-type]
        assert keys(store) == ["k"]
        store.close()
    assert caplog.text.count("broken failed, healthy answers alone: RuntimeError") == 2
    assert "a text" not in caplog.text


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    """In a process of its own, which is killed where it does not end by itself."""
    program = """
import threading
from amprenta_vectors.stores.daemons import DaemonPool
pool = DaemonPool(2, "hangs")
pool.submit(threading.Event().wait)
print(pool.submit(int, "7").result(5))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "7\n"


def test_calls_wait_for_a_free_thread_and_errors_are_their_callers() -> None:
    pool = DaemonPool(2, "few")
    running: list[int] = []
    most: list[int] = []
    going = threading.Lock()

    def call(number: int) -> int:
        with going:
            running.append(number)
            most.append(len(running))
        threading.Event().wait(0.01)
        with going:
            running.remove(number)
        return 10 // number

    futures = [pool.submit(call, number) for number in (1, 2, 0, 5, 10)]
    assert [futures[i].result(5) for i in (0, 1, 3, 4)] == [10, 5, 2, 1]
    with pytest.raises(ZeroDivisionError):
        futures[2].result(5)
    assert max(most) == 2
    pool.close()


def test_a_pool_closes_though_a_thread_takes_the_last_call_meanwhile() -> None:
    class Taken(queue.SimpleQueue[Any]):
        def empty(self) -> bool:
            return False

    pool = DaemonPool(2, "closing")
    pool._waiting = Taken()
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()


def test_scores_of_two_distances_are_not_joined(emulator: Callable[..., PineconeEmulator], engine: sa.Engine) -> None:
    other = emulator(metric="euclidean")
    settings = Settings.load(
        pinecone_api_key="test-key", pinecone_index_name="test-index", pinecone_controller_host=other.host
    )
    store = HybridStore(
        open_pinecone_store(settings),
        PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""}),
        join="union",
        timeout_seconds=5,
    )
    with pytest.raises(ConfigError, match="pinecone measures l2 and pgvector cosine"):
        keys(store)


# The environment.


def test_the_settings_choose_the_mode(shared: dict[str, Any], sides: tuple[VectorStore, PgVectorStore]) -> None:
    fallback = get_vector_store(
        Settings.load(**shared, vector_backend="pgvector", vector_mode="fallback", vector_secondary="pinecone")
    )
    assert fallback.name == "pgvector, else pinecone"
    assert keys(fallback, top_k=5) == nearest(RECORDS[10:], 5)
    hybrid = get_vector_store(
        Settings.load(**shared, vector_mode="hybrid", vector_secondary="pgvector", vector_hybrid_join="intersection")
    )
    assert keys(hybrid, top_k=5) == nearest(RECORDS[10:30], 5)
    fallback.close()
    hybrid.close()


@pytest.mark.parametrize("backend", ["pinecone", "pgvector"])
@pytest.mark.parametrize("mode", ["fallback", "hybrid", "dual", "shadow"])
def test_a_store_that_is_away_keeps_nobody_from_opening_the_other_and_is_opened_once_it_answers(
    shared: dict[str, Any],
    sides: tuple[VectorStore, PgVectorStore],
    pinecone: PineconeEmulator,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    backend: str,
) -> None:
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    pinecone.faults.set("describe", Fault(status=503))
    other = "pgvector" if backend == "pinecone" else "pinecone"
    settings = Settings.load(
        **shared, vector_backend=backend, vector_mode=mode, vector_secondary=other, vector_timeout_seconds=60
    )
    store = get_vector_store(settings)
    if mode in ("fallback", "hybrid") or backend == "pgvector":
        assert keys(store, top_k=5) == nearest(RECORDS[10:], 5)
    else:
        with pytest.raises(TransientError):
            keys(store, top_k=5)
    if mode == "dual":
        store.upsert([Record("new", VECTORS[3])])
    pinecone.faults.clear()
    if mode == "dual":
        until(lambda: "new" in sides[0].fetch(["new"]))
    else:
        held = RECORDS if mode == "hybrid" else RECORDS[10:] if backend == "pgvector" else RECORDS[:30]
        assert keys(store, top_k=5) == nearest(held, 5)
    store.close()


def test_a_side_that_takes_long_to_open_holds_up_no_query_and_no_end(
    shared: dict[str, Any], sides: tuple[VectorStore, PgVectorStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    answers, opening = threading.Event(), threading.Event()
    closed: list[str] = []

    class Opened:
        name, distance = "pinecone", "cosine"

        def close(self) -> None:
            closed.append(self.name)

    def open_store() -> VectorStore:
        if not opening.is_set():
            opening.set()
            raise TransientError("away")
        answers.wait(60)
        return Opened()  # type: ignore[return-value]

    side = late.open_late("pinecone", open_store)
    store = HybridStore(side, sides[1], join="union", timeout_seconds=0.5)
    began = time.monotonic()
    assert keys(store, top_k=5) == nearest(RECORDS[10:], 5)
    store.close()
    assert time.monotonic() - began < 30
    answers.set()
    until(lambda: closed == ["pinecone"])


def test_scores_of_a_side_that_comes_late_with_another_distance_are_never_joined(
    sides: tuple[VectorStore, PgVectorStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    failures = [TransientError("away")]

    class Far:
        name, distance = "pinecone", "l2"

        def query(self, *_: Any, **__: Any) -> list[Hit]:
            return [Hit("far", 1000.0)]

        def close(self) -> None: ...

    def open_store() -> VectorStore:
        if failures:
            raise failures.pop()
        return Far()  # type: ignore[return-value]

    store = HybridStore(late.open_late("pinecone", open_store), sides[1], join="union", timeout_seconds=60)
    with pytest.raises(ConfigError, match="their scores do not compare"):
        store.query(QUERY)
    store.close()


def test_what_stands_in_the_way_of_one_that_was_away_leaves_the_answer_to_the_other(
    shared: dict[str, Any], sides: tuple[VectorStore, PgVectorStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    failures: list[Exception] = [TransientError("away"), ConfigError("the index has another metric")]

    def open_store() -> VectorStore:
        raise failures.pop(0) if len(failures) > 1 else failures[0]

    store = FallbackStore(late.open_late("pinecone", open_store), sides[1], timeout_seconds=60)
    for _ in range(2):
        assert keys(store, top_k=5) == nearest(RECORDS[10:], 5)
    assert store.distance == "cosine"
    store.close()


def test_what_waiting_cannot_mend_is_raised_at_once_and_later_too(
    shared: dict[str, Any], pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(**shared, vector_mode="fallback", vector_backend="pgvector", vector_secondary="pinecone")
    with pytest.raises(SourceNotFound):
        get_vector_store(settings.model_copy(update={"pinecone_index_name": "no-such-index"}))
    pinecone.faults.set("describe", Fault(status=503))
    monkeypatch.setattr(late, "RETRY_SECONDS", 3600.0)
    opened: list[int] = []

    def open_store() -> VectorStore:
        opened.append(1)
        return open_pinecone_store(settings)

    store = late.open_late("pinecone", open_store)
    for _ in range(3):
        with pytest.raises(TransientError):
            store.count()
    assert len(opened) == 1
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    with pytest.raises(TransientError):
        store.count()
    pinecone.faults.clear()
    assert (store.count(), store.distance, len(opened)) == (0, "cosine", 3)
    store.close()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"vector_mode": "fallback"}, ConfigError),
        ({"vector_mode": "fallback", "vector_secondary": "pinecone"}, ConfigError),
        ({"vector_secondary": "pgvector"}, ConfigError),
        ({"vector_mode": "hybrid", "vector_secondary": "postgres"}, UnknownBackend),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: dict[str, Any], error: type[ConfigError]) -> None:
    with pytest.raises(error, match="VECTOR_SECONDARY") as caught:
        get_vector_store(Settings.load(**settings))
    assert caught.value.hint


def test_a_threshold_leaves_out_what_is_not_as_near(shared: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    for backend in ("pinecone", "pgvector"):
        whole = get_vector_store(Settings.load(**shared, vector_backend=backend))
        whole.upsert(RECORDS)
        scores = [hit.score for hit in whole.query(QUERY, top_k=20)]
        settings = Settings.load(
            **shared, vector_backend=backend, **{f"{backend}_similarity_threshold": (scores[6] + scores[7]) / 2}
        )
        store = get_vector_store(settings)
        with caplog.at_level(logging.INFO):
            assert keys(store, top_k=20) == nearest(RECORDS, 7)
        assert f"search backend={backend} hits=7 threshold=" in caplog.text
        assert "text 0" not in caplog.text
        whole.close()
        store.close()


def test_keys_that_only_one_store_has_are_not_joined(shared: dict[str, Any], tmp_path: Path) -> None:
    declared = tmp_path / "amprenta.toml"
    declared.write_text(
        '[tables.made]\ntable = "made"\nkey = "id"\ndimension = 8\nkey_map = "uuid5"\n'
        'uuid_namespace = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"\n'
    )
    settings = Settings.load(**shared, table="made", config=declared, vector_mode="dual", vector_secondary="pgvector")
    with pytest.raises(ConfigError, match="uuid5"):
        get_vector_store(settings)
