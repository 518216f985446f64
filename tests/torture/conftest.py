"""What the tortures share; the folders of migrations and of integration have the rest."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from backfill_tools import end_process
from forms import SEED, SEED_VARIABLE

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("migration", "integration")]


@pytest.fixture
def chance() -> random.Random:
    """What is random in a test; its seed is shown where the test fails, to repeat it."""
    print(f"{SEED_VARIABLE}={SEED}")  # noqa: T201
    return random.Random(SEED)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test appends are ended after it."""
    running: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        stack.callback(lambda: [end_process(process) for process in running])
        yield running
