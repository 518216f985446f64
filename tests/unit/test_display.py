"""What the lines of a run that goes on say to whoever reads its log."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from amprenta_vectors.backfill.engine.observer import RunAdvanced
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.cli.display import JsonDisplay, LineDisplay, _at_work
from amprenta_vectors.cli.move_text import MoveText


def a_run(**values: Any) -> Run:
    known = {"id": 3, "state": "running", "desired_state": "running", "source": "s", "planned_keys": 1000}
    return Run(
        **{**dict.fromkeys(field.name for field in fields(Run)), **known, "planned_at": datetime.now(UTC), **values}
    )


def some_counts(keys_done: int) -> Counts:
    return Counts(**{**dict.fromkeys((field.name for field in fields(Counts)), 0), "keys_done": keys_done, "owners": 1})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that shows a run after ten seconds each, and returns the last line."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("amprenta_vectors.cli.display.time", clock)
    display = LineDisplay(MoveText())

    def show(keys_done: int, **values: Any) -> str:
        clock.now += 10.0
        display(RunAdvanced(a_run(**values), some_counts(keys_done)))
        return capsys.readouterr().err.splitlines()[-1]

    return show


def test_a_line_says_how_long_is_left_once_there_are_rates_to_go_by(lines: Any) -> None:
    assert "time left not known yet" in lines(0)
    shown = [lines(keys) for keys in (100, 200, 300, 400)]
    for line, left in zip(shown, ("1 min 30 s", "1 min 20 s", "1 min 10 s", "1 min"), strict=True):
        assert f", {left} left, " in line


def test_progress_in_json_has_what_is_expected_and_how_long_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("amprenta_vectors.cli.display.time", clock)
    display = JsonDisplay(MoveText())
    for keys_done in (0, 100, 300):
        clock.now += 10.0
        display(RunAdvanced(a_run(), some_counts(keys_done)))
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["expected"] for event in events] == [1000] * 3
    assert [event["remaining_seconds"] for event in events] == [
        None,
        {"least": 90.0, "most": 90.0},
        {"least": 35.0, "most": 70.0},
    ]


def test_time_in_which_the_run_was_throttled_does_not_count_towards_its_rate(lines: Any) -> None:
    for keys in (0, 100, 200, 300, 400):
        lines(keys)
    for _ in range(5):
        assert "throttled: a replica lags" in lines(400, throttle_reason="a replica lags")
    assert "throttled" not in lines(500)
    assert ", 50 s left, " in lines(500, throttle_reason="x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"desired_state": "paused"}, "pausing"),
        ({"state": "paused", "desired_state": "paused"}, "paused; resume with: amprenta-vectors resume 3"),
        ({"desired_state": "cancelled"}, "being cancelled"),
        ({}, "1 process(es) at work"),
    ],
)
def test_a_line_says_who_holds_the_run(lines: Any, values: dict[str, str], said: str) -> None:
    assert lines(100, **values).endswith(said)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"owners": 2, "batches_running": 2, "batches": 3}, "2 process(es) at work"),
        ({"batches": 0}, "waiting for keys to be listed"),
        ({"batches": 2, "batches_done": 2}, "waiting for keys to be listed"),
        ({"batches": 2}, "nobody at work yet"),
        ({"batches": 2, "batches_running": 1}, "waiting for the lease of a process that died to run out"),
    ],
)
def test_what_a_run_waits_for_is_said_as_it_is(figures: dict[str, int], said: str) -> None:
    assert _at_work(a_run(planned_at=None), replace(some_counts(0), **{"owners": 0, **figures})) == said


def test_once_all_is_listed_and_done_nothing_is_waited_for() -> None:
    counts = replace(some_counts(0), owners=0, batches=2, batches_done=2)
    assert _at_work(a_run(), counts) == "every batch is done"
