"""``backfill.py`` that stops itself, as SIGSTOP does, at one place and once: inside a COPY, or before a COMMIT."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from amprenta_vectors.backfill.progress import batches
from amprenta_vectors.backfill.writing import sink
from amprenta_vectors.cli import main

PLACES = ("copy", "commit")


def stop_at(place: str, turn: int) -> None:
    """Stop the whole process when that place is reached the ``turn``-th time."""
    left, continued = turn, threading.Event()
    signal.signal(signal.SIGCONT, lambda *_: continued.set())

    def stop() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            # Another thread may take the signal; this one is to go no further before all are stopped and continued.
            continued.wait()

    class Stopping(sink.BatchStream):
        """psycopg2 reads it piece by piece while the server is in COPY."""

        def read(self, size: int = -1) -> bytes:
            piece = super().read(size)
            if not piece:
                stop()
            return piece

    def complete(*arguments: Any) -> None:
        recorded(*arguments)
        stop()

    if place == "copy":
        vars(sink)["BatchStream"] = Stopping
    else:
        recorded = batches.complete
        vars(batches)["complete"] = complete


if __name__ == "__main__":
    stop_at(sys.argv[1], int(sys.argv[2]))
    main(["backfill", *sys.argv[3:]])
