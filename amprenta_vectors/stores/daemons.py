"""Runs calls in threads that may hang without holding up their caller or the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class DaemonPool:
    """A pool of daemon threads that makes at most ``threads`` calls at once; more of them wait.

    concurrent.futures' own pool waits for its threads when the process ends, for ever if one hangs.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()
        self._threads = 0

    def submit(
        self, call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Answer]:
        """Make ``call`` in a thread; its result or error is the future's."""
        future: Future[Answer] = Future()
        self._waiting.put((future, partial(call, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            with self._starting:
                if self._threads < self._most:
                    self._threads += 1
                    threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        return future

    def close(self) -> None:
        """Cancel calls that wait and let idle threads end, without waiting for a call that is under way."""
        # A thread may take the last call at any moment, so this never waits for one.
        with suppress(queue.Empty):
            while True:
                item = self._waiting.get_nowait()
                if item is not None:
                    item[0].cancel()
        self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            # Else this thread would keep the last answer alive while it waits.
            del item, future, call
            self._idle.release()
        self._waiting.put(None)
