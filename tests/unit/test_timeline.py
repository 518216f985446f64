"""How long what is left will take, and what counts as time in which a run worked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import pytest

from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.snapshot import Bucket, Happening
from amprenta_vectors.backfill.report.timeline import (
    Remaining,
    Span,
    keys_expected,
    rates,
    remaining,
    time_left,
    to_duration,
    to_spans,
    waited_seconds,
)
from amprenta_vectors.cli.run_text import to_remaining


@dataclass
class Recorded:
    seconds: float
    buckets: list[Bucket] = field(default_factory=list)
    events: list[Happening] = field(default_factory=list)
    bucket_seconds: float = 1.0


def every_second(*keys: int) -> list[Bucket]:
    return [Bucket(float(second), 1, number, number) for second, number in enumerate(keys) if number]


def test_the_time_left_is_a_range_from_the_75th_to_the_25th_percentile_of_the_rates() -> None:
    assert remaining(1000, [10, 20, 30, 40, 50]) == Remaining(1000 / 40, 1000 / 20)
    assert remaining(1000, [25] * 8) == Remaining(40, 40)


def test_one_stretch_that_stood_still_does_not_make_the_range_infinite() -> None:
    assert remaining(100, [10, 10, 0, 10, 10]) == Remaining(10, 10)


def test_where_a_quarter_of_the_stretches_stood_still_there_is_no_upper_end() -> None:
    assert remaining(100, [10, 10, 0, 0, 10]) == Remaining(10, None)


def test_few_rates_give_the_range_from_the_highest_to_the_lowest() -> None:
    assert remaining(100, [10]) == Remaining(10, 10)
    assert remaining(100, [10, 50, 20]) == Remaining(2, 10)
    assert remaining(100, [10, 0]) == Remaining(10, None)


@pytest.mark.parametrize("rates", [[], [0], [0, 0, 0, 0, 0]])
def test_no_rate_or_none_that_moves_tells_nothing(rates: list[float]) -> None:
    assert remaining(100, rates) is None


def test_nothing_left_takes_no_time_however_few_rates_there_are() -> None:
    assert remaining(0, []) == Remaining(0, 0)


def a_run(**values: Any) -> Run:
    return Run(**{**dict.fromkeys(field.name for field in fields(Run)), **values})


def test_until_every_key_is_listed_the_prospect_counts_and_then_the_plan() -> None:
    listing = {"planned_keys": 500, "expected_keys": 2000}
    assert keys_expected(a_run(**listing)) == 2000
    assert keys_expected(a_run(**listing, row_limit=800)) == 800
    assert keys_expected(a_run(**listing, planned_at=datetime.now(UTC))) == 500
    assert keys_expected(a_run(planned_keys=500)) == 500


def test_all_keys_done_while_more_are_being_listed_is_not_the_end() -> None:
    run = a_run(planned_keys=500)
    assert time_left(run, 500, [10] * 9) is None
    assert time_left(a_run(planned_keys=500, planned_at=datetime.now(UTC)), 500, [10] * 9) == Remaining(0, 0)


def test_rates_are_those_of_the_later_half_of_the_run() -> None:
    assert rates(Recorded(40.0, every_second(*[5] * 20, *[50] * 20)), []) == [50] * 20


def test_a_long_run_is_cut_into_at_most_twenty_stretches() -> None:
    found = rates(Recorded(120.0, every_second(*[7] * 120)), [])
    assert found == [7] * 20


def test_the_bucket_that_is_not_over_does_not_count() -> None:
    assert rates(Recorded(8.5, every_second(*[9] * 8, 1)), []) == [9] * 8


def test_throttled_and_paused_time_does_not_lower_the_rates() -> None:
    events = [
        Happening(2.0, Event.THROTTLED, {"reason": "replica lag is 40 s"}),
        Happening(4.0, Event.UNTHROTTLED, {}),
        Happening(6.0, Event.PAUSED, {}),
        Happening(8.0, Event.RESUMED, {}),
    ]
    recorded = Recorded(12.0, every_second(9, 9, 0, 0, 9, 9, 0, 0, 9, 9, 9, 9), events)
    spans = to_spans(recorded)
    assert spans == [Span("throttled", 2.0, 4.0, "replica lag is 40 s"), Span("paused", 6.0, 8.0)]
    assert rates(recorded, spans) == [9] * 8


def test_a_bucket_that_was_partly_waited_through_counts_by_what_is_left_of_it() -> None:
    recorded = Recorded(8.0, every_second(*[8] * 7, 6))
    assert rates(recorded, [Span("paused", 7.0, 7.25)]) == [8] * 8
    assert rates(recorded, [Span("paused", 7.0, 7.75)]) == [8] * 7


def test_a_pause_that_goes_on_lasts_until_now_and_one_that_the_end_of_the_run_closes_until_then() -> None:
    paused = Happening(3.0, Event.PAUSED, {})
    assert to_spans(Recorded(10.0, every_second(*[1] * 10), [paused])) == [Span("paused", 3.0, 10.0)]
    cancelled = [paused, Happening(5.0, Event.CANCELLED, {})]
    assert to_spans(Recorded(10.0, every_second(*[1] * 10), cancelled)) == [Span("paused", 3.0, 5.0)]


def test_a_night_in_which_nobody_worked_is_silence_and_not_a_slow_run() -> None:
    buckets = [Bucket(second, 1, 600, 600) for second in (0.0, 60.0, 36000.0, 36060.0, 36120.0)]
    recorded = Recorded(36180.0, buckets, bucket_seconds=60.0)
    spans = to_spans(recorded)
    assert spans == [Span("silent", 120.0, 36000.0)]
    assert rates(recorded, spans) == [10.0] * 5


def test_a_pause_in_a_night_is_not_counted_as_silence_too() -> None:
    events = [Happening(1000.0, Event.PAUSED, {}), Happening(30000.0, Event.RESUMED, {})]
    buckets = [Bucket(0.0, 1, 600, 600), Bucket(36000.0, 1, 600, 600)]
    assert to_spans(Recorded(36060.0, buckets, events, bucket_seconds=60.0)) == [
        Span("silent", 60.0, 1000.0),
        Span("paused", 1000.0, 30000.0),
        Span("silent", 30000.0, 36000.0),
    ]


def test_less_than_a_minute_without_a_batch_is_not_silence() -> None:
    assert to_spans(Recorded(61.0, [Bucket(0.0, 1, 1, 1), Bucket(60.0, 1, 1, 1)])) == []


def test_time_that_was_both_paused_and_throttled_is_waited_through_once() -> None:
    spans = [Span("paused", 1.0, 5.0), Span("throttled", 2.0, 3.0), Span("throttled", 4.0, 8.0)]
    assert waited_seconds(spans, 0.0, 10.0) == 7.0
    assert waited_seconds(spans, 4.5, 6.0) == 1.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (3659, "1 h"), (90061, "1 d 1 h"), (86460, "1 d")],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert to_duration(seconds) == text


def test_the_time_left_is_said_as_a_range_or_as_what_is_known_of_it() -> None:
    assert to_remaining(Remaining(60, 125)) == "1 min to 2 min 5 s left"
    assert to_remaining(Remaining(60, 60.2)) == "1 min left"
    assert to_remaining(Remaining(60, None)) == "at least 1 min left"
    assert to_remaining(None) == "time left not known yet"
