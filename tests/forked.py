"""Commands in processes of their own, each for the price of a fork in place of a second of imports."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
# What a backfill imports, from its options to its report; nothing of it starts a thread.
_CONTEXT.set_forkserver_preload(
    [
        "amprenta_vectors.cli.backfill",
        "amprenta_vectors.cli.reconcile",
        "amprenta_vectors.cli.status",
        "amprenta_vectors.backends.pinecone.origin",
        "httpcore",
        "h2.connection",
        "anyio._backends._asyncio",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
    ]
)


class ForkedProcess:
    """A script in a process of its own, which can be killed, stopped and waited for as a ``subprocess.Popen``."""

    def __init__(self, script: Path, arguments: tuple[str, ...], variables: Mapping[str, str]) -> None:
        self._output = tempfile.NamedTemporaryFile("r", prefix="amprenta-test-", suffix=".txt")  # noqa: SIM115
        self._process = _CONTEXT.Process(
            target=_run, args=(script, arguments, dict(variables), self._output.name), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        """Stop it, and wait until each of its threads stands still: the signal reaches them one after another."""
        self.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        while not all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in threads.glob("*/stat")):
            time.sleep(0.005)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        if self.poll() is None:
            self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit code. Raises ``subprocess.TimeoutExpired``."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return code

    def said(self) -> str:
        """Return what was printed so far, on both streams."""
        self._output.seek(0)
        return self._output.read()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; returns what was printed, on both streams. Raises ``subprocess.TimeoutExpired``."""
        self.wait(timeout)
        return self.said(), None


def _run(script: Path, arguments: tuple[str, ...], variables: Mapping[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(script.parent.parent)
    with open(os.devnull) as nothing, open(output, "w") as printed:
        os.dup2(nothing.fileno(), 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    # Buffered by line, so that a process that is killed leaves what it said.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
