"""Token buckets by a clock that the test moves: what is leased when, how the rate falls and rises, what is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amprenta_vectors.backfill.engine.hold import Held, Hold
from amprenta_vectors.backfill.limits import token_bucket
from amprenta_vectors.backfill.limits.ledger import OwnLedger
from amprenta_vectors.backfill.limits.meter import LeasedMeter, Share
from amprenta_vectors.backfill.limits.token_bucket import Lease, TokenBucket, lend, lower, refill
from amprenta_vectors.config import Settings, SourceLimits
from amprenta_vectors.errors import ConfigError, LimitReached


class Clock:
    """Seconds that pass only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Waiting(threading.Event):
    """An event that is never set, and to wait for which moves the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return False


def to_meter(
    clock: Clock, source_limits: SourceLimits, on_wait: Callable[[str | None], None] = lambda _: None
) -> LeasedMeter:
    return LeasedMeter(OwnLedger(clock), lambda: source_limits, Waiting(clock), lambda: None, on_wait, clock=clock)


# The rate.


def test_requests_are_spread_evenly_and_never_above_the_limit() -> None:
    clock = Clock()
    meter = to_meter(clock, SourceLimits(fetch_per_second=20.0))
    times = []
    for _ in range(200):
        meter.before("fetch", 0)
        times.append(clock.now)
    assert all(times[place + 20] - times[place] >= 0.9 for place in range(180))
    assert 9.5 <= times[-1] - times[0] <= 11.0


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    meter = to_meter(clock, SourceLimits(list_per_second=None, fetch_per_second=None))
    for _ in range(1000):
        meter.before("fetch", 0)
    assert clock.now == 1000.0


def test_several_processes_take_turns_and_share_the_rate_evenly() -> None:
    clock = Clock()
    ledger = OwnLedger(clock)
    shares = [Share(ledger, "fetch", clock) for _ in range(4)]
    due, made = [clock.now] * 4, [0] * 4
    while clock.now < 1060.0:
        for number, share in enumerate(shares):
            if clock.now >= due[number]:
                taken, seconds = share.take(1.0, 100.0)
                made[number] += taken
                due[number] = clock.now + seconds
        clock.now += 0.001
    assert 5700 <= sum(made) <= 6200
    assert max(made) <= 1.5 * min(made)


def test_a_refusal_lowers_the_rate_once_a_second_and_calm_raises_it_by_a_constant() -> None:
    bucket = refill(TokenBucket(rate=100.0, filled_at=0.0), 0.0, "fetch", 100.0)
    for moment in (0.0, 0.1, 0.9):
        bucket = lower(refill(bucket, moment, "fetch", 100.0), moment, "fetch", None)
    assert bucket.rate == pytest.approx(70.0)
    bucket = lower(refill(bucket, 1.0, "fetch", 100.0), 1.0, "fetch", None)
    assert bucket.rate == pytest.approx(49.0)
    assert refill(bucket, 2.0, "fetch", 100.0).rate == pytest.approx(49.0)
    assert refill(bucket, 12.0, "fetch", 100.0).rate == pytest.approx(59.0)
    recovered = refill(bucket, 60.0, "fetch", 100.0)
    assert (recovered.rate, recovered.lowered_at) == (100.0, None)


def test_without_a_limit_a_refusal_goes_out_from_the_published_limit() -> None:
    bucket = lower(refill(TokenBucket(rate=100.0), 0.0, "fetch", None), 0.0, "fetch", None)
    assert bucket.rate == pytest.approx(token_bucket.FETCH_PER_SECOND * token_bucket.LOWERED_TO)


@pytest.mark.parametrize(("limit", "least"), [(100.0, 1.0), (0.5, 0.5)])
def test_the_rate_never_falls_so_low_that_it_stands_still(limit: float, least: float) -> None:
    bucket = TokenBucket(rate=limit)
    for second in range(60):
        bucket = lower(refill(bucket, float(second), "fetch", limit), float(second), "fetch", None)
    assert bucket.rate == pytest.approx(least, abs=0.01)


def test_nothing_is_sold_while_the_source_asks_for_silence() -> None:
    bucket = lower(TokenBucket(rate=100.0), 0.0, "fetch", 7.0)
    bucket = lower(refill(bucket, 2.0, "fetch", 100.0), 2.0, "fetch", 1.0)
    _, lease = lend(refill(bucket, 3.0, "fetch", 100.0), 3.0, needed=1, wanted=50, turn_seconds=1)
    assert lease == Lease(0.0, 70.0, pytest.approx(4.0), blocked=True)
    _, lease = lend(refill(bucket, 7.5, "fetch", 100.0), 7.5, needed=1, wanted=50, turn_seconds=1)
    assert lease.amount == 50


def test_a_changed_limit_holds_from_the_next_lease_on() -> None:
    bucket = refill(TokenBucket(rate=100.0, filled_at=0.0), 1.0, "fetch", 10.0)
    assert bucket.rate == 10.0
    assert refill(bucket, 2.0, "fetch", 50.0).rate == 50.0


# A process.


def test_all_threads_stop_for_as_long_as_the_source_asked_and_say_why() -> None:
    clock, reasons = Clock(), list[str | None]()
    meter = to_meter(clock, SourceLimits(), reasons.append)
    meter.before("fetch", 0)
    meter.limited("fetch", 30.0)
    meter.before("fetch", 0)
    assert clock.now >= 1030.0
    assert reasons == ["the source limits the rate of fetch requests; goes on in 30 s", None]
    meter.before("list", 0)
    assert clock.now < 1031.0


def test_a_pause_ends_the_wait_for_a_lease_and_no_request_is_made() -> None:
    hold, ledger = Hold(), OwnLedger()
    meter = LeasedMeter(ledger, SourceLimits, hold.held, hold.check)
    meter.limited("fetch", 60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meter.before, "fetch", 1)
        hold.pause()
        with pytest.raises(Held):
            waiting.result(timeout=10)
    assert ledger.reserve(needed=5, wanted=5, limit=5) == 5


def test_a_low_limit_is_named_as_what_is_waited_for() -> None:
    clock, reasons = Clock(), list[str | None]()
    meter = to_meter(clock, SourceLimits(fetch_per_second=0.5), reasons.append)
    for _ in range(4):
        meter.before("fetch", 0)
    assert clock.now >= 1006.0
    assert "held to 0.5 fetch requests a second" in reasons
    assert reasons[-1] is None


def test_a_lease_is_asked_for_about_once_a_second_and_not_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ledger = OwnLedger(clock)
    leases = 0
    buy = ledger.lease

    def lease(*arguments: Any, **wishes: Any) -> Lease:
        nonlocal leases
        leases += 1
        return buy(*arguments, **wishes)

    monkeypatch.setattr(ledger, "lease", lease)
    meter = LeasedMeter(ledger, SourceLimits, Waiting(clock), lambda: None, clock=clock)
    for _ in range(6000):
        meter.before("fetch", 0)
    assert 55 <= clock.now - 1000.0 <= 62
    assert leases <= 1.5 * 60


def test_read_units_by_the_second_are_kept_to() -> None:
    clock = Clock()
    meter = to_meter(clock, SourceLimits(read_units_per_second=50.0))
    for _ in range(10):
        meter.before("fetch", 100)
    assert clock.now - 1000.0 >= 17.0


def test_one_request_too_many_for_the_limit_of_read_units_is_not_made() -> None:
    meter = to_meter(Clock(), SourceLimits(max_read_units=250))
    meter.before("fetch", 100)
    meter.before("fetch", 100)
    with pytest.raises(LimitReached) as caught:
        meter.before("fetch", 100)
    assert caught.value.exit_code == 1
    assert "200 of 250" in caught.value.message
    meter.before("fetch", 50)


def test_what_a_request_did_not_cost_is_spent_on_others_and_what_it_cost_beyond_is_counted() -> None:
    ledger = OwnLedger(clock := Clock(), unit="tokens")
    limits = SourceLimits(token_price=2.0, max_cost=0.001)
    meter = LeasedMeter(ledger, lambda: limits, Waiting(clock), lambda: None, unit="tokens", clock=clock)
    meter.before("fetch", 400)
    with pytest.raises(LimitReached, match="400 of 500 tokens are spent"):
        meter.before("fetch", 200)
    meter.settle(400, 100)
    meter.before("fetch", 400)
    meter.settle(400, 650)
    with pytest.raises(LimitReached, match="750 of 500 tokens are spent") as caught:
        meter.before("fetch", 1)
    assert "AMPRENTA_MAX_COST" in caught.value.hint


def test_tokens_by_the_second_are_kept_to_by_what_a_request_is_likely_to_have() -> None:
    clock = Clock()
    limits = SourceLimits(tokens_per_second=50.0)
    meter = LeasedMeter(OwnLedger(clock), lambda: limits, Waiting(clock), lambda: None, unit="tokens", clock=clock)
    for _ in range(10):
        meter.before("fetch", 1000, 100)
    assert 17.0 <= clock.now - 1000.0 <= 21.0


# What is set.


@pytest.mark.parametrize(("text", "value"), [("off", None), ("0", None), ("0.5", 0.5), ("150", 150.0)])
def test_a_limit_is_a_number_or_off(monkeypatch: pytest.MonkeyPatch, text: str, value: float | None) -> None:
    monkeypatch.setenv("AMPRENTA_LIST_PER_SECOND", text)
    assert Settings.load().source_limits.list_per_second == value


def test_a_limit_that_is_no_number_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"AMPRENTA_MAX_READ_UNITS.*-1"):
        Settings.load(max_read_units="-1")


def test_what_is_set_for_the_run_goes_before_what_the_process_was_started_with() -> None:
    source_limits = SourceLimits(list_per_second=10.0, max_read_units=5)
    limits = {"list_per_second": 20.0, "fetch_per_second": 0, "max_read_units": None, "workers": 3}
    assert source_limits.under(limits) == SourceLimits(
        list_per_second=20.0, fetch_per_second=None, read_units_per_second=None, max_read_units=5
    )


def test_a_limit_in_money_is_one_in_tokens_by_their_price() -> None:
    assert SourceLimits(token_price=0.02, max_cost=5.0).most("tokens") == 250_000_000
    assert SourceLimits(token_price=0.02).most("tokens") is None
    with pytest.raises(ConfigError, match="no price of tokens is set"):
        SourceLimits(max_cost=5.0).most("tokens")


def test_the_defaults_of_the_settings_are_the_published_limits() -> None:
    settings = Settings.load().source_limits
    assert (settings.list_per_second, settings.fetch_per_second) == (
        token_bucket.LIST_PER_SECOND,
        token_bucket.FETCH_PER_SECOND,
    )
    assert (settings.read_units_per_second, settings.max_read_units) == (None, None)
