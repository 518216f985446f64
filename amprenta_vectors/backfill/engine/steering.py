"""The thread by which a process obeys what is ordered of its run: pausing, going on, ending, and the limits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.hold import Control
from amprenta_vectors.backfill.engine.worker import Worker
from amprenta_vectors.backfill.progress import plans
from amprenta_vectors.backfill.progress.orders import Orders, read_orders, settle_pause
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.pg.errors import is_transient


class Steering:
    """Reads a run's orders every ``poll_seconds`` and brings ``control`` in line with them.

    Batches that are still in hand ``drain_seconds`` after a hold are given back. ``on_pause`` is told what to say while
    the run is paused, and None once it goes on.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: int,
        owner: str,
        control: Control,
        worker: Worker,
        gate: Gate,
        *,
        drain_seconds: float,
        poll_seconds: float,
        on_pause: Callable[[str | None], None],
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._owner = owner
        self._control = control
        self._worker = worker
        self._gate = gate
        self._drain_seconds = drain_seconds
        self._poll_seconds = poll_seconds
        self._on_pause = on_pause
        self._paused = False
        self._drained = False

    def run(self, over: threading.Event) -> None:
        """Obey until ``over`` is set. Where the database is away, a turn is left out: nothing can be ordered then."""
        while not over.wait(self._poll_seconds):
            try:
                self.obey()
            except DBAPIError as error:
                if not is_transient(error):
                    raise

    def obey(self) -> None:
        """Read the orders once and follow them."""
        with transaction(self._engine) as connection:
            orders = read_orders(connection, self._run_id)
        self._control.limits = orders.limits
        if orders.state not in (RunState.RUNNING, RunState.PAUSED) or orders.desired_state == RunState.CANCELLED:
            self._control.end()
        elif orders.desired_state == RunState.PAUSED:
            self._hold(orders)
        elif self._paused:
            self._paused = self._drained = False
            self._on_pause(None)
            self._control.resume()

    def drain(self) -> None:
        """Give back what is in hand, and the plan, for others to take at once."""
        self._worker.give_up()
        with transaction(self._engine) as connection:
            plans.release_plan(connection, self._run_id, self._owner)

    def _hold(self, orders: Orders) -> None:
        if not self._paused:
            self._paused = True
            self._control.pause()
            self._gate.reset()
            self._on_pause(f"run {self._run_id} is paused; amprenta-vectors resume {self._run_id}")
        if not self._drained and self._control.held_seconds >= self._drain_seconds:
            self.drain()
            self._drained = True
        if orders.state == RunState.RUNNING and not self._worker.busy:
            with transaction(self._engine) as connection:
                settle_pause(connection, self._run_id)
