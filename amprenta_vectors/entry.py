"""Where the command begins: what a signal means is settled before anything else is imported."""

from __future__ import annotations

import os
import sys

from amprenta_vectors.interrupts import INTERRUPTS


def run(*arguments: str, name: str = "amprenta-vectors") -> None:
    """Run the command on ``arguments`` and those of the process; exit 130 where it is interrupted."""
    try:
        INTERRUPTS.watch()
        from amprenta_vectors.cli import main

        main([*arguments, *sys.argv[1:]], prog_name=name)
    except KeyboardInterrupt:
        # Threads that wait for somebody else's answer are not waited for.
        sys.stdout.flush()
        os._exit(130)
