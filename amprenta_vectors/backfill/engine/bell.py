"""The bell: a thread with nothing to do waits for what another thread of its process does, and does not poll for it."""

from __future__ import annotations

import threading


class Bell:
    """Rung for batches that were planned here, and for all that every thread has to look at.

    What other processes do does not ring it: each wait has its longest duration.
    """

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self._count = 0
        self._for_all = False

    @property
    def count(self) -> int:
        """How often the bell was rung; to be read before looking for something to do."""
        return self._count

    def offer(self, batches: int) -> None:
        """Wake as many threads as there are new batches."""
        with self._rung:
            self._count += batches
            self._rung.notify(batches)

    def ring(self) -> None:
        """Wake every thread."""
        with self._rung:
            self._count += 1
            self._for_all = True
            self._rung.notify_all()

    def wait(self, count: int, seconds: float) -> None:
        """Wait until the bell is rung, for ``seconds`` at most; not at all if it was since its count was ``count``."""
        with self._rung:
            if self._count == count:
                self._rung.wait(seconds)

    def wait_for_work(self, number: int, seconds: float) -> None:
        """Wait, for ``seconds`` at most, until there are more than ``number`` batches, or every thread has to look."""
        with self._rung:
            if not self._for_all and self._count <= number:
                self._rung.wait(seconds)
