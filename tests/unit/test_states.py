"""Which state of a run may follow which, and what may be ordered of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amprenta_vectors.backfill.progress.states import (
    ORDERS,
    TRANSITIONS,
    UNFINISHED,
    Order,
    RunState,
    Transition,
    sources_of,
)

GUIDE = Path(__file__).parents[2] / "docs" / "control.md"


def after(state: RunState) -> set[RunState]:
    return {transition.after for transition in TRANSITIONS if transition.before == state}


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.CANCELLED])
def test_what_is_over_stays_over(state: RunState) -> None:
    assert after(state) == set()
    assert state not in UNFINISHED


@pytest.mark.parametrize("state", UNFINISHED)
def test_what_is_unfinished_can_be_cancelled(state: RunState) -> None:
    assert RunState.CANCELLED in after(state)
    assert state in ORDERS[Order.CANCEL]


def test_a_run_is_finished_only_by_working_at_it() -> None:
    assert sources_of(RunState.FINISHED) == (RunState.RUNNING,)


def test_sources_are_the_transitions_read_backwards() -> None:
    for state in RunState:
        assert set(sources_of(state)) == {before for before in RunState if state in after(before)}


def test_the_unfinished_states_are_those_that_something_may_follow() -> None:
    assert set(UNFINISHED) == {state for state in RunState if after(state)}


def test_an_order_is_obeyed_only_where_its_state_may_follow_or_is_there_already() -> None:
    reached = {Order.PAUSE: RunState.PAUSED, Order.RESUME: RunState.RUNNING, Order.CANCEL: RunState.CANCELLED}
    assert set(ORDERS) == set(Order)
    for order, states in ORDERS.items():
        for state in states:
            assert state == reached[order] or reached[order] in after(state)


def rows_under(heading: str) -> list[tuple[str, ...]]:
    """The cells of the first table below a heading of the guide, without its head."""
    section = GUIDE.read_text().partition(f"## {heading}\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def test_the_guide_shows_every_transition_and_no_other() -> None:
    shown = [Transition(RunState(before), RunState(to), when) for before, to, when in rows_under("States")]
    assert tuple(shown) == TRANSITIONS


def test_the_guide_shows_in_which_states_each_order_is_obeyed() -> None:
    shown = {(Order(order.strip("`")), RunState(state)): what for order, state, what in rows_under("Orders")}
    assert shown == {(order, state): what for order, states in ORDERS.items() for state, what in states.items()}
