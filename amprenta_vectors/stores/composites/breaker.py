"""A circuit breaker: calls that keep failing are not made for a while, and its state can be seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

FAILURES = 5
OPEN_SECONDS = 30.0


class Breaker:
    """Opens after ``failures`` in a row; ``open_seconds`` later lets one call through, which closes or opens it.

    As Nygard describes it in «Release It!». Calls run outside its lock, side by side.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        open_seconds: float = OPEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None
        self._prober: int | None = None
        """The thread whose call decides, while it is under way; else None."""

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """``closed``: calls go through. ``open``: none does. ``half-open``: the next, or the one under way, decides."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half-open" if self._prober is not None or self._is_due() else "open"

    def allows(self) -> bool:
        """Return whether a call may be made now.

        A call that is allowed must be followed by `succeeded`, `failed` or `released`, from the same thread.
        """
        with self._lock:
            if self._opened_at is None:
                return True
            if self._prober is not None or not self._is_due():
                return False
            self._prober = threading.get_ident()
            return True

    def succeeded(self) -> None:
        """Record that a call went well."""
        with self._lock:
            self._failures, self._opened_at, self._prober = 0, None, None

    def failed(self) -> bool:
        """Record that a call failed; return whether that opened the breaker."""
        with self._lock:
            self._failures += 1
            opens = self._prober is not None or (self._opened_at is None and self._failures >= self._most)
            if opens:
                self._opened_at, self._prober = self._clock(), None
            return opens

    def released(self) -> None:
        """Record that the call was not made, which decides nothing; another thread's deciding call still decides."""
        with self._lock:
            if self._prober == threading.get_ident():
                self._prober = None

    def _is_due(self) -> bool:
        return self._opened_at is not None and self._clock() - self._opened_at >= self._open_seconds
