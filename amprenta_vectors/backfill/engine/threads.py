"""The threads of one process at one run: the first error of any of them ends all the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from amprenta_vectors.backfill.engine.hold import Held, Hold
from amprenta_vectors.errors import TransientError


class Threads:
    """Starts threads, and keeps the first error that ended one; then the hold ends the process's work."""

    def __init__(self, hold: Hold, *, poll_seconds: float, drain_seconds: float) -> None:
        self.failure: BaseException | None = None
        self._hold = hold
        self._poll_seconds = poll_seconds
        self._drain_seconds = drain_seconds
        self._lock = threading.Lock()

    def run(self, works: Mapping[str, Callable[[], None]]) -> None:
        """Run each of ``works`` in a thread of its own until all have ended.

        Once the process is told to end and has been held for ``drain_seconds``, threads still at work are left behind.
        """
        for thread in self._started(works):
            while thread.is_alive():
                thread.join(self._poll_seconds)
                if self._hold.ending.is_set() and self._hold.held_seconds >= self._drain_seconds:
                    return

    @contextmanager
    def ending_on(self, stop: threading.Event) -> Iterator[None]:
        """End the process's work once ``stop`` is set, until the block ends."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if stop.wait(self._poll_seconds):
                    self._hold.end()
                    return

        self._started({"signals": watch})
        try:
            yield
        finally:
            # Nobody waits for it: it holds nothing, and soon ends by itself.
            over.set()

    @contextmanager
    def beside(self, steps: Mapping[str, tuple[float, Callable[[], None]]]) -> Iterator[None]:
        """Repeat each step until the block ends, waiting the given seconds between the end of one try and the next."""
        over = threading.Event()

        def repeat(seconds: float, step: Callable[[], None]) -> None:
            while not over.wait(seconds):
                step()

        threads = self._started({name: partial(repeat, *every) for name, every in steps.items()})
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                # A database that does not answer keeps the process no longer than this.
                thread.join(self._drain_seconds)

    def fail(self, error: BaseException) -> None:
        """Keep the first error and end the process's work."""
        with self._lock:
            self.failure = self.failure or error
        self._hold.end()

    def _started(self, works: Mapping[str, Callable[[], None]]) -> Sequence[threading.Thread]:
        # Daemons, so that neither a second Ctrl-C nor a call that hangs keeps the process from ending.
        threads = [
            threading.Thread(target=self._guard, args=(work,), name=name, daemon=True) for name, work in works.items()
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            # To stop trying again because the threads are to end is no error.
            if not (isinstance(error, TransientError | Held) and self._hold.ending.is_set()):
                self.fail(error)
