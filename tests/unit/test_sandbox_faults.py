"""When a fault meets a request: its chance, its times and its rate, on a clock of the test's own."""

from __future__ import annotations

import pytest

from amprenta_vectors.sandbox.pinecone.faults import Fault, Faults


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_fault_a_request_meets_none() -> None:
    assert Faults().draw("fetch") == Fault()


def test_a_route_of_its_own_goes_before_the_star() -> None:
    faults = Faults()
    faults.set("*", Fault(status=500))
    faults.set("fetch", Fault(status=503))
    assert faults.draw("fetch").status == 503
    assert faults.draw("list").status == 500


def test_a_fault_is_over_after_its_times() -> None:
    faults = Faults()
    faults.set("*", Fault(status=500, times=2))
    assert [faults.draw(route).status for route in ("fetch", "list", "fetch")] == [500, 500, None]


def test_chance_follows_the_seed_and_only_met_requests_count() -> None:
    def draws(seed: int) -> list[int | None]:
        faults = Faults(seed)
        faults.set("fetch", Fault(status=500, probability=0.3, times=250))
        return [faults.draw("fetch").status for _ in range(1000)]

    assert draws(1) == draws(1) != draws(2)
    assert draws(1).count(500) == 250
    first = draws(1).index(500)
    assert first < 50
    assert 600 < max(number for number, status in enumerate(draws(1)) if status == 500) < 999


def test_the_rate_lets_so_many_through_a_second_and_says_when_to_come_back() -> None:
    clock = Clock()
    faults = Faults(clock=clock)
    faults.set("fetch", Fault(rate=10.0, latency=0.5))

    def passed(requests: int) -> int:
        answers = [faults.draw("fetch") for _ in range(requests)]
        refused = [answer for answer in answers if answer.status == 429]
        assert all(answer.retry_after == 1.0 for answer in refused)
        assert all(answer.latency == 0.5 for answer in answers)
        return requests - len(refused)

    assert passed(25) == 10
    clock.now += 0.5
    assert passed(25) == 5
    clock.now += 60.0
    assert passed(25) == 10


def test_a_slow_rate_asks_for_a_longer_wait() -> None:
    clock = Clock()
    faults = Faults(clock=clock)
    faults.set("fetch", Fault(rate=0.1))
    assert faults.draw("fetch") == Fault()
    clock.now += 2.5
    assert faults.draw("fetch") == Fault(status=429, retry_after=8.0)
    clock.now += 7.6
    assert faults.draw("fetch") == Fault()


def test_above_the_rate_the_failure_is_the_one_given() -> None:
    faults = Faults(clock=Clock())
    faults.set("fetch", Fault(rate=1.0, reset=True))
    assert [faults.draw("fetch").reset for _ in range(3)] == [False, True, True]
    faults.set("fetch", Fault(rate=1.0, status=503, retry_after=0.2))
    assert [faults.draw("fetch") for _ in range(2)] == [Fault(), Fault(status=503, retry_after=0.2)]


def test_clearing_ends_all_faults() -> None:
    faults = Faults()
    faults.set("*", Fault(status=500))
    faults.set("fetch", Fault(status=500))
    faults.clear()
    assert faults.draw("fetch") == Fault()


@pytest.mark.parametrize("arguments", [{"status": 200}, {"status": 600}, {"rate": 0.0}, {"rate": -1.0}, {"times": 0}])
def test_a_fault_that_cannot_be_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Fault(**arguments)  # type: ignore[arg-type]


def test_a_route_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'fetsch'.*fetch_by_metadata"):
        Faults().set("fetsch", Fault())
