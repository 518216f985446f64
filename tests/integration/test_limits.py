"""What all processes of a run may ask of the source together: by the second, and in read units altogether."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    count_writes,
    end_process,
    environment,
    execute,
    expected,
    fork_process,
    open_pinecone,
    run_forked,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    writes_per_key,
)

from amprenta_vectors.backends.protocol import Metered, Route
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.backfill.limits.ledger import RunLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter
from amprenta_vectors.backfill.progress import orders
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.config import FETCH_PER_SECOND, Settings, SourceLimits
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import LimitReached, RateLimited
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(2000), to_vectors(2000)
LISTING, FETCHING = 20, 200
"""What all of them cost, where nothing is asked for twice."""


@pytest.fixture
def pinecone(emulator: StartEmulator) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    return pinecone


@pytest.fixture
def other_engine(upgraded_url: str) -> Iterator[sa.Engine]:
    """As another process has it."""
    engine = create_engine(Settings.load(database_url=upgraded_url))
    yield engine
    engine.dispose()


def begin(engine: sa.Engine, pinecone: PineconeEmulator) -> int:
    job = to_job(engine, open_pinecone(pinecone))
    return Backfill(engine, job, Recorder(), threading.Event()).start("new").id


def to_meter(
    engine: sa.Engine, run_id: int, source_limits: SourceLimits, on_wait: Callable[[str | None], None] = lambda _: None
) -> LeasedMeter:
    return LeasedMeter(RunLedger(engine, run_id), lambda: source_limits, threading.Event(), lambda: None, on_wait)


def reserved(engine: sa.Engine) -> int:
    units: int = execute(engine, "SELECT read_units FROM migration_run")[0][0]
    return units


def rate_of(engine: sa.Engine, kind: str) -> float:
    rate: float = execute(engine, "SELECT rate FROM migration_limit WHERE kind = :kind", kind=kind)[0][0]
    return rate


# Read units.


def test_four_processes_under_refusals_stay_below_the_limit_and_finish_once_it_is_raised(
    engine: sa.Engine, upgraded_url: str, pinecone: PineconeEmulator
) -> None:
    limit = 150
    count_writes(engine)
    for route in ("list", "fetch"):
        pinecone.faults.set(route, Fault(status=429, probability=0.2))
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SIZE="40", AMPRENTA_WORKERS="2")
    variables["AMPRENTA_MAX_READ_UNITS"] = str(limit)
    arguments = ("--resume", "--keys-from", "source", "--no-verify")
    processes = [fork_process(variables, *arguments) for _ in range(4)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, _, code in ended] == [1] * 4
    assert pinecone.calls.read_units <= reserved(engine) <= limit
    assert 0 < len(stored(engine)) < 2000
    assert all(f"of {limit} read units" in output and "--max-read-units" in output for output, *_ in ended)

    pinecone.faults.clear()
    code, output = run_forked(variables, *arguments, "--max-read-units", "1000")
    assert code == 0, output
    assert stored(engine) == expected(IDS, VECTORS)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)
    assert pinecone.calls.read_units <= reserved(engine) <= 1000
    assert f"read units: {reserved(engine):,}" in output


def test_what_a_killed_process_had_reserved_is_never_spent_twice(
    engine: sa.Engine, upgraded_url: str, pinecone: PineconeEmulator
) -> None:
    limit = 150
    pinecone.faults.set("fetch", Fault(latency=0.05))
    variables = environment(
        upgraded_url, pinecone, AMPRENTA_BATCH_SIZE="40", AMPRENTA_WORKERS="4", AMPRENTA_LEASE_SECONDS="0.5"
    )
    variables["AMPRENTA_MAX_READ_UNITS"] = str(limit)
    arguments = ("--resume", "--keys-from", "source", "--no-verify")
    for kill_at in (30, 60, 90):
        process = fork_process(variables, *arguments)
        try:
            wait_until(partial(has_cost, pinecone, kill_at))
            process.send_signal(signal.SIGKILL)
        finally:
            end_process(process)
        assert pinecone.calls.read_units <= reserved(engine) <= limit
    code, output = run_forked(variables, *arguments)
    assert code == 1, output
    assert pinecone.calls.read_units <= reserved(engine) <= limit


def has_cost(pinecone: PineconeEmulator, read_units: int) -> bool:
    return pinecone.calls.read_units >= read_units


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_without_faults_counts_just_what_pinecone_does(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone), batch_size=100))
    assert pinecone.calls.read_units == LISTING + FETCHING
    assert reserved(engine) == LISTING + FETCHING
    assert summary.run.read_units == LISTING + FETCHING


class Counting:
    """A meter that lets everything through and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Route, int]] = []
        self.told: list[tuple[Route, float | None]] = []

    def before(self, route: Route, read_units: int) -> None:
        self.asked.append((route, read_units))

    def limited(self, route: Route, retry_after: float | None) -> None:
        self.told.append((route, retry_after))


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_every_single_request_is_asked_for_and_every_refusal_told(pinecone: PineconeEmulator, transport: str) -> None:
    source = open_pinecone(pinecone, transport=transport)
    assert isinstance(source, Metered)
    source.meter = meter = Counting()
    pages = list(source.iter_keys())
    source.fetch(IDS[:1001])
    assert Counter(route for route, _ in meter.asked) == {"list": len(pages), "fetch": pinecone.calls["fetch"]}
    assert pinecone.calls["list"] == len(pages)
    assert sum(units for _, units in meter.asked) == pinecone.calls.read_units
    assert meter.told == []

    pinecone.faults.set("*", Fault(status=429, retry_after=2))
    for step in (lambda: source.fetch(IDS[:11]), lambda: next(iter(source.iter_keys()))):
        pinecone.calls.clear()
        meter.asked.clear()
        with pytest.raises(RateLimited):
            step()
        assert len(meter.asked) == sum(pinecone.calls.values()) == 1
    assert meter.told == [("fetch", 2.0), ("list", 2.0)]


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_each_attempt_is_reserved_over_either_transport(
    engine: sa.Engine, pinecone: PineconeEmulator, transport: str
) -> None:
    pinecone.faults.set("fetch", Fault(truncate=True, times=5))
    run_job(engine, to_job(engine, open_pinecone(pinecone, transport=transport), batch_size=100))
    assert pinecone.calls.read_units == LISTING + FETCHING + 5 * 10
    assert reserved(engine) >= pinecone.calls.read_units


def test_the_error_says_what_was_spent_and_what_is_left_and_releases_the_batch(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    job = to_job(
        engine, open_pinecone(pinecone), batch_size=100, source_limits=SourceLimits(max_read_units=LISTING + 55)
    )
    with pytest.raises(LimitReached) as caught:
        run_job(engine, job)
    states = dict(execute(engine, "SELECT status, count(*) FROM migration_progress GROUP BY 1"))
    assert "running" not in states
    (state, error), *_ = execute(engine, "SELECT state, last_error FROM migration_run")
    assert state == "running"
    assert f"of {LISTING + 55} read units" in error
    assert "planned keys are not done" in error
    assert "amprenta-vectors limits" in caught.value.hint
    assert "--resume" in caught.value.hint


def test_however_many_reserve_at_once_the_sum_is_what_they_got_and_never_passes(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id = begin(engine, pinecone)

    def reserve(_: int) -> int:
        ledger, got = RunLedger(engine, run_id), 0
        while True:
            try:
                got += ledger.reserve(needed=3, wanted=40, limit=2000)
            except LimitReached:
                return got

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(reserve, range(4))) == reserved(engine) <= 2000
    assert reserved(engine) > 2000 - 3


def test_units_that_a_process_does_not_want_are_given_back_while_it_works(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id = begin(engine, pinecone)
    meter = to_meter(engine, run_id, SourceLimits())
    for _ in range(20):
        meter.before("fetch", 10)
    assert reserved(engine) > 200
    meter.tidy()
    assert reserved(engine) > 200
    time.sleep(1.0)
    meter.tidy()
    assert reserved(engine) == 200


def test_under_a_lowered_limit_nothing_is_spent_that_was_reserved_before(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id, source_limits = begin(engine, pinecone), [SourceLimits()]
    ledger = RunLedger(engine, run_id)
    meter = LeasedMeter(ledger, lambda: source_limits[0], threading.Event(), lambda: None)
    for _ in range(20):
        meter.before("fetch", 10)
    source_limits[0] = SourceLimits(max_read_units=205)
    with pytest.raises(LimitReached, match="200 of 205"):
        meter.before("fetch", 10)
    assert reserved(engine) == 200


def test_the_comparison_at_the_end_of_a_run_is_counted_and_limited_too(
    upgraded_url: str, engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SIZE="100")
    limit = str(LISTING + FETCHING + 30)
    code, output = run_forked(variables, "--keys-from", "source", "--max-read-units", limit)
    assert code == 1
    assert "is finished" in output
    assert "amprenta-vectors verify" in output
    assert pinecone.calls.read_units <= reserved(engine) <= int(limit)
    assert execute(engine, "SELECT state FROM migration_run") == [("finished",)]


# Requests by the second.


def test_a_lower_limit_of_the_source_is_found_with_few_refusals(engine: sa.Engine, pinecone: PineconeEmulator) -> None:
    refused = 0
    # A busy machine may not be fast enough to be refused by the first.
    for limit in (25, 10, 4):
        execute(engine, "TRUNCATE rag_chunks, migration_run CASCADE")
        before = pinecone.calls["fetch"]
        pinecone.faults.set("fetch", Fault(rate=limit))
        run_job(engine, to_job(engine, open_pinecone(pinecone), batch_size=13, workers=4))
        assert stored(engine) == expected(IDS, VECTORS)
        batches = execute(engine, "SELECT count(*) FROM migration_progress")[0][0]
        refused = pinecone.calls["fetch"] - before - batches
        assert refused <= 0.2 * batches
        if refused:
            break
    assert refused
    assert rate_of(engine, "fetch") < FETCH_PER_SECOND


def test_retry_after_seen_by_one_process_stops_the_others(
    engine: sa.Engine, other_engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id = begin(engine, pinecone)
    reasons: list[str | None] = []
    one, other = (
        to_meter(engine, run_id, SourceLimits()),
        to_meter(other_engine, run_id, SourceLimits(), reasons.append),
    )
    began = time.monotonic()
    one.limited("fetch", 2.0)
    other.before("list", 1)
    assert reasons == []
    other.before("fetch", 1)
    assert time.monotonic() - began >= 2.0
    assert reasons == ["the source limits the rate of fetch requests; goes on in 2 s", None]
    assert rate_of(engine, "fetch") == pytest.approx(70.0, abs=1.0)


def test_refusals_that_several_processes_see_at_once_lower_the_rate_once(
    engine: sa.Engine, other_engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id = begin(engine, pinecone)
    meters = [to_meter(engine, run_id, SourceLimits()), to_meter(other_engine, run_id, SourceLimits())]
    for meter in meters * 5:
        meter.limited("fetch", None)
    assert rate_of(engine, "fetch") == pytest.approx(70.0, abs=1.0)


def test_the_limit_holds_for_all_processes_together(
    engine: sa.Engine, other_engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    run_id = begin(engine, pinecone)
    made: list[float] = []

    def ask(meter: LeasedMeter) -> None:
        while time.monotonic() < ends:
            meter.before("fetch", 0)
            made.append(time.monotonic())

    ends = time.monotonic() + 3.0
    source_limits = SourceLimits(fetch_per_second=50.0)
    with ThreadPoolExecutor(6) as pool:
        for meter in (to_meter(engine, run_id, source_limits), to_meter(other_engine, run_id, source_limits)):
            for _ in range(3):
                pool.submit(ask, meter)
    made.sort()
    assert len(made) >= 50
    assert all(later - earlier >= 0.8 for earlier, later in zip(made, made[50:], strict=False))


def test_a_limit_that_is_changed_while_the_run_goes_on_holds_at_once(
    engine: sa.Engine, pinecone: PineconeEmulator
) -> None:
    job = to_job(engine, open_pinecone(pinecone), batch_size=50, source_limits=SourceLimits(fetch_per_second=1.0))
    work = Backfill(engine, job, observer := Recorder(), threading.Event())
    run = work.start("new")
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work.work, run)
        wait_until(lambda: "held to 1 fetch requests a second" in observer.reasons)
        with transaction(engine) as connection:
            orders.change_limits(connection, run.id, {"fetch_per_second": 0})
        assert running.result().counts.written == 2000
    assert time.monotonic() - began < 20
    assert execute(engine, "SELECT kind FROM migration_limit WHERE kind = 'fetch'") == []


def test_an_option_holds_for_the_run_and_all_its_processes(
    engine: sa.Engine, upgraded_url: str, pinecone: PineconeEmulator
) -> None:
    variables = environment(upgraded_url, pinecone)
    options = ("--list-per-second", "off", "--fetch-per-second", "40", "--max-read-units", "900")
    code, output = run_forked(variables, "--keys-from", "source", "--no-verify", *options)
    assert code == 0, output
    limits = {"list_per_second": 0, "fetch_per_second": 40.0, "max_read_units": 900}
    assert execute(engine, "SELECT limits FROM migration_run") == [(limits,)]
    assert dict(execute(engine, "SELECT kind, rate FROM migration_limit")) == {"fetch": 40.0}
