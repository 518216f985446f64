"""A source that answers as many fetches as it is told to, so that a run lasts however fast the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

HOLD_SECONDS = 1.0
"""How long a fetch waits to be let through; then it is refused, as nobody may wait for its answer any more."""
PORTION = 3
WAIT_SECONDS = 300.0


class Portions:
    """Lets the fetches through that `give` adds up to, each of which then meets the emulator's fault, if any.

    ``met`` is how many fetches met a fault other than a latency.
    """

    def __init__(self, pinecone: PineconeEmulator) -> None:
        self.met = 0
        self._left = 0
        self._lifted = False
        self._changed = threading.Condition()
        self._draw = pinecone.faults.draw
        pinecone.faults.draw = self._hold_and_draw  # type: ignore[method-assign]

    def give(self, fetches: int) -> None:
        """Let so many more through."""
        with self._changed:
            self._left += fetches
            self._changed.notify_all()

    def lift(self) -> None:
        """Let every fetch through from now on."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Let `PORTION` at a time through until ``condition`` holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            if self._left == 0:
                self.give(PORTION)
            time.sleep(0.02)

    def _hold_and_draw(self, route: str) -> Fault:
        if route != "fetch":
            return self._draw(route)
        with self._changed:
            if not self._changed.wait_for(lambda: self._lifted or self._left > 0, HOLD_SECONDS):
                return Fault(status=503)
            if not self._lifted:
                self._left -= 1
            fault = self._draw(route)
            self.met += fault.status is not None or fault.reset or fault.truncate or fault.stall > 0
            return fault
