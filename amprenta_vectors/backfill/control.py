"""What may begin: nothing new while a run is held or its process ends."""

from __future__ import annotations

import threading

from amprenta_vectors.errors import AmprentaError


class Held(AmprentaError):
    """No call, claim or transaction may begin now: the run is paused, or this process ends. Never shown to a person."""


class Control:
    """Shared by all threads of a process: whether they may begin something new."""

    def __init__(self) -> None:
        self.halt = threading.Event()
        """Set for good: the process ends."""
        self.hold = threading.Event()
        """Set while the run is paused."""

    @property
    def may_begin(self) -> bool:
        """Whether a claim, a source call or a transaction may begin."""
        return not (self.halt.is_set() or self.hold.is_set())

    def check(self) -> None:
        """Raises `Held` where nothing may begin."""
        if not self.may_begin:
            raise Held("the run is held")
