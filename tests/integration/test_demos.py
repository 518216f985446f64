"""The journeys of the other systems, typed as a person would: made, moved with a kill, switched and taken back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from amprenta_vectors.sandbox.demo_documents import DocumentsDemo
from amprenta_vectors.sandbox.demo_products import ProductsDemo
from amprenta_vectors.sandbox.stage import Stage

DOCUMENTS = ("bit for bit; the files are unchanged", "the same from both backends", "no row is left")
PRODUCTS = (
    "Final pgvector coverage: 100.0%",
    "from chroma, else pgvector: ",
    "from pgvector, else chroma: ",
    "from union of pgvector and chroma: ",
    "from chroma: 3 product(s)",
    "every embedding is what it was",
)


@pytest.mark.parametrize(
    ("demo", "rows", "lines"),
    [(DocumentsDemo, 160, DOCUMENTS), (ProductsDemo, 150, PRODUCTS)],
    ids=["documents", "products"],
)
def test_a_demo_moves_switches_and_goes_back(
    server_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    demo: type[Stage],
    rows: int,
    lines: tuple[str, ...],
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    demo(server_folder.parent / "sandbox", rows).run()
    said = capfd.readouterr().out
    for line in ("kill -9 after", *lines):
        assert line in said, line
