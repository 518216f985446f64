"""Orders to a run, from any terminal or host: to pause, to resume, to be cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.progress import batches, orders, runs, transactions
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.states import ORDERS, UNFINISHED, Order, RunState
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.errors import RunConflict, TransientError

WAIT_SECONDS = 60.0
"""The most seconds that a pause is waited for."""
POLL_SECONDS = 0.2

_MENDS = {
    RunState.PLANNED: "amprenta-vectors backfill --resume begins it; amprenta-vectors cancel {id} takes it back",
    RunState.FINISHED: "amprenta-vectors backfill --resume begins a new run where rows are left",
    RunState.CANCELLED: "amprenta-vectors backfill --resume begins a new run",
}


def choose_run(connection: Connection, run_id: int | None, order: Order | None = None) -> Run:
    """Return the run with that number; without one, the only unfinished run, or the only one that ``order`` suits.

    Raises `RunConflict`, listing the runs to choose from, if there is no such run or not just one.
    """
    transactions.require_tables(connection)
    every = runs.list_runs(connection)
    unfinished = [run for run in every if run.state in UNFINISHED]
    if run_id is not None:
        named = [run for run in every if run.id == run_id]
        if not named:
            raise RunConflict(
                f"there is no run {run_id}; unfinished are: {_listed(unfinished)}", hint="amprenta-vectors status"
            )
        return named[0]
    if not unfinished:
        raise RunConflict("no run is unfinished", hint="amprenta-vectors status shows those that ended")
    suitable = [run for run in unfinished if order is None or run.state in ORDERS[order]] or unfinished
    if len(suitable) > 1:
        raise RunConflict(
            f"{len(suitable)} runs are unfinished: {_listed(suitable)}", hint="name one of them by its number"
        )
    return suitable[0]


def pause(engine: Engine, run_id: int, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Order a run to pause, and wait until no process works at it.

    The order stands, whatever follows. Raises `RunConflict` if it does not suit the run's state, `TransientError`
    if a batch of the run is still held after 60 seconds.
    """
    _order(engine, run_id, Order.PAUSE, RunState.PAUSED)
    deadline = clock() + WAIT_SECONDS
    while not _is_paused(engine, run_id):
        if clock() > deadline:
            raise TransientError(
                f"run {run_id} is to be paused and nobody begins anything, but a batch of it is still held after "
                f"{WAIT_SECONDS:.0f} s",
                hint=f"wait until the lease of a process that died runs out, then: amprenta-vectors pause {run_id}",
            )
        time.sleep(POLL_SECONDS)


def resume(engine: Engine, run_id: int) -> None:
    """Resume a paused run. Raises `RunConflict` if that does not suit its state."""
    with transaction(engine) as connection:
        _check(runs.lock_run(connection, run_id), Order.RESUME)
        orders.resume(connection, run_id)


def cancel(engine: Engine, run_id: int) -> None:
    """Cancel a run for good; its rows stay. Raises `RunConflict` if that does not suit its state.

    No transaction that writes rows of it is under way afterwards, and none can be committed.
    """
    # The order comes first, so that nothing more is claimed while writes under way are waited for.
    _order(engine, run_id, Order.CANCEL, RunState.CANCELLED)
    with transaction(engine) as connection:
        batches.end_expired_sessions(connection, run_id)
        runs.cancel(connection, run_id)


def _order(engine: Engine, run_id: int, order: Order, desired: RunState) -> None:
    with transaction(engine) as connection:
        _check(runs.lock_run(connection, run_id), order)
        orders.order(connection, run_id, desired)


def _check(run: Run, order: Order) -> None:
    state = RunState(run.state)
    if state not in ORDERS[order]:
        allowed = " or ".join(ORDERS[order])
        raise RunConflict(
            f"run {run.id} is {state}; to {order} a run it must be {allowed}",
            hint=_MENDS[state].format(id=run.id),
        )


def _is_paused(engine: Engine, run_id: int) -> bool:
    with transaction(engine) as connection:
        run = runs.load_run(connection, run_id)
        _check(run, Order.PAUSE)
        if run.desired_state != RunState.PAUSED:
            raise RunConflict(
                f"run {run_id} is to be {run.desired_state}: somebody else ordered that meanwhile",
                hint="amprenta-vectors status",
            )
        return orders.settle_pause(connection, run_id)


def _listed(runs: list[Run]) -> str:
    return ", ".join(f"{run.id} ({run.state}, {run.target}{_scope(run)})" for run in runs) or "none"


def _scope(run: Run) -> str:
    return "".join(f" {name}={value or '(default)'}" for name, value in run.scope.items())
