"""The document system's journey, typed as a person would: made, moved with a kill in it, switched and taken back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from amprenta_vectors.sandbox.demo_documents import DocumentsDemo


def test_the_documents_demo_moves_switches_and_goes_back(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    DocumentsDemo(server_folder.parent / "sandbox", 160).run()
    said = capfd.readouterr().out
    for line in (
        "kill -9 after",
        "bit for bit; the files are unchanged",
        "the same from both backends",
        "no row is left",
    ):
        assert line in said
