"""One word a concept: the words that the house gave up are nowhere in its code, messages, tests and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("alembic", "amprenta_vectors", "benchmarks", "docs", "scripts", "tests")
GIVEN_UP = {
    "quarantine": r"\bset[ _-]aside\b|\bsets aside\b|\breject(s|ed|ion)?\b|\bbad[ _-]rows?\b|\berror rows?\b",
    "defer": r"\bput(s|ting)?[ _-](\w+[ _-])?off\b",
    # OpenAI calls an account without credit so.
    "limit": r"\bceilings?\b|(?<!insufficient\s)\bquotas?\b",
    "resume": r"\bgone on with\b|\bgoes on with (it|the run)\b|\bgo on with (it|the run|what)\b",
}


def pages() -> list[Path]:
    found = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".mako"}
    ]
    return [*found, ROOT / "README.md", ROOT / "setup.cfg"]


@pytest.mark.parametrize("word", GIVEN_UP)
def test_no_other_word_is_used_for_it(word: str) -> None:
    pattern = re.compile(GIVEN_UP[word].replace(" ", r"\s+"), re.IGNORECASE)
    used = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in pages()
        if path != Path(__file__)
        for found in pattern.finditer(re.sub(r"(?<=[a-z])_(?=[a-z])", " ", path.read_text()))
    ]
    assert used == []
