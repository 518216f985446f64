"""The demos, typed as a person types them: made, moved with a kill, switched and taken back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from forms import FORM

from amprenta_vectors.cli import main

ROOT = Path(__file__).parents[2]
CHECKOUT = ("alembic.ini", "alembic", "scripts")
"""What a demo types commands of where it is there."""
RAG_CHUNKS = (
    "bit for bit",
    "run 1 is paused: nobody works at it",
    "hits, the same from both backends",
    "while Pinecone was away, and brought to it after",
    "every vector still equal, bit for bit",
)
DOCUMENTS = ("bit for bit; the files are unchanged", "the same from both backends", "no row is left")
PRODUCTS = (
    "Final pgvector coverage: 100.0%",
    "from chroma, else pgvector: ",
    "from pgvector, else chroma: ",
    "from union of pgvector and chroma: ",
    "from chroma: 3 product(s)",
    "every embedding is what it was",
)

COLUMN = (
    "amprenta-vectors backfill --dimension 256 takes those of 256 and leaves the others out",
    "a row that got its old value since has its embedding",
    "the downgrade kept every embedding",
    "none failed",
)
MODELS = (
    "queries search wordllama-l2-supercat-128",
    "by the model that is searched, and by both, their ranks fused",
    "answers all the while: none failed, empty or mixed",
)


@pytest.mark.parametrize(
    ("system", "lines"),
    [
        ("rag_chunks", RAG_CHUNKS),
        ("documents", DOCUMENTS),
        ("products", PRODUCTS),
        ("column", COLUMN),
        ("models", MODELS),
    ],
)
def test_a_demo_moves_switches_and_goes_back(
    server_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    system: str,
    lines: tuple[str, ...],
) -> None:
    # A folder of its own with the checkout's files: a demo removes the sandbox of the one before it.
    for name in CHECKOUT:
        (server_folder.parent / name).symlink_to(ROOT / name)
    monkeypatch.chdir(server_folder.parent)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    rows = ["--rows", str(FORM.demo_rows[system])] if system in FORM.demo_rows else []
    main(["sandbox", "demo", "--system", system, *rows], standalone_mode=False)
    said = capfd.readouterr().out
    for line in ("kill -9 after", *lines):
        assert line in said, line
    assert not list((server_folder.parent / ".sandbox").iterdir())
