"""``amprenta-vectors serve`` over a models system in memory, for tests that send it signals."""

from __future__ import annotations

import os
from pathlib import Path

from http_service import InMemoryModels

from amprenta_vectors.config import Settings
from amprenta_vectors.entry import run
from amprenta_vectors.service import opening


async def open_service(_: Settings) -> InMemoryModels:
    """The models system; calls wait while the file that HOLD names is there."""
    models = InMemoryModels()
    models.holds = Held(Path(os.environ["HOLD"]))  # type: ignore[assignment]
    return models


class Held:
    """Set while a file is there; the one beside it says that a call waits."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_set(self) -> bool:
        """Whether calls wait."""
        held = self._path.exists()
        if held:
            self._path.with_name("waiting").touch()
        return held


if __name__ == "__main__":
    opening.open_service = open_service
    run("serve")
