"""Command lines run in this process: all that ``python -m`` would run but the start of an interpreter."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from alembic.config import Config
from alembic.config import main as alembic
from migrating import ROOT

from amprenta_vectors.cli import main

Completed = subprocess.CompletedProcess[str]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["pytest", "alembic.config", "amprenta_vectors.cli.db", "amprenta_vectors.ddl"])
LOGGERS = (None, "alembic", "amprenta_vectors")
"""Those that ``alembic.ini`` and ``amprenta-vectors db`` set up."""


MAINS: dict[str, Callable[..., object]] = {
    "alembic": alembic,
    "amprenta_vectors": partial(main, prog_name="amprenta-vectors"),
}
"""What ``python -m`` calls of a module."""


def type_in(*command: str, environment: Mapping[str, str], cwd: Path = ROOT) -> Completed:
    """Run a module and its arguments to the end, with ``environment`` alone.

    For one at a time, and from the main thread: the folder, the environment and the streams are the process's own.
    """
    module, *arguments = command
    out, err = StringIO(), StringIO()
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.object(Config, "__init__", _init_with_the_stream_of_now),
        chdir(cwd),
        _logging_as_at_a_start(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = _exit_code(lambda: MAINS[module](arguments))
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def type_in_many(number: int, *command: str, environment: Mapping[str, str]) -> list[Completed]:
    """Run a module and its arguments in so many processes at once.

    They are forked from one that has imported all they need: eight interpreters would start one after the other.
    """
    with ProcessPoolExecutor(number, mp_context=FORKED) as pool:
        running = [pool.submit(type_in, *command, environment=environment) for _ in range(number)]
        return [process.result(timeout=120) for process in running]


_init = Config.__init__


def _init_with_the_stream_of_now(self: Config, *arguments: Any, **options: Any) -> None:
    """Make Alembic's configuration; by itself it prints to what was the standard output when Alembic was imported."""
    _init(self, *arguments, **{"stdout": sys.stdout, **options})


def _exit_code(run: Callable[[], object]) -> int:
    """How the interpreter would end."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _logging_as_at_a_start() -> Iterator[None]:
    """No handler on the root, so that a command puts its own there; pytest's are back afterwards."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET if logger.parent else logging.WARNING)
    try:
        yield
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate
