"""A few threads that make list requests for one listing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

Page = tuple[Sequence[str], str | None]


class RequestThreads:
    """Threads that make at most ``most`` requests at once; their answers are taken in the order they arrive.

    `close` waits for no request: a thread ends after the one that it is making. Nor does the interpreter wait for it,
    so that a process that is told to end does.
    """

    def __init__(self, request: Callable[[str, str | None], Page], most: int) -> None:
        self._request = request
        self._most = most
        self._asked: queue.SimpleQueue[tuple[str, str | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, Page | Exception]] = queue.SimpleQueue()
        self._threads = 0
        self.pending = 0
        """Requests sent whose answers were not yet taken."""

    def send(self, prefix: str, token: str | None) -> None:
        """Request a page; its answer is for `take`."""
        self.pending += 1
        if self._threads < min(self.pending, self._most):
            self._threads += 1
            threading.Thread(target=self._work, name=f"listing-{self._threads}", daemon=True).start()
        self._asked.put((prefix, token))

    def take(self) -> tuple[str, Page | Exception]:
        """Wait for the next answer and return it, or the error in its place."""
        answer = self._answers.get()
        self.pending -= 1
        return answer

    def close(self) -> None:
        """Tell the threads to end."""
        for _ in range(self._threads):
            self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            prefix, token = asked
            try:
                self._answers.put((prefix, self._request(prefix, token)))
            except Exception as error:
                self._answers.put((prefix, error))
