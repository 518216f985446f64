"""The gate before a claim: about once a second, one worker of a process asks whether the database bears another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_SECONDS = 1.0


class Gate:
    """Asks ``before_claim`` for a reason to wait, and tells ``on_change`` when the reason comes, changes or goes.

    Before that, ``keep`` is given every reason, and None when the reason has gone. All three run in a worker's thread,
    outside any transaction, one worker at a time.
    """

    def __init__(
        self,
        before_claim: Callable[[], str | None],
        keep: Callable[[str | None], None],
        on_change: Callable[[str | None], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before_claim = before_claim
        self._keep = keep
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._reason: str | None = None
        self._known = False

    def is_open(self) -> bool:
        """Return whether a batch may be claimed, by an answer that is at most a second old."""
        with self._lock:
            if self._clock() >= self._next:
                reason = self._before_claim()
                # The first time None is kept too: a process that died may have left its reason with the run. A
                # reason is kept every time: the run may have been held, and lost it, between two looks.
                if reason is not None or reason != self._reason or not self._known:
                    self._keep(reason)
                if reason != self._reason or not self._known:
                    self._on_change(reason)
                    self._reason, self._known = reason, True
                self._next = self._clock() + LOOK_SECONDS
            return self._reason is None

    def reset(self) -> None:
        """Forget the last answer: a run that is held has no other reason to wait."""
        with self._lock:
            self._next, self._reason = 0.0, None
