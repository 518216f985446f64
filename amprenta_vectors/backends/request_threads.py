"""A few threads that make list requests for one listing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

Page = tuple[Sequence[str], str | None]


class RequestThreads:
    """Makes at most ``most`` requests at once; their answers are taken as they come.

    `close` waits for no request: a thread ends with the one that it has in hand. Nor does the interpreter wait, so that
    a process that is told to end does.
    """

    def __init__(self, request: Callable[[str, str | None], Page], most: int) -> None:
        self._request = request
        self._most = most
        self._asked: queue.SimpleQueue[tuple[str, str | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, Page | Exception]] = queue.SimpleQueue()
        self._threads = 0
        self.pending = 0
        """Requests that were sent and whose answers were not taken."""

    def send(self, prefix: str, token: str | None) -> None:
        """Have a page asked for."""
        self.pending += 1
        if self._threads < min(self.pending, self._most):
            self._threads += 1
            threading.Thread(target=self._work, name=f"listing-{self._threads}", daemon=True).start()
        self._asked.put((prefix, token))

    def take(self) -> tuple[str, Page | Exception]:
        """The next answer, or the error in its place; waits for it."""
        answer = self._answers.get()
        self.pending -= 1
        return answer

    def close(self) -> None:
        """Let the threads end."""
        for _ in range(self._threads):
            self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            prefix, token = asked
            try:
                self._answers.put((prefix, self._request(prefix, token)))
            except Exception as error:
                self._answers.put((prefix, error))
