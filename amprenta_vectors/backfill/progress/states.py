"""The states of a run, which may follow which, and what a person may order of a run in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """The state of a run. One whose processes died or failed is still ``running``: any process may resume it."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"


UNFINISHED = (RunState.PLANNED, RunState.RUNNING, RunState.PAUSED)


@dataclass(frozen=True)
class Transition:
    """A step that a run may take from one state into another, and when it does."""

    before: RunState
    after: RunState
    when: str


TRANSITIONS = (
    Transition(
        RunState.PLANNED,
        RunState.RUNNING,
        "a process starts what a revision or a process queued",
    ),
    Transition(RunState.PLANNED, RunState.CANCELLED, "`cancel`, or the revision is taken back"),
    Transition(RunState.RUNNING, RunState.FINISHED, "every key is planned, and every batch done"),
    Transition(RunState.RUNNING, RunState.PAUSED, "`pause`, once nobody holds a batch of it"),
    Transition(RunState.RUNNING, RunState.CANCELLED, "`cancel`, `backfill --restart`, or a downgrade"),
    Transition(RunState.PAUSED, RunState.RUNNING, "`resume`"),
    Transition(RunState.PAUSED, RunState.CANCELLED, "`cancel`, `backfill --restart`, or a downgrade"),
)
"""The transitions that exist. A run that has ended stays so: a new run starts beside it, so that history is kept."""


class Order(StrEnum):
    """An order that a person may give to a run."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


ORDERS: Mapping[Order, Mapping[RunState, str]] = {
    Order.PAUSE: {
        RunState.RUNNING: "its processes let go of it and wait",
        RunState.PAUSED: "it stays paused",
    },
    Order.RESUME: {
        RunState.RUNNING: "a pause that is under way is taken back",
        RunState.PAUSED: "its processes go on",
    },
    Order.CANCEL: {
        RunState.PLANNED: "it is never begun",
        RunState.RUNNING: "its processes end; what they wrote stays",
        RunState.PAUSED: "its processes end; what they wrote stays",
        RunState.CANCELLED: "it stays cancelled",
    },
}
"""The states in which each order is obeyed, and what it does there; in any other it is refused."""


def sources_of(state: RunState) -> tuple[RunState, ...]:
    """Return the states from which ``state`` may be reached."""
    return tuple(transition.before for transition in TRANSITIONS if transition.after == state)
