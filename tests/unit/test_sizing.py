"""The rule by which a batch's size follows the time that batches take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from amprenta_vectors.backfill.engine.sizing import next_size, smoothed
from amprenta_vectors.backfill.progress.sizes import Timing

WANTED = 2.0


def timings(size: int, seconds: float, count: int = 20) -> Sequence[Timing]:
    return [Timing(number, size, seconds) for number in range(count, 0, -1)]


def settled(size: int, seconds_a_key: float, looks: int = 60) -> int:
    """Where the size comes to rest, each batch taking as long as its keys need."""
    for _ in range(looks):
        size = next_size(size, timings(size, size * seconds_a_key), WANTED)
    return size


def test_without_any_batch_done_the_size_stays() -> None:
    assert next_size(1000, [], WANTED) == 1000


@pytest.mark.parametrize("seconds", [1.81, 1.89])
def test_between_90_and_95_hundredths_of_the_wanted_time_the_size_stays(seconds: float) -> None:
    assert next_size(1000, timings(1000, seconds), WANTED) == 1000


def test_a_size_grows_by_a_fifth_at_most() -> None:
    assert next_size(1000, timings(1000, 0.01), WANTED) == 1200


def test_a_size_shrinks_in_proportion_and_to_half_at_most() -> None:
    assert next_size(1000, timings(1000, 2.5), WANTED) == 760
    assert next_size(1000, timings(1000, 60.0), WANTED) == 500


def test_a_size_never_passes_twice_what_was_done() -> None:
    assert next_size(1000, timings(300, 0.01), WANTED) == 1000
    assert next_size(1000, timings(550, 0.01), WANTED) == 1100


@pytest.mark.parametrize("seconds_a_key", [0.0004, 0.001, 0.004])
def test_the_size_comes_to_rest_where_a_batch_takes_about_the_wanted_time(seconds_a_key: float) -> None:
    for first in (200, 1000, 8000):
        assert 0.85 * WANTED <= settled(first, seconds_a_key) * seconds_a_key <= 1.0 * WANTED


def test_the_newest_batch_weighs_most() -> None:
    assert smoothed([]) == 0
    assert smoothed([5.0]) == 5.0
    assert smoothed([10.0, 0.0]) == pytest.approx(4.0)
    assert smoothed([10.0, 0.0, 0.0]) > smoothed([0.0, 0.0, 10.0])
