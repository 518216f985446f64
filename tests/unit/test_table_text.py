"""Rows in columns, for a person at a terminal and for what reads a pipe."""

from __future__ import annotations

import pytest
from rich.console import Console

from amprenta_vectors.cli import table_text
from amprenta_vectors.cli.table_text import print_table

ROWS = [("a" * 100, "7"), ("[bold]b\x1b[2J", "12")]


def test_into_a_pipe_a_row_is_one_line_however_long_and_does_not_speak_to_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("key", "rows"), ROWS, right=("rows",))
    assert capsys.readouterr().out.splitlines() == [
        f"{'key':<100}  rows",
        f"{'a' * 100}     7",
        r"[bold]b\x1b[2J".ljust(100) + "    12",
    ]


def test_on_a_terminal_cells_are_folded_to_its_width_and_are_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_text, "Console", lambda: Console(force_terminal=True, width=40, color_system=None))
    print_table(("key", "rows"), ROWS, right=("rows",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("a") == 100
    assert any("[bold]b" in line and line.rstrip().endswith("12") for line in lines)
