"""Which state of a run may follow which."""

from __future__ import annotations

import pytest

from amprenta_vectors.backfill.states import TRANSITIONS, UNFINISHED, RunState, sources_of


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(RunState)


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.CANCELLED])
def test_what_is_over_stays_over(state: RunState) -> None:
    assert TRANSITIONS[state] == ()
    assert state not in UNFINISHED


@pytest.mark.parametrize("state", UNFINISHED)
def test_what_is_unfinished_can_be_cancelled(state: RunState) -> None:
    assert RunState.CANCELLED in TRANSITIONS[state]


def test_a_run_is_finished_only_by_working_at_it() -> None:
    assert sources_of(RunState.FINISHED) == (RunState.RUNNING,)


def test_sources_are_the_transitions_read_backwards() -> None:
    for after in RunState:
        assert set(sources_of(after)) == {before for before in RunState if after in TRANSITIONS[before]}


def test_the_unfinished_states_are_those_that_something_may_follow() -> None:
    assert set(UNFINISHED) == {state for state, after in TRANSITIONS.items() if after}
