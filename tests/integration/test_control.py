"""Steering a run from another process: pause, resume, cancel and limits, and what a pause promises."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    writes_per_key,
)
from click.testing import CliRunner, Result
from forked import ForkedProcess

from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.backfill.progress import batches, events, runs
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.orders import change_limits, settle_pause
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, RunConflict
from amprenta_vectors.moves import orders
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

IDS, VECTORS = to_ids(200), to_vectors(200)
SELDOM_SECONDS = 0.5
"""As seldom as a process may look for orders."""
Launch = Callable[..., ForkedProcess]
Command = Callable[..., Result]


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


@pytest.fixture
def launch(upgraded_url: str, pinecone: PineconeEmulator) -> Iterator[Launch]:
    """Starts a backfill in a process of its own."""
    processes: list[ForkedProcess] = []

    def start(*arguments: str, **variables: str) -> ForkedProcess:
        options = ("--keys-from", "source", "--resume", "--batch-size", "5", "--workers", "2", "--no-verify")
        variables = environment(upgraded_url, pinecone, AMPRENTA_LEASE_SECONDS="600", **variables)
        processes.append(fork_process(variables, *options, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        end_process(process)


@pytest.fixture
def command(upgraded_url: str) -> Command:
    """Types a command on a terminal of its own."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env={"DATABASE_URL": upgraded_url})

    return run


def stub(ids: Sequence[str] = IDS) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(ids, VECTORS, strict=False)})


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(process: ForkedProcess) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def state_of(engine: sa.Engine) -> str:
    state: str = execute(engine, "SELECT state FROM migration_run ORDER BY id DESC LIMIT 1")[0][0]
    return state


def held(engine: sa.Engine) -> int:
    number: int = execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'")[0][0]
    return number


def owners_of(engine: sa.Engine) -> set[str]:
    """The processes that have joined a run."""
    return {owner for (owner,) in execute(engine, "SELECT detail->>'owner' FROM migration_event") if owner}


def events_of(engine: sa.Engine, run_id: int = 1) -> list[str]:
    with engine.connect() as connection:
        return [event.event for event in events.list_events(connection, run_id)]


def all_once(engine: sa.Engine) -> None:
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


def seen_of(engine: sa.Engine, pinecone: PineconeEmulator) -> tuple[object, ...]:
    """What changes with every claim, call to the source, and write."""
    claims = execute(engine, "SELECT count(*), sum(attempt) FROM migration_progress")
    return claims, dict(pinecone.calls), len(stored(engine))


def writing(engine: sa.Engine) -> int:
    """Sessions in a transaction that writes a batch."""
    statement = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name LIKE 'amprenta %' AND datname = current_database() AND xact_start IS NOT NULL
    """
    number: int = execute(engine, statement)[0][0]
    return number


# Pausing and going on.


@pytest.mark.parametrize("fault", [Fault(latency=0.1), Fault(status=429, retry_after=0.1)], ids=["at work", "waiting"])
def test_within_two_seconds_of_a_pause_nothing_is_claimed_called_or_written(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Launch, command: Command, fault: Fault
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", fault)
    processes = [launch(AMPRENTA_POLL_SECONDS=str(SELDOM_SECONDS)) for _ in range(2)]
    until(lambda: pinecone.calls["fetch"] >= 8 and len(owners_of(engine)) == 2)
    ordered = time.monotonic()
    paused = command("pause")
    assert paused.exit_code == 0, paused.output
    assert "run 1 is paused: nobody works at it" in paused.output
    assert (state_of(engine), held(engine)) == ("paused", 0)
    time.sleep(max(0.0, ordered + 2.0 - time.monotonic()))
    before = seen_of(engine, pinecone)
    watched_until = time.monotonic() + 1.0
    while time.monotonic() < watched_until:
        assert writing(engine) == 0
        time.sleep(0.02)
    assert seen_of(engine, pinecone) == before
    assert len(stored(engine)) < len(IDS)
    assert [process.poll() for process in processes] == [None, None]
    pinecone.faults.clear()
    assert command("resume").exit_code == 0
    for process in processes:
        code, output = ends(process)
        assert code == 0, output
        assert "waiting: run 1 is paused; amprenta-vectors resume 1" in output
    all_once(engine)


def test_a_process_may_not_look_for_orders_more_seldom_than_a_pause_promises() -> None:
    assert Settings.load(poll_seconds=SELDOM_SECONDS).poll_seconds == SELDOM_SECONDS
    with pytest.raises(ConfigError, match="AMPRENTA_POLL_SECONDS"):
        Settings.load(poll_seconds=SELDOM_SECONDS + 0.01)


def test_a_process_that_joins_a_paused_run_waits_until_it_is_resumed(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Launch, command: Command
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", Fault(latency=0.1))
    first = launch()
    until(lambda: pinecone.calls["fetch"] >= 3)
    assert command("pause").exit_code == 0
    first.send_signal(signal.SIGTERM)
    assert ends(first)[0] == 130
    before = seen_of(engine, pinecone)[2], pinecone.calls["fetch"], pinecone.calls["list"]
    second = launch()
    until(lambda: len(owners_of(engine)) == 2)
    time.sleep(0.3)
    assert second.poll() is None
    assert (len(stored(engine)), pinecone.calls["fetch"], pinecone.calls["list"]) == before
    assert state_of(engine) == "paused"
    pinecone.faults.clear()
    assert command("resume").exit_code == 0
    code, output = ends(second)
    assert code == 0, output
    assert "run 1 is paused; amprenta-vectors resume 1" in output
    all_once(engine)


def test_a_paused_process_ends_on_a_signal(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Launch, command: Command
) -> None:
    pinecone.faults.set("fetch", Fault(latency=0.1))
    process = launch()
    until(lambda: pinecone.calls["fetch"] >= 3)
    assert command("pause").exit_code == 0
    process.send_signal(signal.SIGINT)
    assert ends(process)[0] == 130
    assert state_of(engine) == "paused"


def test_a_pause_waits_for_the_lease_of_a_process_that_was_killed(
    engine: sa.Engine, pinecone: PineconeEmulator, upgraded_url: str, command: Command
) -> None:
    pinecone.faults.set("fetch", Fault(latency=30.0))
    options = ("--keys-from", "source", "--resume", "--no-verify")
    process = fork_process(environment(upgraded_url, pinecone, AMPRENTA_LEASE_SECONDS="1"), *options)
    try:
        until(lambda: pinecone.calls["fetch"] >= 1)
        process.send_signal(signal.SIGKILL)
        assert "nobody works" in command("pause").output
        leases = "SELECT count(*) FROM migration_progress WHERE status = 'running' AND lease_expires_at > now()"
        assert (state_of(engine), execute(engine, leases)) == ("paused", [(0,)])
    finally:
        end_process(process)


def test_a_pause_that_somebody_prevents_says_so_and_stands(
    engine: sa.Engine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "WAIT_SECONDS", 0.3)
    run_id = interrupted(engine)
    execute(engine, "UPDATE migration_progress SET status = 'running', lease_expires_at = now() + interval '1 hour'")
    result = command("pause", str(run_id))
    assert result.exit_code == 1
    assert f"amprenta-vectors pause {run_id}" in result.output
    assert execute(engine, "SELECT state, desired_state FROM migration_run") == [("running", "paused")]


def test_a_pause_overlooks_no_claim_that_is_under_way(engine: sa.Engine) -> None:
    run_id = interrupted(engine)
    with ThreadPoolExecutor(1) as pool, engine.begin() as connection:
        assert batches.claim(connection, run_id, "somebody", 60.0) is not None
        execute(engine, "UPDATE migration_run SET desired_state = 'paused'")

        def settle() -> bool:
            with transaction(engine) as own:
                return settle_pause(own, run_id)

        settling = pool.submit(settle)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: execute(engine, waiting)[0][0] == 1)
        connection.commit()
        assert settling.result() is False
    with engine.begin() as connection:
        assert batches.claim(connection, run_id, "another", 60.0) is None


def test_a_run_is_not_finished_while_it_is_to_be_paused(engine: sa.Engine) -> None:
    source = stub()

    def pause_at_the_last(keys: Sequence[str]) -> None:
        if IDS[-1] in keys:
            execute(engine, "UPDATE migration_run SET desired_state = 'paused'")

    source.before_fetch = pause_at_the_last
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, source, workers=1))
        until(lambda: execute(engine, "SELECT count(*) FROM migration_run WHERE state = 'paused'") == [(1,)])
        time.sleep(0.2)
        assert (state_of(engine), running.done()) == ("paused", False)
        orders.resume(engine, 1)
        assert running.result().run.state == "finished"


def test_the_end_of_a_run_obeys_a_pause_that_no_process_has_seen_yet(engine: sa.Engine) -> None:
    run_id = interrupted(engine)
    execute(engine, "UPDATE migration_run SET desired_state = 'paused'")
    with transaction(engine) as connection:
        assert runs.finish(connection, run_id) is False
    assert state_of(engine) == "running"


def test_what_happens_to_a_run_is_recorded_in_order(engine: sa.Engine) -> None:
    source, paused = stub(), threading.Event()
    source.before_fetch = lambda keys: time.sleep(0.02)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, source, expected_keys=200))
        until(lambda: len(stored(engine)) > 0)
        orders.pause(engine, 1)
        paused.set()
        orders.resume(engine, 1)
        running.result()
    happened = [event for event in events_of(engine) if not event.startswith("index")]
    assert happened == ["begun", "joined", "paused", "resumed", "finished", "left"]
    assert execute(engine, "SELECT expected_keys FROM migration_run") == [(200,)]


# What hangs.


def test_a_call_that_hangs_is_given_back_and_its_late_answer_dropped(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "WAIT_SECONDS", 15.0)
    count_writes(engine)
    source, hanging, answer = stub(), threading.Event(), threading.Event()

    def hang(keys: Sequence[str]) -> None:
        if IDS[0] in keys and not hanging.is_set():
            hanging.set()
            answer.wait(30)

    source.before_fetch = hang
    job = to_job(engine, source, batch_size=10, lease_seconds=600.0, drain_seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, job)
        assert hanging.wait(30)
        orders.pause(engine, 1)
        assert (state_of(engine), held(engine)) == ("paused", 0)
        orders.resume(engine, 1)
        # With a lease of ten minutes, only a batch that was given back can be taken by the other worker.
        until(lambda: len(stored(engine)) == len(IDS))
        answer.set()
        assert running.result().counts.written == len(IDS)
    all_once(engine)
    assert source.fetched.count(IDS[0]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_whose_source_hangs_within_the_time_to_drain(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Launch, number: signal.Signals
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", Fault(stall=25.0))
    process = launch("--drain-seconds", "0.3")
    until(lambda: pinecone.calls["fetch"] >= 2)
    began = time.monotonic()
    process.send_signal(number)
    code, output = ends(process)
    assert code == 130, output
    assert time.monotonic() - began < 20.0
    assert held(engine) == 0
    pinecone.faults.clear()
    # With a lease of ten minutes, anything left claimed would be waited for.
    assert ends(launch())[0] == 0
    all_once(engine)


def test_a_write_that_hangs_is_ended_with_its_session(engine: sa.Engine) -> None:
    count_writes(engine)
    job = to_job(engine, stub(), workers=1, lease_seconds=600.0, drain_seconds=0.3)
    with ThreadPoolExecutor(1) as pool, engine.begin() as lock:
        lock.exec_driver_sql("LOCK TABLE rag_chunks IN SHARE ROW EXCLUSIVE MODE")
        running = pool.submit(run_job, engine, job)
        until(lambda: writing(engine) == 1)
        orders.pause(engine, 1)
        assert (state_of(engine), held(engine), writing(engine)) == ("paused", 0, 0)
        lock.rollback()
        orders.resume(engine, 1)
        assert running.result().counts.written == len(IDS)
    all_once(engine)


# Cancelling.


def test_a_cancelled_run_ends_its_processes_and_keeps_what_they_wrote(
    engine: sa.Engine, pinecone: PineconeEmulator, launch: Launch, command: Command
) -> None:
    count_writes(engine)
    pinecone.faults.set("fetch", Fault(latency=1.0))
    processes = [launch(), launch()]
    # One that came after the cancel would begin a run of its own.
    until(lambda: len(stored(engine)) > 0 and events_of(engine).count("joined") == 2)
    cancelled = command("cancel")
    assert cancelled.exit_code == 0, cancelled.output
    written = len(stored(engine))
    assert f"run 1 is cancelled; the {written} rows that it wrote stay" in cancelled.output
    for process in processes:
        code, output = ends(process)
        assert code == 2, output
        assert "run 1 was cancelled by somebody else" in output
    assert len(stored(engine)) == written == execute(engine, "SELECT sum(rows_written) FROM migration_progress")[0][0]
    assert held(engine) == 0
    pinecone.faults.clear()
    assert ends(launch())[0] == 0
    all_once(engine)


def test_a_paused_run_can_be_cancelled(engine: sa.Engine) -> None:
    source = stub()
    source.before_fetch = lambda keys: time.sleep(0.05)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, engine, to_job(engine, source, batch_size=10))
        until(lambda: len(stored(engine)) > 0)
        orders.pause(engine, 1)
        orders.cancel(engine, 1)
        with pytest.raises(RunConflict, match="cancelled by somebody else"):
            running.result()
    assert events_of(engine)[-3:] == ["paused", "cancelled", "left"]


def test_a_cancellation_whose_terminal_died_is_carried_out_by_the_processes(engine: sa.Engine) -> None:
    source = stub()

    def order_only(keys: Sequence[str]) -> None:
        execute(engine, "UPDATE migration_run SET desired_state = 'cancelled'")

    source.before_fetch = order_only
    with pytest.raises(RunConflict, match="cancelled by somebody else"):
        run_job(engine, to_job(engine, source, batch_size=10))
    assert state_of(engine) == "cancelled"
    assert len(stored(engine)) < len(IDS)


# Limits.


def test_the_number_of_workers_follows_the_limit_while_they_work(engine: sa.Engine) -> None:
    source, lock, at_work, most = stub(), threading.Lock(), 0, 0

    def count(keys: Sequence[str]) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.05)
        with lock:
            at_work -= 1

    def limit(workers: int | None) -> None:
        changes = {} if workers is None else {"workers": workers}
        with transaction(engine) as connection:
            change_limits(connection, 1, changes, clear=workers is None)

    def one_at_a_time() -> bool:
        nonlocal most
        most, before = 0, len(source.fetched)
        until(lambda: len(source.fetched) >= before + 10)
        return most == 1

    source.before_fetch = count
    work = Backfill(engine, to_job(engine, source, batch_size=1, workers=4), Recorder(), threading.Event())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work.work, work.start("new"))
        until(lambda: most == 4)
        limit(1)
        until(lambda: work.hold.limits == {"workers": 1})
        # What was claimed before may still be fetched.
        until(one_at_a_time)
        limit(None)
        until(lambda: most >= 3)
        assert running.result().counts.written == len(IDS)
    assert events_of(engine).count("limits_changed") == 2


def test_limits_are_merged_shown_and_cleared(engine: sa.Engine, command: Command) -> None:
    interrupted(engine)
    assert "no limits" in command("limits").output
    command("limits", "--workers", "2", "--max-read-units", "1500000")
    shown = command("limits", "--fetch-per-second", "7.5", "--list-per-second", "0").output
    for said in (
        "at most 2 workers of each process",
        "at most 1,500,000 read units in all",
        "at most 7.5 fetch requests a second",
        "any number of list requests a second",
    ):
        assert said in shown
    assert command("limits").output == shown
    limits = {"workers": 2, "max_read_units": 1500000, "fetch_per_second": 7.5, "list_per_second": 0.0}
    assert execute(engine, "SELECT limits FROM migration_run") == [(limits,)]
    assert "at most 3 workers of each process\n" in command("limits", "1", "--clear", "--workers", "3").output
    assert "no limits" in command("limits", "--clear").output


# What is refused.


@pytest.mark.parametrize(
    ("state", "order", "hint"),
    [
        ("finished", "pause", "backfill --resume"),
        ("finished", "resume", "backfill --resume"),
        ("finished", "cancel", "backfill --resume"),
        ("cancelled", "pause", "backfill --resume"),
        ("cancelled", "resume", "backfill --resume"),
        ("planned", "pause", "amprenta-vectors cancel 1"),
        ("planned", "resume", "backfill --resume"),
    ],
)
def test_an_order_that_does_not_suit_a_run_names_its_state_and_what_to_type(
    engine: sa.Engine, command: Command, state: str, order: str, hint: str
) -> None:
    execute(engine, "UPDATE migration_run SET state = :state", state=state)
    before = execute(engine, "SELECT * FROM migration_run")
    result = command(order, "1")
    assert result.exit_code == 2
    assert f"run 1 is {state}; to {order} a run it must be" in result.output
    assert hint in result.output
    assert execute(engine, "SELECT * FROM migration_run") == before


def test_an_order_given_twice_changes_nothing(engine: sa.Engine, command: Command) -> None:
    interrupted(engine)
    for order in ("pause", "pause", "resume", "resume", "cancel", "cancel"):
        assert command(order, "1").exit_code == 0
    assert [event for event in events_of(engine) if event in {"paused", "resumed", "cancelled"}] == [
        Event.PAUSED,
        Event.RESUMED,
        Event.CANCELLED,
    ]


def test_a_queued_run_can_be_cancelled(engine: sa.Engine, command: Command) -> None:
    assert state_of(engine) == "planned"
    assert "run 1 is cancelled; the 0 rows" in command("cancel").output
    assert state_of(engine) == "cancelled"


def test_without_a_number_the_one_run_that_comes_into_question_is_meant(engine: sa.Engine, command: Command) -> None:
    interrupted(engine)
    other = interrupted(engine, namespace="other")
    result = command("pause")
    assert result.exit_code == 2
    assert (
        "2 runs are unfinished: 2 (running, rag_chunks.embedding namespace=other), "
        "1 (running, rag_chunks.embedding namespace=(default))" in result.output
    )
    assert command("pause", str(other)).exit_code == 0
    assert command("cancel", "1").exit_code == 0
    assert command("resume").output.startswith(f"run {other} goes on")
    assert command("cancel").exit_code == 0
    nothing_left = command("pause")
    assert (nothing_left.exit_code, "no run is unfinished" in nothing_left.output) == (2, True)
    unknown = command("resume", "77")
    assert (unknown.exit_code, "there is no run 77; unfinished are: none" in unknown.output) == (2, True)


def interrupted(engine: sa.Engine, namespace: str = "") -> int:
    """A run that was begun, planned whole, and left with its first batch done."""
    source, stop = stub(), threading.Event()

    def stop_once_planned(_: Sequence[str]) -> None:
        unplanned = "SELECT count(*) FROM migration_run WHERE state = 'running' AND planned_at IS NULL"
        until(lambda: execute(engine, unplanned) == [(0,)])
        stop.set()

    source.before_fetch = stop_once_planned
    summary = run_job(engine, to_job(engine, source, batch_size=10, workers=1, namespace=namespace), stop=stop)
    assert summary.interrupted
    return summary.run.id


# Waiting for the database's sake.


def test_while_there_is_a_reason_to_wait_nothing_is_claimed_and_the_reason_is_stored(engine: sa.Engine) -> None:
    source, observer, asked, reasons = stub(), Recorder(), list[float](), ["the replica lags"]

    def reason() -> str | None:
        asked.append(time.monotonic())
        return reasons[0] if reasons else None

    with ThreadPoolExecutor(1) as pool:
        job = to_job(engine, source, batch_size=10, workers=4)
        work = Backfill(engine, job, observer, threading.Event(), before_claim=reason)
        running = pool.submit(work.work, work.start("new"))
        stored_reason = "SELECT throttle_reason FROM migration_run"
        until(lambda: execute(engine, stored_reason) == [("the replica lags",)])
        time.sleep(0.3)
        assert source.fetched == []
        # Four workers that look fifty times a second ask once a second together.
        assert len(asked) <= 2
        reasons.clear()
        assert running.result().counts.written == len(IDS)
    assert execute(engine, stored_reason) == [(None,)]
    assert observer.reasons == ["the replica lags", None]
    assert [event for event in events_of(engine) if "throttled" in event] == ["throttled", "unthrottled"]


def test_a_run_that_was_held_between_two_looks_says_again_why_it_waits(engine: sa.Engine) -> None:
    reasons, halt = ["the replica lags"], threading.Event()
    with ThreadPoolExecutor(1) as pool:
        work = Backfill(
            engine,
            to_job(engine, stub()),
            Recorder(),
            halt,
            before_claim=lambda: reasons[0] if reasons else None,
        )
        running = pool.submit(work.work, work.start("new"))
        try:
            reason = "SELECT throttle_reason FROM migration_run"
            until(lambda: execute(engine, reason) == [("the replica lags",)])
            # What a pause and a resume do that no process of the run sees.
            execute(engine, "UPDATE migration_run SET throttle_reason = NULL")
            until(lambda: execute(engine, reason) == [("the replica lags",)])
        finally:
            reasons.clear()
        assert running.result().counts.written == len(IDS)


def test_a_pause_ends_the_wait_and_its_reason(engine: sa.Engine) -> None:
    reasons: list[str] = ["the replica lags"]
    with ThreadPoolExecutor(1) as pool:
        work = Backfill(
            engine,
            to_job(engine, stub()),
            Recorder(),
            threading.Event(),
            before_claim=lambda: reasons[0] if reasons else None,
        )
        running = pool.submit(work.work, work.start("new"))
        reason = "SELECT throttle_reason FROM migration_run"
        until(lambda: execute(engine, reason) == [("the replica lags",)])
        orders.pause(engine, 1)
        assert execute(engine, reason) == [(None,)]
        orders.resume(engine, 1)
        until(lambda: execute(engine, reason) == [("the replica lags",)])
        reasons.clear()
        assert running.result().counts.written == len(IDS)
    happened = [event for event in events_of(engine) if "throttled" in event or event in {"paused", "resumed"}]
    assert happened == ["throttled", "unthrottled", "paused", "resumed", "throttled", "unthrottled"]
