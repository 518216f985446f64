"""What may begin: nothing new while a run is held or its process ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from amprenta_vectors.errors import AmprentaError

GRACE_SECONDS = 0.5
"""How long after a hold a batch that has just been fetched may still go on to its write."""


class Held(AmprentaError):
    """No call, claim or transaction may begin now: the run is paused, or this process ends. Never shown to a person."""


class Control:
    """Shared by all threads of a process: whether they may begin something new, and the limits in force."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.halt = threading.Event()
        """Set for good: the process ends. Set it by `end`."""
        self.hold = threading.Event()
        """Set while nothing new may begin: the run is paused, or the process ends. Set it by `pause` or `end`."""
        self.limits: Mapping[str, float] = {}
        """Those in force, by the names that `progress.Run` lists; replaced as a whole twice a second."""
        self._clock = clock
        self._lock = threading.Lock()
        self._held_at = 0.0

    def end(self) -> None:
        """Let nothing begin any more."""
        with self._lock:
            self.halt.set()
            self._begin_hold()

    def pause(self) -> None:
        """Let nothing begin until `resume`."""
        with self._lock:
            self._begin_hold()

    def resume(self) -> None:
        """Let things begin again, unless the process ends."""
        with self._lock:
            if not self.halt.is_set():
                self.hold.clear()

    def _begin_hold(self) -> None:
        if not self.hold.is_set():
            self._held_at = self._clock()
            self.hold.set()

    @property
    def may_begin(self) -> bool:
        """Whether a claim, a source call or a transaction may begin."""
        return not self.hold.is_set()

    @property
    def held_seconds(self) -> float:
        """For how long nothing may have begun; 0 where things may."""
        with self._lock:
            return self._clock() - self._held_at if self.hold.is_set() else 0.0

    def check(self) -> None:
        """Raises `Held` where nothing may begin."""
        if self.hold.is_set():
            raise Held("the run is held")

    def check_write(self) -> None:
        """As `check`, with the grace that what has been fetched has to be written."""
        if self.held_seconds > GRACE_SECONDS:
            raise Held("the run is held")
