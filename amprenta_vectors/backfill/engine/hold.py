"""The hold: nothing new begins while a run is held or its process ends; and the errors that say so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from amprenta_vectors.backfill.engine.bell import Bell
from amprenta_vectors.errors import AmprentaError

GRACE_SECONDS = 0.5
"""How long after a hold a batch that has just been fetched may still go on to its write."""


class Stopped(AmprentaError):
    """A step may not go on. Never shown to a person; its kind says what becomes of the run."""

    def __init__(self) -> None:
        super().__init__(str(self.__doc__))


class Held(Stopped):
    """No call, claim or transaction may begin now: the run is paused, or this process ends."""


class RunOver(Stopped):
    """The run has ended, or is to be cancelled: nothing is listed or deleted for it any more."""


class WorkLeft(Stopped):
    """A run that seemed done has batches to do after all."""


class Hold:
    """Shared by all threads of a process: whether they may begin something new, and the limits in force."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ending = threading.Event()
        """Set for good: the process ends. Set it by `end`."""
        self.held = threading.Event()
        """Set while nothing new may begin: the run is paused, or the process ends. Set it by `pause` or `end`."""
        self.limits: Mapping[str, float] = {}
        """The limits in force, by the names that `progress.runs.Run` lists. Set them by `limit`."""
        self.bell = Bell()
        """Rung when things may begin again, the limits change, or the process ends."""
        self._clock = clock
        self._lock = threading.Lock()
        self._held_at = 0.0

    def end(self) -> None:
        """Let nothing begin any more."""
        with self._lock:
            self.ending.set()
            self._begin()
        self.bell.ring()

    def pause(self) -> None:
        """Let nothing begin until `resume`."""
        with self._lock:
            self._begin()

    def resume(self) -> None:
        """Let things begin again, unless the process ends."""
        with self._lock:
            if not self.ending.is_set():
                self.held.clear()
        self.bell.ring()

    def limit(self, limits: Mapping[str, float]) -> None:
        """Put ``limits`` in force, in place of those that were."""
        if limits != self.limits:
            self.limits = limits
            self.bell.ring()

    def _begin(self) -> None:
        if not self.held.is_set():
            self._held_at = self._clock()
            self.held.set()

    @property
    def may_begin(self) -> bool:
        """Whether a claim, a source call or a transaction may begin."""
        return not self.held.is_set()

    @property
    def held_seconds(self) -> float:
        """The seconds for which the hold has been in force; 0 if it is not."""
        with self._lock:
            return self._clock() - self._held_at if self.held.is_set() else 0.0

    def wait_until_free(self, poll_seconds: float) -> bool:
        """Wait until things may begin, and return True; return False if the process ends."""
        while True:
            rung = self.bell.count
            if not self.held.is_set():
                return True
            if self.ending.is_set():
                return False
            self.bell.wait(rung, poll_seconds)

    def check(self) -> None:
        """Raise `Held` if nothing may begin."""
        if self.held.is_set():
            raise Held

    def check_write(self) -> None:
        """Raise `Held` if nothing may begin and `GRACE_SECONDS`, the grace for writing what was fetched, are over."""
        if self.held_seconds > GRACE_SECONDS:
            raise Held
