"""Quotas by a clock that the test moves: what is sold when, how the rate falls and rises, what a process asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amprenta_vectors.backfill.engine.hold import Control, Held
from amprenta_vectors.backfill.limits import pace
from amprenta_vectors.backfill.limits.ledger import OwnLedger
from amprenta_vectors.backfill.limits.pace import Ceilings, Lease, Quota, lend, lower, refill
from amprenta_vectors.backfill.limits.quota import LeasedMeter, Share
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, ReadUnitsSpent


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


def to_meter(clock: Clock, ceilings: Ceilings, on_wait: Callable[[str | None], None] = lambda _: None) -> LeasedMeter:
    return LeasedMeter(OwnLedger(clock), lambda: ceilings, Waiting(clock), lambda: None, on_wait, clock=clock)


# The rate.


def test_requests_are_spread_evenly_and_never_above_the_ceiling() -> None:
    clock = Clock()
    meter = to_meter(clock, Ceilings(fetch_per_second=20.0))
    times = []
    for _ in range(200):
        meter.before("fetch", 0)
        times.append(clock.now)
    assert all(times[place + 20] - times[place] >= 0.9 for place in range(180))
    assert 9.5 <= times[-1] - times[0] <= 11.0


def test_without_a_ceiling_nobody_waits() -> None:
    clock = Clock()
    meter = to_meter(clock, Ceilings(None, None))
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
    quota = refill(Quota(rate=100.0, filled_at=0.0), 0.0, "fetch", 100.0)
    for moment in (0.0, 0.1, 0.9):
        quota = lower(refill(quota, moment, "fetch", 100.0), moment, "fetch", None)
    assert quota.rate == pytest.approx(70.0)
    quota = lower(refill(quota, 1.0, "fetch", 100.0), 1.0, "fetch", None)
    assert quota.rate == pytest.approx(49.0)
    assert refill(quota, 2.0, "fetch", 100.0).rate == pytest.approx(49.0)
    assert refill(quota, 12.0, "fetch", 100.0).rate == pytest.approx(59.0)
    recovered = refill(quota, 60.0, "fetch", 100.0)
    assert (recovered.rate, recovered.lowered_at) == (100.0, None)


def test_without_a_ceiling_a_refusal_goes_out_from_the_published_limit() -> None:
    quota = lower(refill(Quota(rate=100.0), 0.0, "fetch", None), 0.0, "fetch", None)
    assert quota.rate == pytest.approx(pace.FETCH_PER_SECOND * pace.LOWERED_TO)


@pytest.mark.parametrize(("ceiling", "least"), [(100.0, 1.0), (0.5, 0.5)])
def test_the_rate_never_falls_so_low_that_it_stands_still(ceiling: float, least: float) -> None:
    quota = Quota(rate=ceiling)
    for second in range(60):
        quota = lower(refill(quota, float(second), "fetch", ceiling), float(second), "fetch", None)
    assert quota.rate == pytest.approx(least, abs=0.01)


def test_nothing_is_sold_while_the_source_asks_for_silence() -> None:
    quota = lower(Quota(rate=100.0), 0.0, "fetch", 7.0)
    quota = lower(refill(quota, 2.0, "fetch", 100.0), 2.0, "fetch", 1.0)
    _, lease = lend(refill(quota, 3.0, "fetch", 100.0), 3.0, needed=1, wanted=50, turn_seconds=1)
    assert lease == Lease(0.0, 70.0, pytest.approx(4.0), blocked=True)
    _, lease = lend(refill(quota, 7.5, "fetch", 100.0), 7.5, needed=1, wanted=50, turn_seconds=1)
    assert lease.amount == 50


def test_a_changed_ceiling_holds_from_the_next_lease_on() -> None:
    quota = refill(Quota(rate=100.0, filled_at=0.0), 1.0, "fetch", 10.0)
    assert quota.rate == 10.0
    assert refill(quota, 2.0, "fetch", 50.0).rate == 50.0


# A process.


def test_all_threads_stop_for_as_long_as_the_source_asked_and_say_why() -> None:
    clock, reasons = Clock(), list[str | None]()
    meter = to_meter(clock, Ceilings(), reasons.append)
    meter.before("fetch", 0)
    meter.limited("fetch", 30.0)
    meter.before("fetch", 0)
    assert clock.now >= 1030.0
    assert reasons == ["the source limits the rate of fetch requests; goes on in 30 s", None]
    meter.before("list", 0)
    assert clock.now < 1031.0


def test_a_pause_ends_the_wait_for_quota_and_no_request_is_made() -> None:
    control, ledger = Control(), OwnLedger()
    meter = LeasedMeter(ledger, Ceilings, control.hold, control.check)
    meter.limited("fetch", 60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meter.before, "fetch", 1)
        control.pause()
        with pytest.raises(Held):
            waiting.result(timeout=10)
    assert ledger.reserve(needed=5, wanted=5, ceiling=5) == 5


def test_a_low_ceiling_is_named_as_what_is_waited_for() -> None:
    clock, reasons = Clock(), list[str | None]()
    meter = to_meter(clock, Ceilings(fetch_per_second=0.5), reasons.append)
    for _ in range(4):
        meter.before("fetch", 0)
    assert clock.now >= 1006.0
    assert "held to 0.5 fetch requests a second" in reasons
    assert reasons[-1] is None


def test_quota_is_asked_for_about_once_a_second_and_not_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ledger = OwnLedger(clock)
    leases = 0
    buy = ledger.lease

    def lease(*arguments: Any, **wishes: Any) -> Lease:
        nonlocal leases
        leases += 1
        return buy(*arguments, **wishes)

    monkeypatch.setattr(ledger, "lease", lease)
    meter = LeasedMeter(ledger, Ceilings, Waiting(clock), lambda: None, clock=clock)
    for _ in range(6000):
        meter.before("fetch", 0)
    assert 55 <= clock.now - 1000.0 <= 62
    assert leases <= 1.5 * 60


def test_read_units_by_the_second_are_kept_to() -> None:
    clock = Clock()
    meter = to_meter(clock, Ceilings(read_units_per_second=50.0))
    for _ in range(10):
        meter.before("fetch", 100)
    assert clock.now - 1000.0 >= 17.0


def test_one_request_too_many_for_the_ceiling_of_read_units_is_not_made() -> None:
    meter = to_meter(Clock(), Ceilings(max_read_units=250))
    meter.before("fetch", 100)
    meter.before("fetch", 100)
    with pytest.raises(ReadUnitsSpent) as caught:
        meter.before("fetch", 100)
    assert caught.value.exit_code == 1
    assert "200 of 250" in caught.value.message
    meter.before("fetch", 50)


# What is set.


@pytest.mark.parametrize(("text", "value"), [("off", None), ("0", None), ("0.5", 0.5), ("150", 150.0)])
def test_a_ceiling_is_a_number_or_off(monkeypatch: pytest.MonkeyPatch, text: str, value: float | None) -> None:
    monkeypatch.setenv("AMPRENTA_LIST_PER_SECOND", text)
    assert Settings.load().list_per_second == value


def test_a_ceiling_that_is_no_number_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"AMPRENTA_MAX_READ_UNITS.*-1"):
        Settings.load(max_read_units="-1")


def test_what_is_set_for_the_run_goes_before_what_the_process_was_started_with() -> None:
    ceilings = Ceilings(list_per_second=10.0, max_read_units=5)
    limits = {"list_per_second": 20.0, "fetch_per_second": 0, "max_read_units": None, "workers": 3}
    assert ceilings.under(limits) == Ceilings(20.0, None, None, 5)


def test_the_defaults_of_the_settings_are_the_published_limits() -> None:
    settings = Settings.load()
    assert (settings.list_per_second, settings.fetch_per_second) == (pace.LIST_PER_SECOND, pace.FETCH_PER_SECOND)
    assert (settings.read_units_per_second, settings.max_read_units) == (None, None)
