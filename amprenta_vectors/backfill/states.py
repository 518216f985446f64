"""The states of a run and of a batch, and which may follow which."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is. A run whose processes died is still ``running``: any process may go on with it."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = (RunState.PLANNED, RunState.RUNNING, RunState.PAUSED)

TRANSITIONS: dict[RunState, tuple[RunState, ...]] = {
    # queued by a revision → a process began it, or the revision was taken back
    RunState.PLANNED: (RunState.RUNNING, RunState.CANCELLED),
    # all batches done; or `--restart`, a downgrade; or a person paused it
    RunState.RUNNING: (RunState.FINISHED, RunState.CANCELLED, RunState.PAUSED, RunState.FAILED),
    RunState.PAUSED: (RunState.RUNNING, RunState.CANCELLED),
    # what is over stays over: a new run begins beside it, so that history is kept
    RunState.FINISHED: (),
    RunState.FAILED: (),
    RunState.CANCELLED: (),
}


def sources_of(state: RunState) -> tuple[RunState, ...]:
    """The states from which ``state`` may be reached."""
    return tuple(before for before, after in TRANSITIONS.items() if state in after)
