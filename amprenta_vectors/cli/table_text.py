"""Rows of text in columns: a table on a terminal, a line a row for whatever else reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from amprenta_vectors.cli.printer import say
from amprenta_vectors.shown import printable

MOST_FOLDED = 1000
"""The most rows that are laid out for the terminal's width, which takes about a millisecond a row."""


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print ``rows`` below ``head``; the columns named in ``right`` are aligned to the right.

    On a terminal, cells are folded to its width. Elsewhere a row is one line, however long. Characters that would speak
    to the terminal are escaped.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal or len(rows) > MOST_FOLDED:
        _print_lines([head, *rows], [name in right for name in head])
        return
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_pairs(pairs: Mapping[str, str | None]) -> None:
    """Print a line for each name that has a value, the names aligned at their end."""
    said = {name: value for name, value in pairs.items() if value}
    width = max(map(len, said), default=0)
    for name, value in said.items():
        say(f"{name:>{width}}: {value}")


def _print_lines(lines: Sequence[Sequence[str]], to_right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [str.rjust if right else str.ljust for right in to_right]
    for line in lines:
        cells = (align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True))
        say("  ".join(cells).rstrip())
