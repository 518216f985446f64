"""The product system's journey, typed as a person would: made, migrated with a kill in it, switched and taken back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from amprenta_vectors.sandbox.demo_products import ProductsDemo


def test_the_products_demo_migrates_switches_and_goes_back(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    ProductsDemo(server_folder.parent / "sandbox", 150).run()
    said = capfd.readouterr().out
    for line in (
        "kill -9 after",
        "Final pgvector coverage: 100.0%",
        "from chroma, else pgvector: ",
        "from pgvector, else chroma: ",
        "from union of pgvector and chroma: ",
        "from chroma: 3 product(s)",
        "every embedding is what it was",
    ):
        assert line in said, line
