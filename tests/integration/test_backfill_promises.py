"""What a run promises whatever becomes of its processes: nothing lost, nothing twice, nothing of others changed."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    add_rows,
    count_writes,
    end_process,
    environment,
    execute,
    expected,
    fork_process,
    on_the_wire,
    open_planner,
    open_worker,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    write_fetched,
    writes_per_key,
)
from forked import ForkedProcess
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.kinds import open_kind
from amprenta_vectors.backfill.engine.planner import Planner
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.backfill.engine.worker import Worker
from amprenta_vectors.backfill.progress import batches, plans, runs
from amprenta_vectors.backfill.progress.batches import Batch, Outcome
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import CredentialsRefused, LeaseLost, RunConflict, SourceError, TransientError
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.schema.row_keys import EmptyRows

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(200), to_vectors(200)
GATE = 42
"""The advisory lock that a write of the row `HELD` waits for."""
HELD = IDS[70]


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    """With connections enough for several runs at once."""
    engine = create_engine(Settings.load(database_url=upgraded_url), pool_size=30)
    yield engine
    engine.dispose()


def stub(**options: Any) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}, **options)


def end_early(engine: sa.Engine, job: Job, after: int = 3) -> None:
    """Leave a run unfinished: the source refuses the key after some fetches."""
    source = job.source
    assert isinstance(source, StubSource)
    left = iter(range(after))

    def refuse(keys: Sequence[str]) -> None:
        if next(left, None) is None:
            raise CredentialsRefused("no longer")

    source.before_fetch = refuse
    with pytest.raises(CredentialsRefused):
        run_job(engine, replace(job, workers=1), "new")
    source.before_fetch = lambda keys: None


def test_what_the_application_wrote_before_or_during_the_run_stays(engine: sa.Engine) -> None:
    add_rows(engine, IDS)
    own = "[1,1,1,1,1,1,1,1]"
    write = "UPDATE rag_chunks SET embedding = CAST(:own AS vector) WHERE chunk_id = ANY(:keys)"
    execute(engine, write, own=own, keys=[IDS[0], IDS[1]])
    source = stub()
    source.before_fetch = lambda keys: execute(engine, write, own=own, keys=[keys[3], "inserted"])
    summary = run_job(engine, to_job(engine, source))
    found = stored(engine)
    # Those of the application are the first two, and the fourth of each batch of fifty.
    applications = {IDS[0], IDS[1], *IDS[3::50]}
    ones = on_the_wire(np.ones(8, np.float32))
    assert found == {**expected(IDS, VECTORS), **dict.fromkeys(applications, ones)}
    assert (summary.counts.written, summary.counts.skipped) == (200 - len(applications), len(applications))
    assert execute(engine, "SELECT DISTINCT content FROM rag_chunks") == [("own text",)]


def test_a_row_that_the_application_holds_is_waited_for_and_its_value_stays(engine: sa.Engine) -> None:
    add_rows(engine, IDS)
    held = engine.connect()
    held.execute(sa.text("UPDATE rag_chunks SET embedding = '[1,1,1,1,1,1,1,1]' WHERE chunk_id = :key"), {"key": HELD})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, stub(), keys_from="table"))
        wait_until(engine, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'", 1)
        held.commit()
        held.close()
        assert running.result().counts.skipped == 1
    found = stored(engine)
    assert found.pop(HELD) != on_the_wire(VECTORS[70])
    assert found == {key: vector for key, vector in expected(IDS, VECTORS).items() if key != HELD}


def test_rows_and_their_checkpoint_are_one_transaction(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    count_writes(engine)
    job = to_job(engine, stub())
    with monkeypatch.context() as patch:
        patch.setattr(batches, "complete", failing(RuntimeError("between the rows and their checkpoint")))
        with pytest.raises(RuntimeError):
            run_job(engine, job)
        assert stored(engine) == {}
        assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status <> 'pending'") == [(0,)]
    run_job(engine, job, "resume")
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


def test_a_commit_whose_answer_was_lost_counts_once(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    count_writes(engine)
    write, lost = Worker._write, set[int]()

    def lose_first_answer(self: Worker, batch: Batch, fetched: Any) -> Outcome:
        outcome = write(self, batch, fetched)
        if batch.number not in lost:
            lost.add(batch.number)
            raise TransientError("the connection was lost after the commit")
        return outcome

    monkeypatch.setattr(Worker, "_write", lose_first_answer)
    summary = run_job(engine, to_job(engine, stub()))
    assert len(lost) == 4
    assert (summary.written_here, summary.counts.written, summary.counts.skipped) == (200, 200, 0)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


def test_a_claim_whose_answer_was_lost_expires_and_is_taken_again(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), lease_seconds=0.4)
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")
    plan(engine, run, job)
    with transaction(engine) as connection:
        assert batches.claim(connection, run.id, work._owner, 0.4) is not None
    assert work.work(run).counts.written == 200
    assert execute(engine, "SELECT max(attempt) FROM migration_progress") == [(2,)]


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def wait_until(engine: sa.Engine, query: str, value: Any, seconds: float = 30.0) -> None:
    """Poll until ``query`` gives ``value``."""
    deadline = time.monotonic() + seconds
    while (found := execute(engine, query)[0][0]) != value:
        assert time.monotonic() < deadline, f"{query} gives {found!r}"
        time.sleep(0.05)


# Processes that are killed, or stopped and continued.


GATED = {
    "rows": f"rag_chunks FOR EACH ROW WHEN (NEW.chunk_id = '{HELD}')",
    "checkpoint": f"migration_progress FOR EACH ROW WHEN (NEW.status = 'done' AND '{HELD}' BETWEEN NEW.first_key AND "
    "NEW.last_key)",
}
"""Where a transaction waits: its rows are written and locked; or its batch is locked and done, too."""


@contextmanager
def gate(engine: sa.Engine, gated: str = "rows") -> Iterator[Callable[[], None]]:
    """Makes a transaction that writes `HELD` wait until what is yielded is called."""
    execute(
        engine,
        f"""
        CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared({GATE});
            RETURN NULL;
        END $$;
        CREATE TRIGGER gate AFTER INSERT OR UPDATE ON {GATED[gated]} EXECUTE FUNCTION wait_for_gate()
        """,
    )
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:gate)"), {"gate": GATE})
        yield lambda: connection.execute(sa.text("SELECT pg_advisory_unlock(:gate)"), {"gate": GATE}).close()


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name LIKE 'amprenta %'"
IDLE = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in tr%' AND application_name LIKE 'amprenta %'"


@pytest.fixture
def pinecone(emulator: StartEmulator) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


@pytest.fixture
def launch(upgraded_url: str, pinecone: PineconeEmulator) -> Iterator[Callable[..., ForkedProcess]]:
    """A function that starts a process of the run; none is left behind."""
    processes: list[ForkedProcess] = []

    def start(*arguments: str, **variables: str) -> ForkedProcess:
        options = ("--keys-from", "source", "--resume", "--batch-size", "20", "--no-verify", *arguments)
        processes.append(fork_process(environment(upgraded_url, pinecone, **variables), *options))
        return processes[-1]

    yield start
    for process in processes:
        end_process(process)


def ends(process: ForkedProcess, code: int = 0) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    return output


@pytest.mark.parametrize("gated", GATED)
def test_a_process_killed_while_it_writes_loses_nothing_and_writes_nothing_twice(
    engine: sa.Engine, launch: Callable[..., ForkedProcess], gated: str
) -> None:
    count_writes(engine)
    with gate(engine, gated) as open_gate:
        process = launch(AMPRENTA_LEASE_SECONDS="0.5")
        wait_until(engine, WAITING, 1)
        process.kill()
        process.wait()
        assert HELD not in stored(engine)
        open_gate()
    ends(launch("--workers", "3", "--batch-size", "33"))
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


@pytest.mark.parametrize("gated", GATED)
def test_a_process_stopped_inside_its_write_holds_nobody_up_and_overwrites_nothing(
    engine: sa.Engine, launch: Callable[..., ForkedProcess], gated: str
) -> None:
    count_writes(engine)
    with gate(engine, gated) as open_gate:
        first = launch("--workers", "1", AMPRENTA_LEASE_SECONDS="0.5")
        wait_until(engine, WAITING, 1)
        first.stop()
        open_gate()
        # What it locked stays locked, and it does not move.
        wait_until(engine, IDLE, 1)
    output = ends(launch())
    assert "finished" in output
    assert execute(engine, IDLE) == [(0,)]
    assert stored(engine) == expected(IDS, VECTORS)
    execute(engine, "UPDATE rag_chunks SET embedding = '[1,1,1,1,1,1,1,1]' WHERE chunk_id = :key", key=HELD)
    first.send_signal(signal.SIGCONT)
    ends(first)
    assert stored(engine)[HELD] != on_the_wire(VECTORS[70])
    assert writes_per_key(engine) == {**dict.fromkeys(IDS, 1), HELD: 2}
    assert execute(engine, "SELECT max(attempt) FROM migration_progress") == [(2,)]


def test_a_process_stopped_elsewhere_holds_nobody_up(engine: sa.Engine) -> None:
    """As one stopped between the claim, or the plan, and its commit: the server itself ends its transaction."""
    job = to_job(engine, stub())
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")

    def stop_midway() -> None:
        with transaction(engine) as connection:
            assert connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "10s"
            assert plans.claim_plan(connection, run.id, "stopped", 1.0) is not None
            connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = '200ms'"))
            assert work.work(run).counts.written == 200
            connection.execute(sa.text("SELECT 'continued'"))

    with pytest.raises(OperationalError):
        stop_midway()


def test_three_processes_share_a_run(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Callable[..., ForkedProcess]
) -> None:
    count_writes(engine)
    # Slow until each of the three has a batch.
    pinecone.faults.set("fetch", Fault(latency=1.0))
    processes = [launch("--workers", "1", "--batch-size", "10") for _ in range(3)]
    wait_until(engine, "SELECT count(DISTINCT owner) FROM migration_progress", 3)
    pinecone.faults.clear()
    outputs = [ends(process) for process in processes]
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert all("200 rows written" in output for output in outputs)
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(1,)]


def test_several_workers_of_several_processes_share_a_run_in_one_second(engine: sa.Engine) -> None:
    count_writes(engine)
    job = to_job(engine, stub(), batch_size=3)
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: run_job(engine, job, "resume"), range(4)))
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert sum(summary.written_here for summary in summaries) == 200
    assert sum(summary.ended_it for summary in summaries) == 1


# Leases.


def attempts(engine: sa.Engine) -> int:
    largest: int = execute(engine, "SELECT max(attempt) FROM migration_progress")[0][0]
    return largest


RENEWED_SECONDS = 1.5
"""A lease that is short to wait for, and long enough that a busy machine renews it in time."""


def outlive_lease(engine: sa.Engine, key: str) -> None:
    """Wait until the batch that ``key`` is in would be another's, had its lease not been renewed."""
    lease = "SELECT lease_expires_at FROM migration_progress WHERE status = 'running' AND :key = ANY(keys)"
    ((first,),) = execute(engine, lease, key=key)
    while execute(engine, "SELECT now() > :first", first=first) == [(False,)]:
        time.sleep(0.05)


def test_a_lease_is_renewed_while_the_source_takes_its_time(engine: sa.Engine) -> None:
    slow, quick = stub(), stub()
    slow.before_fetch = lambda keys: outlive_lease(engine, keys[0])
    with ThreadPoolExecutor(2) as pool:
        jobs = [to_job(engine, source, lease_seconds=RENEWED_SECONDS) for source in (slow, quick)]
        assert all(pool.map(lambda job: run_job(engine, job, "resume"), jobs))
    assert attempts(engine) == 1


def test_a_lease_is_renewed_while_rows_are_being_written(engine: sa.Engine) -> None:
    with gate(engine) as open_gate, ThreadPoolExecutor(2) as pool:
        jobs = [to_job(engine, stub(), lease_seconds=RENEWED_SECONDS, batch_size=20) for _ in range(2)]
        runs = [pool.submit(run_job, engine, job, "resume") for job in jobs]
        held = f"SELECT count(*) FROM migration_progress WHERE status = 'running' AND '{HELD}' = ANY(keys)"
        wait_until(engine, held, 1)
        outlive_lease(engine, HELD)
        open_gate()
        assert [run.result().run.state for run in runs] == ["finished", "finished"]
    assert attempts(engine) == 1


def test_a_worker_that_comes_back_after_its_lease_leaves_the_rows_alone(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), batch_size=20)
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")
    plan(engine, run, job)
    late = open_worker(work, run, owner="late", lease_seconds=0.0)
    current = open_worker(work, run, owner="current")
    batch = late._claim()
    assert batch is not None
    fetched = job.source.fetch(batch.keys)
    taken = current._claim()
    assert taken is not None
    assert (taken.number, taken.attempt) == (batch.number, 2)
    with pytest.raises(LeaseLost):
        write_fetched(late, batch, fetched)
    assert stored(engine) == {}
    assert write_fetched(current, taken, fetched).written == 20
    with pytest.raises(LeaseLost):
        write_fetched(late, batch, fetched)


def test_a_claim_that_a_crash_of_the_server_took_lets_no_row_be_written_twice(engine: sa.Engine) -> None:
    count_writes(engine)
    job = to_job(engine, stub(), batch_size=20)
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")
    plan(engine, run, job)
    worker = open_worker(work, run, owner="one process")
    lost = worker._claim()
    assert lost is not None
    fetched = job.source.fetch(lost.keys)
    execute(
        engine,
        "UPDATE migration_progress SET status = 'pending', owner = NULL, attempt = 0, lease_expires_at = NULL "
        "WHERE batch = :batch",
        batch=lost.number,
    )
    with pytest.raises(LeaseLost):
        write_fetched(worker, lost, fetched)
    # Another thread of the process claims it by the same owner and attempt.
    again = worker._claim()
    assert again is not None
    assert (again.number, again.attempt, again.keys) == (lost.number, lost.attempt, lost.keys)
    with pytest.raises(LeaseLost):
        write_fetched(worker, lost, fetched)
    assert write_fetched(worker, again, fetched).written == 20
    with pytest.raises(LeaseLost):
        write_fetched(worker, lost, fetched)
    assert writes_per_key(engine) == dict.fromkeys(lost.keys, 1)


def test_the_commit_of_a_claim_does_not_wait_for_the_disk_and_that_of_a_plan_does(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(engine, f"ALTER DATABASE {engine.url.database} SET synchronous_commit = 'on'")
    engine.dispose()
    waits: dict[str, set[str]] = {}

    def observed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def observe(connection: Connection, *arguments: Any, **options: Any) -> Any:
            waits.setdefault(name, set()).add(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one())
            return step(connection, *arguments, **options)

        return observe

    monkeypatch.setattr(batches, "claim", observed("claim", batches.claim))
    monkeypatch.setattr(plans, "extend_plan", observed("plan", plans.extend_plan))
    assert run_job(engine, to_job(engine, stub(), batch_size=20)).counts.written == 200
    assert waits == {"claim": {"off"}, "plan": {"on"}}


# Starting, resuming, starting anew.


def test_a_run_goes_on_with_other_workers_and_batch_size(engine: sa.Engine) -> None:
    count_writes(engine)
    job = to_job(engine, stub(), batch_size=20)
    end_early(engine, job)
    assert 0 < len(stored(engine)) < 200
    summary = run_job(engine, replace(job, workers=5, batch_size=7), "resume")
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert (summary.run.state, summary.counts.written) == ("finished", 200)
    assert execute(engine, "SELECT count(*) FROM migration_run") == [(1,)]


def test_starting_anew_leaves_what_is_filled_and_keeps_the_former_run(engine: sa.Engine) -> None:
    count_writes(engine)
    job = to_job(engine, stub(), batch_size=20)
    end_early(engine, job)
    filled = len(stored(engine))
    summary = run_job(engine, job, "restart")
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert (summary.counts.written, summary.counts.skipped) == (200 - filled, filled)
    assert execute(engine, "SELECT state FROM migration_run ORDER BY id") == [("cancelled",), ("finished",)]


def test_a_run_started_anew_ends_the_processes_of_the_former(engine: sa.Engine) -> None:
    count_writes(engine)
    former, at_work, go_on = stub(), threading.Event(), threading.Event()

    def hold(keys: Sequence[str]) -> None:
        at_work.set()
        go_on.wait(30)

    former.before_fetch = hold
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, former))
        assert at_work.wait(30)
        assert run_job(engine, to_job(engine, stub()), "restart").counts.written == 200
        go_on.set()
        with pytest.raises(RunConflict, match="cancelled by somebody else"):
            running.result()
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(0,)]


def test_a_cancelled_run_waits_for_the_write_under_way_and_lets_no_other_commit(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), batch_size=20)
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")
    plan(engine, run, job)
    worker = open_worker(work, run)
    first, second = worker._claim(), worker._claim()
    assert first is not None
    assert second is not None

    def cancel() -> None:
        with transaction(engine) as connection:
            runs.cancel(connection, run.id)

    with ThreadPoolExecutor(1) as pool, engine.begin() as connection:
        batches.lock_batch(connection, run.id, work._owner, first)
        cancelling = pool.submit(cancel)
        wait_until(engine, "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('transactionid', 'tuple')", 1)
        connection.commit()
        cancelling.result()
    with pytest.raises(LeaseLost):
        write_fetched(worker, second, job.source.fetch(second.keys))


def test_a_plain_start_on_an_unfinished_run_says_how_far_it_is_and_what_to_type(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), batch_size=20)
    end_early(engine, job)
    filled = len(stored(engine))
    with pytest.raises(RunConflict, match=rf"unfinished: {filled} of \d+ keys are done") as caught:
        run_job(engine, job, "new")
    assert "--resume" in caught.value.hint
    assert "--restart" in caught.value.hint


def test_what_differs_from_the_runs_beginning_is_named(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), model="m1")
    end_early(engine, job)
    other = [
        (replace(job, model="m2"), "model was 'm1', is 'm2'"),
        (replace(job, source=stub(identity="elsewhere")), "source was 'stub', is 'elsewhere'"),
        (replace(job, slice=replace(job.slice, table=replace(job.slice.table, dimension=9))), "dimension was 8, is 9"),
        (replace(job, source=stub(distance="l2")), "its distance"),
        (replace(job, limit=5), "--limit was None, is 5"),
        (replace(job, kind=open_kind("table")), "--keys-from was 'source', is 'table'"),
    ]
    for changed, message in other:
        with pytest.raises(RunConflict, match=message):
            run_job(engine, changed, "resume")
    run_job(engine, job, "resume")


def test_a_second_model_is_refused_while_a_vector_of_the_first_is_there(engine: sa.Engine) -> None:
    job = to_job(engine, stub(), model="m1")
    run_job(engine, job)
    for mode in ("new", "resume", "restart"):
        with pytest.raises(RunConflict, match="holds vectors of model m1; this run is m2"):
            run_job(engine, replace(job, model="m2"), mode)  # type: ignore[arg-type]
    run_job(engine, replace(to_job(engine, stub(), namespace="another"), model="m2"))
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE namespace = ''")
    assert run_job(engine, replace(job, model="m2")).counts.written == 200
    assert execute(engine, "SELECT DISTINCT embedding_model FROM rag_chunks") == [("m2",)]


def test_a_run_without_a_model_leaves_the_models_column_alone(engine: sa.Engine) -> None:
    add_rows(engine, IDS)
    execute(engine, "UPDATE rag_chunks SET embedding_model = 'the application''s'")
    run_job(engine, to_job(engine, stub()))
    assert execute(engine, "SELECT DISTINCT embedding_model FROM rag_chunks") == [("the application's",)]


def test_the_run_that_a_revision_queued_is_taken_over(engine: sa.Engine) -> None:
    queued = execute(engine, "SELECT id, state FROM migration_run")
    assert [state for _, state in queued] == ["planned"]
    summary = run_job(engine, to_job(engine, stub()), "resume")
    assert summary.run.id == queued[0][0]
    assert run_job(engine, to_job(engine, stub())).run.id != summary.run.id


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_process_that_resumes_after_the_end_finds_the_run_finished_and_reads_nothing(
    engine: sa.Engine, keys_from: str
) -> None:
    add_rows(engine, IDS)
    first = run_job(engine, to_job(engine, stub(), keys_from=keys_from), "resume")
    source = stub()
    late = run_job(engine, to_job(engine, source, keys_from=keys_from), "resume")
    assert (late.run.id, late.run.state, late.ended_it) == (first.run.id, "finished", False)
    assert source.fetched == []
    assert execute(engine, "SELECT count(*) FROM migration_run") == [(1,)]


def test_resuming_after_the_end_takes_up_rows_that_came_since(engine: sa.Engine) -> None:
    add_rows(engine, IDS[:50])
    run_job(engine, to_job(engine, stub(), keys_from="table"), "resume")
    add_rows(engine, IDS[50:60])
    assert run_job(engine, to_job(engine, stub(), keys_from="table"), "resume").counts.written == 10


def test_resuming_after_a_limited_run_lists_the_rest(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub(), keys_from="source", limit=30), "resume")
    run_job(engine, to_job(engine, stub(), keys_from="source"), "resume")
    assert execute(engine, "SELECT count(embedding) FROM rag_chunks") == [(len(IDS),)]


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_limit_ends_a_run_after_so_many_keys(engine: sa.Engine, keys_from: str) -> None:
    add_rows(engine, IDS)
    job = to_job(engine, stub(), keys_from=keys_from, limit=33, batch_size=10)
    summary = run_job(engine, job)
    assert (summary.counts.written, summary.run.planned_keys, summary.run.state) == (33, 33, "finished")
    assert stored(engine) == expected(IDS[:33], VECTORS[:33])


# Planning.


def plan(engine: sa.Engine, run: Run, job: Job) -> None:
    """Plan a run without working at it; whoever plans next need not wait for this one's lease to run out."""
    try:
        open_planner(engine, job, run).run()
    finally:
        execute(engine, "UPDATE migration_run SET plan_owner = NULL")


def planned(engine: sa.Engine) -> list[str]:
    return [key for (keys,) in execute(engine, "SELECT keys FROM migration_progress ORDER BY batch") for key in keys]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_plan_that_was_cut_off_anywhere_goes_on_without_losing_or_doubling_a_key(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, keys_from: str, when: str
) -> None:
    monkeypatch.setattr("amprenta_vectors.schema.row_keys.KEYSET_PAGE", 20)
    add_rows(engine, IDS)
    job = to_job(engine, stub(), keys_from=keys_from, batch_size=15)
    run = Backfill(engine, job, Recorder(), threading.Event()).start("new")
    store = Planner._store

    def cut_off(self: Planner, *arguments: Any) -> Any:
        if when == "after the commit":
            store(self, *arguments)
        raise Killed

    for _ in range(30):
        with monkeypatch.context() as patch:
            patch.setattr(Planner, "_store", cut_off)
            with suppress(Killed):
                plan(engine, run, job)
        with suppress(Killed), monkeypatch.context() as patch:
            steps = iter([store, cut_off])
            patch.setattr(Planner, "_store", lambda self, *args: next(steps)(self, *args))  # noqa: B023
            plan(engine, run, job)
    plan(engine, run, job)
    assert planned(engine) == IDS
    assert execute(engine, "SELECT planned_keys, planned_at IS NULL FROM migration_run") == [(200, False)]


def test_a_plan_whose_answer_was_lost_is_stored_once(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = to_job(engine, stub(), batch_size=15)
    run = Backfill(engine, job, Recorder(), threading.Event()).start("new")
    store, lose = Planner._store, iter([True, False] * 50)

    def lose_answer(self: Planner, *arguments: Any) -> Any:
        longer = store(self, *arguments)
        if next(lose):
            raise TransientError("the connection was lost after the commit")
        return longer

    monkeypatch.setattr(Planner, "_store", lose_answer)
    plan(engine, run, job)
    assert planned(engine) == IDS


def test_a_refused_page_token_costs_a_second_listing_and_never_a_result(engine: sa.Engine) -> None:
    count_writes(engine)
    source, refusals = stub(), iter([True])

    def refuse(token: str | None) -> None:
        if token == "120" and next(refusals, False):
            raise TokenRefused("stale")

    source.before_page = refuse
    summary = run_job(engine, to_job(engine, source))
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert (summary.run.state, summary.counts.written, summary.counts.skipped) == ("finished", 200, 100)


def test_a_source_that_refuses_its_own_tokens_for_ever_is_given_up(engine: sa.Engine) -> None:
    source = stub()

    def refuse(token: str | None) -> None:
        if token is not None:
            raise TokenRefused("stale")

    source.before_page = refuse
    with pytest.raises(SourceError, match="refuses its own page tokens"):
        run_job(engine, to_job(engine, source))


def test_rows_filled_meanwhile_shift_no_page_of_the_tables_keys(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.schema.row_keys.KEYSET_PAGE", 7)
    add_rows(engine, IDS)
    job = to_job(engine, stub(), keys_from="table")
    seen: list[str] = []
    for page, token in EmptyRows(engine, job.slice).iter_keys():
        seen.extend(page)
        fill = "UPDATE rag_chunks SET embedding = '[1,1,1,1,1,1,1,1]' WHERE chunk_id = ANY(:keys)"
        execute(engine, fill, keys=list(page))
        assert token is None or json.loads(token) == [page[-1]]
    assert seen == IDS


def test_an_empty_source_is_a_finished_run(engine: sa.Engine) -> None:
    summary = run_job(engine, to_job(engine, StubSource({})))
    assert (summary.run.state, summary.counts.written, summary.run.planned_keys) == ("finished", 0, 0)


def test_a_stopped_run_leaves_nothing_claimed(engine: sa.Engine) -> None:
    stop, source = threading.Event(), stub()
    source.before_fetch = lambda keys: stop.set()
    summary = run_job(engine, to_job(engine, source, batch_size=10), stop=stop)
    assert summary.interrupted
    # What was in hand has ended; nobody has to wait for a lease.
    assert execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(0,)]
    assert execute(engine, "SELECT plan_owner FROM migration_run") == [(None,)]
    assert 0 < summary.counts.written < 200
    assert run_job(engine, to_job(engine, stub()), "resume").counts.written == 200


def test_a_batch_does_not_wait_for_the_disk_and_the_end_of_the_run_does(engine: sa.Engine) -> None:
    execute(engine, "CREATE TABLE commits (of text, synchronous text)")
    execute(
        engine,
        """
        CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO commits VALUES (TG_TABLE_NAME, current_setting('synchronous_commit'));
            RETURN NULL;
        END $$
        """,
    )
    execute(
        engine,
        "CREATE TRIGGER note_rows AFTER UPDATE ON rag_chunks FOR EACH STATEMENT EXECUTE FUNCTION note_commit()",
    )
    execute(
        engine,
        "CREATE TRIGGER note_end AFTER UPDATE ON migration_run FOR EACH ROW WHEN (NEW.state = 'finished') "
        "EXECUTE FUNCTION note_commit()",
    )
    [(database,)] = execute(engine, "SELECT current_database()")
    execute(engine, f"ALTER DATABASE {database} SET synchronous_commit = on")
    engine.dispose()
    add_rows(engine, IDS)
    records = {key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}
    run_job(engine, to_job(engine, StubSource(records), keys_from="table"))
    assert set(execute(engine, "SELECT * FROM commits")) == {("rag_chunks", "off"), ("migration_run", "on")}


def test_a_run_whose_last_batches_a_crash_took_back_is_not_called_finished(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are committed without waiting for the disk; the last may be gone once the server is back."""
    finish, taken_back = runs.finish, IDS[150:]

    def after_a_crash(connection: sa.Connection, run_id: int) -> bool:
        if not execute(engine, "SELECT 1 FROM migration_progress WHERE batch = 99"):
            lost = "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = ANY(:keys)"
            execute(engine, lost, keys=taken_back)
            execute(
                engine,
                "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys) "
                "VALUES (:run, 99, '', '', CAST(:keys AS text[]))",
                run=run_id,
                keys=taken_back,
            )
        return finish(connection, run_id)

    monkeypatch.setattr(runs, "finish", after_a_crash)
    summary = run_job(engine, to_job(engine, stub()))
    assert summary.run.state == "finished"
    assert summary.ended_it
    assert stored(engine) == expected(IDS, VECTORS)
    assert execute(engine, "SELECT status, rows_written FROM migration_progress WHERE batch = 99") == [("done", 50)]


def test_a_process_that_was_told_to_end_does_not_call_an_unfinished_run_finished(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that is taken back before it was carried out: those who heeded it leave the run to others."""
    job, source = to_job(engine, stub(), batch_size=10), stub()
    work = Backfill(engine, replace(job, source=source), Recorder(), threading.Event())
    run = work.start("new")
    source.before_fetch = lambda keys: work.hold.end()
    with pytest.raises(RunConflict, match="this process has left it"):
        work.work(run)
    assert execute(engine, "SELECT state FROM migration_run WHERE source IS NOT NULL") == [("running",)]
    run_job(engine, job, "resume")
    assert stored(engine) == expected(IDS, VECTORS)
