"""How a process obeys the orders of its run: to pause, to resume, to end, and its limits."""

from __future__ import annotations

from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.engine.worker import Worker
from amprenta_vectors.backfill.progress import orders, plans
from amprenta_vectors.backfill.progress.orders import Orders
from amprenta_vectors.backfill.progress.states import RunState


class Steering:
    """Reads a run's orders and brings the hold in line with them.

    Batches that are still in hand ``drain_seconds`` after a hold are given back.
    """

    def __init__(self, context: RunContext, worker: Worker, gate: Gate) -> None:
        self._context = context
        self._hold = context.hold
        self._worker = worker
        self._gate = gate
        self._paused = False
        self._drained = False

    def obey(self) -> None:
        """Read the orders once and follow them."""
        with self._context.transaction() as connection:
            ordered = orders.read_orders(connection, self._context.run.id)
        self._hold.limit(ordered.limits)
        if ordered.state not in (RunState.RUNNING, RunState.PAUSED) or ordered.desired_state == RunState.CANCELLED:
            self._hold.end()
        elif ordered.desired_state == RunState.PAUSED:
            self._pause(ordered)
        elif self._paused:
            self._paused = self._drained = False
            self._context.tell_wait(None)
            self._hold.resume()

    def drain(self) -> None:
        """Give back the batches in hand and the plan, for others to take at once."""
        self._worker.give_up()
        with self._context.transaction() as connection:
            plans.release_plan(connection, self._context.run.id, self._context.owner)

    def _pause(self, ordered: Orders) -> None:
        run_id = self._context.run.id
        if not self._paused:
            self._paused = True
            self._hold.pause()
            self._gate.reset()
            self._context.tell_wait(f"run {run_id} is paused; amprenta-vectors resume {run_id}")
        if not self._drained and self._hold.held_seconds >= self._context.job.drain_seconds:
            self.drain()
            self._drained = True
        if ordered.state == RunState.RUNNING and not self._worker.busy:
            with self._context.transaction() as connection:
                orders.settle_pause(connection, run_id)
