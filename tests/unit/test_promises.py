"""The list of promises in tests/README.md names tests that exist, of the default run, and a test for each promise."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
README = TESTS / "README.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
NOT_IN_THE_DEFAULT_RUN = ("torture/", "journey/")


def rows() -> list[str]:
    """The lines of the tables of promises."""
    _, *tables = README.read_text().split("| promise | test |\n|---|---|\n")
    return [line for table in tables for line in table.partition("\n\n")[0].splitlines()]


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions) and node.name.startswith("test_")}


def test_each_test_that_the_list_names_exists_in_the_default_run() -> None:
    named = {found for line in rows() for found in NAMED.findall(line)}
    assert [path for path, _ in named if path.startswith(NOT_IN_THE_DEFAULT_RUN)] == []
    assert [path for path, _ in named if not (TESTS / path).is_file()] == []
    assert [f"{path}::{name}" for path, name in sorted(named) if name not in names_in(path)] == []


def test_each_promise_of_the_list_has_a_test() -> None:
    assert len(rows()) > 50
    assert [line for line in rows() if not NAMED.search(line.rpartition(" | ")[2])] == []


def test_every_part_of_the_design_is_in_the_list() -> None:
    numbers = {int(number) for number in re.findall(r"^\| (\d+)\. ", README.read_text(), re.MULTILINE)}
    assert numbers == set(range(1, 11))
