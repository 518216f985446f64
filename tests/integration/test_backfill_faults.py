"""Failures of the source, of PostgreSQL and of the network that pass, and being told to stop: the run survives them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    count_writes,
    end_process,
    environment,
    execute,
    expected,
    fork_process,
    open_pinecone,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    writes_per_key,
)
from forked import ForkedProcess
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.engine import backoff as backoff_module
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.progress import batches, figures
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import CredentialsRefused, RateLimited, TransientError
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(200), to_vectors(200)


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    from pinecone._internal.http_client import get_budget_registry

    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)
    # The client stops retrying against a host after a burst of failures, and every test here is on the same host.
    get_budget_registry()._reset()


@pytest.fixture
def pinecone(emulator: StartEmulator) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


def stub() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)})


def all_once(engine: sa.Engine) -> None:
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


# The source.

FAULTS = {
    "429": Fault(status=429, retry_after=0.05, times=4),
    "500": Fault(status=500, probability=0.5),
    "reset": Fault(reset=True, probability=0.5),
    "truncated": Fault(truncate=True, probability=0.5),
    "late": Fault(latency=0.05),
    "stall": Fault(stall=0.05),
}


@pytest.mark.parametrize("transport", ["grpc", "rest"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_source_costs_time_and_nothing_else(
    engine: sa.Engine, pinecone: PineconeEmulator, transport: str, fault: str
) -> None:
    count_writes(engine)
    source = open_pinecone(pinecone, transport=transport)
    for route in ("list", "fetch"):
        pinecone.faults.set(route, FAULTS[fault])
    observer = Recorder()
    summary = run_job(engine, to_job(engine, source, batch_size=20), observer=observer)
    all_once(engine)
    assert summary.errors == {}
    # No attempt is charged.
    assert execute(engine, "SELECT max(attempt) FROM migration_progress") == [(1,)]
    assert observer.reasons[-1:] in ([], [None])


def test_a_stalled_source_is_asked_again_once_its_time_is_up(
    engine: sa.Engine, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.backends.pinecone.transports.REQUEST_SECONDS", 0.5)
    count_writes(engine)
    source = open_pinecone(pinecone)
    pinecone.faults.set("fetch", Fault(stall=3.0, times=2))
    run_job(engine, to_job(engine, source))
    all_once(engine)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_source_that_is_gone_for_a_while_is_waited_for(
    engine: sa.Engine, pinecone: PineconeEmulator, transport: str
) -> None:
    count_writes(engine)
    source = open_pinecone(pinecone, transport=transport)
    pinecone.faults.set("fetch", Fault(latency=0.1))
    observer = Recorder()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, source, batch_size=10), observer=observer)
        until(lambda: len(stored(engine)) >= 20)
        pinecone.stop()
        until(lambda: any(observer.reasons))
        pinecone.start()
        assert running.result().counts.written == 200
    all_once(engine)
    assert observer.reasons[-1] is None


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_key_that_is_refused_midway_stops_the_run_and_leaves_it_resumable(engine: sa.Engine) -> None:
    source, calls = stub(), iter(range(100))

    def refuse(keys: Sequence[str]) -> None:
        if next(calls) >= 3:
            raise CredentialsRefused("fetching: the key is not valid")

    source.before_fetch = refuse
    count_writes(engine)
    with pytest.raises(CredentialsRefused):
        run_job(engine, to_job(engine, source, batch_size=10))
    assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(0,)]
    states = execute(engine, "SELECT state, plan_owner, last_error FROM migration_run")
    assert states == [("running", None, "fetching: the key is not valid")]
    run_job(engine, to_job(engine, stub()), "resume")
    all_once(engine)
    assert execute(engine, "SELECT last_error FROM migration_run") == [(None,)]


def test_time_that_runs_out_ends_the_process_with_what_to_type_and_keeps_the_run(engine: sa.Engine) -> None:
    source = stub()

    def fail(keys: Sequence[str]) -> None:
        raise TransientError("fetching: the source is away")

    source.before_fetch = fail
    with pytest.raises(TransientError) as caught:
        run_job(engine, to_job(engine, source, retry_seconds=0.3))
    assert caught.value.exit_code == 1
    assert "--resume" in caught.value.hint
    assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(0,)]
    assert run_job(engine, to_job(engine, stub()), "resume").counts.written == 200


def test_the_wait_is_never_shorter_than_the_source_asked_for() -> None:
    error = RateLimited("slow down", retry_after=7.0)
    retry = Backoff(600.0, threading.Event(), lambda _: None)
    for attempt in range(1, 20):
        state = SimpleNamespace(outcome=SimpleNamespace(exception=lambda: error), attempt_number=attempt)
        wait = retry._wait(state)  # type: ignore[arg-type]
        assert 7.0 <= wait <= 7.0 + backoff_module.LONGEST_WAIT_SECONDS


def test_waiting_is_told_once_it_begins_and_once_it_ends() -> None:
    reasons: list[str | None] = []
    retry = Backoff(5.0, threading.Event(), reasons.append)
    failures = iter([TransientError("away"), TransientError("still away")])

    def step() -> str:
        if (failure := next(failures, None)) is not None:
            raise failure
        return "done"

    assert [retry(step), retry(step)] == ["done", "done"]
    assert reasons == ["away", "still away", None]


def test_waiting_ends_when_told_to_stop() -> None:
    stop = threading.Event()
    retry = Backoff(600.0, stop, lambda _: stop.set())

    def fail() -> None:
        raise RateLimited("later", retry_after=600.0)

    with pytest.raises(RateLimited):
        retry(fail)


# PostgreSQL.


@pytest.fixture
def own_engine(own_server: EmbeddedPostgres) -> Iterator[sa.Engine]:
    own_server.create_database("own")
    settings = Settings.load(database_url=own_server.url("own"), vector_dimension=8)
    upgrade(settings)
    engine = create_engine(settings, pool_size=20)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_postgresql_crashing_midway_is_waited_for(
    own_server: EmbeddedPostgres, own_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, keys_from: str
) -> None:
    monkeypatch.setattr("amprenta_vectors.schema.row_keys.KEYSET_PAGE", 10)
    count_writes(own_engine)
    if keys_from == "table":
        execute(own_engine, "INSERT INTO rag_chunks (chunk_id) SELECT unnest(CAST(:ids AS text[]))", ids=IDS)
    source, observer, fetched = stub(), Recorder(), iter(range(100))
    crash, crashed = threading.Event(), threading.Event()

    def slowly(keys: Sequence[str]) -> None:
        # The fifth batch and those after it meet the crash.
        if next(fetched) == 4:
            crash.set()
        if crash.is_set():
            crashed.wait(30)

    source.before_fetch = slowly
    job = to_job(own_engine, source, keys_from=keys_from, batch_size=10)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, own_engine, job, observer=observer)
        assert crash.wait(30)
        own_server.stop("immediate")
        crashed.set()
        until(lambda: any(observer.reasons) or running.done())
        own_server.start()
        assert running.result().counts.written == 200
    all_once(own_engine)


def test_told_to_stop_while_postgresql_is_away_a_process_ends(
    own_server: EmbeddedPostgres, own_engine: sa.Engine
) -> None:
    source, stop = stub(), threading.Event()

    def crash(keys: Sequence[str]) -> None:
        if own_server.running:
            own_server.stop("immediate")
        threading.Timer(0.3, stop.set).start()

    source.before_fetch = crash
    job = to_job(own_engine, source, workers=1)
    summary = run_job(own_engine, job, stop=stop)
    assert (summary.interrupted, summary.counts.written) == (True, 0)
    own_server.start()
    own_engine.dispose()
    execute(own_engine, "UPDATE migration_progress SET lease_expires_at = now()")
    execute(own_engine, "UPDATE migration_run SET plan_lease_expires_at = now()")
    assert run_job(own_engine, to_job(own_engine, stub()), "resume").counts.written == 200


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014"])
def test_a_conflict_with_another_transaction_is_tried_again(engine: sa.Engine, state: str) -> None:
    count_writes(engine)
    execute(
        engine,
        f"""
        CREATE SEQUENCE tries;
        CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('tries') <= 3 THEN
                RAISE EXCEPTION 'conflict' USING ERRCODE = '{state}';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER conflict BEFORE INSERT ON rag_chunks FOR EACH ROW EXECUTE FUNCTION conflict()
        """,
    )
    summary = run_job(engine, to_job(engine, stub()))
    all_once(engine)
    assert summary.errors == {}


def test_what_goes_beside_the_work_outlives_a_database_that_is_away(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases and figures leave a turn out; the workers decide how long to wait."""
    calls = threading.Event()

    def lost(*_: object) -> None:
        import psycopg2

        calls.set()
        raise DBAPIError("", None, psycopg2.OperationalError("server closed the connection"))

    monkeypatch.setattr(batches, "renew", lost)
    monkeypatch.setattr(figures, "count", counting_fails_from_the_second(figures.count, lost))
    source = stub()
    source.before_fetch = lambda keys: time.sleep(0.2)
    job = to_job(engine, source, lease_seconds=0.4, figures_seconds=0.01)
    summary = run_job(engine, job)
    assert calls.is_set()
    assert summary.run.state in {"running", "finished"}
    assert stored(engine) == expected(IDS, VECTORS)


def counting_fails_from_the_second(count: Callable[..., object], fail: Callable[..., None]) -> Callable[..., object]:
    first = iter([True])

    def counted(*arguments: object) -> object:
        if next(first, False):
            return count(*arguments)
        return fail(*arguments)

    return counted


def test_a_failure_of_one_thread_ends_all_of_them(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    source = stub()
    source.before_fetch = lambda keys: time.sleep(0.1)
    monkeypatch.setattr(batches, "renew", broken)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_job(engine, to_job(engine, source, batch_size=5, lease_seconds=0.2))
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), thread.name
    assert len(stored(engine)) < 200


# Being told to stop.


@pytest.fixture
def launch(upgraded_url: str, pinecone: PineconeEmulator) -> Iterator[Callable[..., ForkedProcess]]:
    processes: list[ForkedProcess] = []

    def start(*arguments: str) -> ForkedProcess:
        options = ("--keys-from", "source", "--resume", "--batch-size", "10", "--workers", "2", "--no-verify")
        variables = environment(upgraded_url, pinecone, AMPRENTA_LEASE_SECONDS="600")
        processes.append(fork_process(variables, *options, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        end_process(process)


def ends(process: ForkedProcess) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("fault", [Fault(latency=0.2), Fault(status=429, retry_after=5.0)], ids=["at work", "waiting"])
def test_a_signal_ends_a_process_with_130_and_nothing_claimed(
    engine: sa.Engine,
    pinecone: PineconeEmulator,
    launch: Callable[..., ForkedProcess],
    number: signal.Signals,
    fault: Fault,
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", fault)
    process = launch()
    until(lambda: pinecone.calls["fetch"] >= 1)
    process.send_signal(number)
    code, output = ends(process)
    assert code == 130, output
    assert "--resume" in output
    assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(0,)]
    pinecone.faults.clear()
    # The silence that the source asked for is over.
    execute(engine, "DELETE FROM migration_limit")
    # With a lease of ten minutes, anything left claimed would be waited for.
    assert ends(launch())[0] == 0
    all_once(engine)


def test_the_script_exits_with_2_when_its_key_is_refused_midway(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Callable[..., ForkedProcess]
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", Fault(latency=0.2))
    process = launch()
    until(lambda: len(stored(engine)) > 0)
    pinecone.faults.set("fetch", Fault(status=401))
    code, output = ends(process)
    assert code == 2, output
    assert "PINECONE_API_KEY" in output
    pinecone.faults.clear()
    assert ends(launch())[0] == 0
    all_once(engine)
