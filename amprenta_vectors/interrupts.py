"""Ctrl-C and SIGTERM: said at once what is waited for, and ended by a second one, whatever the command is at."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any
from weakref import WeakSet

from amprenta_vectors.errors import ExitCode

NUMBERS = (signal.SIGINT, signal.SIGTERM)
CANCEL_SECONDS = 5.0
"""How long PostgreSQL may take to hear that a statement is given up."""
GRACE_SECONDS = 1.0
"""How long a command that has no work to end first may take to close what it has open."""


class Interrupts:
    """What signals the process was sent, and what work wants to end by itself when the first one comes.

    Python runs a signal's handler between two steps of the main thread, which may be minutes away while a statement or
    a request is waited for. A thread that is woken by the signal itself speaks, and ends the process, in its place.
    """

    def __init__(self) -> None:
        self.forget()
        self._ending: list[tuple[threading.Event, str]] = []
        self.connections: WeakSet[Any] = WeakSet()
        """The psycopg connections of the process, whose statements are given up when it is interrupted."""

    def watch(self) -> None:
        """Take both signals from now on, with a thread that hears of them at once. Call it in the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, self._interrupt)
        threading.Thread(target=self._listen, args=(read,), name="interrupts", daemon=True).start()

    @contextmanager
    def ending_first(self, stop: threading.Event, waits_for: str) -> Iterator[None]:
        """Let the first signal set ``stop`` in this block, and say that ``waits_for`` is waited for."""
        self._ending.append((stop, waits_for))
        before = {number: signal.signal(number, self._ask) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._ending.pop()

    def forget(self) -> None:
        """Begin a command, in a process that may have run another."""
        self.asked = False
        self._taken = 0
        self._silent = threading.Lock()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # Not by whether it is set: the thread that listens may have done that for this same signal.
        self._taken += 1
        if self._taken > 1 and number == signal.SIGINT:
            self._interrupt(number, frame)
        self.asked = True
        self._ending[-1][0].set()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._say_once("interrupted")
        raise KeyboardInterrupt

    def _say_once(self, text: str) -> None:
        """Say it, unless the other thread that hears of the signal has: either may come first, and the process end."""
        if self._silent.acquire(blocking=False):
            _say(text)

    def _listen(self, read: int) -> None:
        heard = 0
        while sent := os.read(read, 64):
            for number in sent:
                if number in NUMBERS:
                    heard += 1
                    self._hear(heard)

    def _hear(self, heard: int) -> None:
        if heard > 1:
            _say("ended by the second signal")
            os._exit(ExitCode.INTERRUPTED)
        self.asked = True
        ending = self._ending[-1:]
        if ending:
            stop, waits_for = ending[0]
            stop.set()
            self._say_once(
                f"stopping: waiting for {waits_for}; a second Ctrl-C or SIGTERM ends it now, and loses nothing"
            )
            return
        self._say_once("interrupted")
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        cancelling = threading.Thread(target=self.give_up_statements, daemon=True)
        cancelling.start()
        # A server that is away does not answer.
        cancelling.join(CANCEL_SECONDS)
        time.sleep(GRACE_SECONDS)
        os._exit(ExitCode.INTERRUPTED)

    def give_up_statements(self) -> None:
        """Have PostgreSQL give up what it works at for this process: it would continue without the process."""
        for connection in list(self.connections):
            with suppress(Exception):
                connection.cancel()


def _say(text: str) -> None:
    # Not by the printer, which the main thread may be importing, or hold the lock of.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())


INTERRUPTS = Interrupts()
