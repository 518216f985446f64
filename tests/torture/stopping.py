"""``backfill.py`` that stops itself, as SIGSTOP does, at one place and once: inside a COPY, or before a COMMIT."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

from amprenta_vectors.backfill import progress, sink
from amprenta_vectors.cli import main

PLACES = ("copy", "commit")


def stop_at(place: str, turn: int) -> None:
    """Stop the whole process when that place is reached the ``turn``-th time."""
    left = turn

    def stop() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            # Another thread may take the signal; this one is to go no further before it is stopped too.
            time.sleep(0.1)

    class Stopping(io.BytesIO):
        """psycopg2 reads it piece by piece while the server is in COPY."""

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 0 or len(self.getbuffer()) <= (size or -1):
                stop()
            return super().read(size)

    def complete(*arguments: Any) -> None:
        recorded(*arguments)
        stop()

    if place == "copy":
        vars(sink)["io"] = SimpleNamespace(BytesIO=Stopping)
    else:
        recorded = progress.complete
        vars(progress)["complete"] = complete


if __name__ == "__main__":
    stop_at(sys.argv[1], int(sys.argv[2]))
    main(["backfill", *sys.argv[3:]])
