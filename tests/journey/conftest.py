"""Sandboxes for the tests of this folder: one is loaded, and each test starts a copy of it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import ROWS, record

from amprenta_vectors.sandbox import control


@pytest.fixture(scope="session")
def loaded() -> Iterator[Path]:
    """A sandbox of `ROWS` rows that was started once, and stopped."""
    with tempfile.TemporaryDirectory(prefix="amprenta-test-") as parent:
        folder = Path(parent, "loaded")
        try:
            assert control.start(folder, ROWS) == ROWS
        finally:
            control.stop(folder)
        yield folder


@pytest.fixture
def stopped(loaded: Path) -> Iterator[Path]:
    """A copy of ``loaded`` that does not run. It is given ports of its own when it is started."""
    with tempfile.TemporaryDirectory(prefix="amprenta-test-") as parent:
        folder = Path(parent, "it's a sandbox")
        # The files belong to the server's own user, which shutil would not keep.
        subprocess.run(["cp", "-a", loaded, folder], check=True)
        record(folder, host=None, grpc_host=None)
        yield folder
        control.stop(folder)


@pytest.fixture
def started(stopped: Path) -> Path:
    """A copy of ``loaded`` that runs."""
    control.start(stopped)
    return stopped
