"""Every command, option and variable that a message or a page tells one to type is one that there is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings, SourceLimits, Thresholds

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "amprenta_vectors"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_COMMAND = re.compile(
    r"(?:amprenta-vectors|python -m amprenta_vectors|(?:python )?scripts/(?P<script>\w+)\.py) "
    r"(?P<rest>(?:(?!amprenta-vectors |scripts/).)*)"
)
GROUPS = (SourceLimits, Thresholds)
OTHERS = {"CHROMA_CLIENT_AUTH_PROVIDER", "CHROMA_CLIENT_AUTH_CREDENTIALS", "AMPRENTA_NAME"}
"""What Chroma's own client reads, and what stands for the name of any setting."""

_OPTION = re.compile(r"--[a-z][a-z-]*")
_VARIABLE = re.compile(r"\b(?:AMPRENTA|PINECONE|VECTOR|CHROMA|POSTGRES|PGVECTOR|SIMPLE|PRODUCT)_[A-Z][A-Z_]*\b")


def texts_of(path: Path) -> Iterator[str]:
    """Yield each text of a module's source, a placeholder in an f-string as a word of its own."""
    tree = ast.parse(path.read_text())
    inner = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else " X " for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def _lines() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "sandbox" not in path.parts:
            for text in texts_of(path):
                for line in text.splitlines():
                    yield str(path.relative_to(ROOT)), line
    for path in PAGES:
        for line in path.read_text().splitlines():
            yield str(path.relative_to(ROOT)), line


LINES = list(_lines())


def command_of(words: list[str]) -> click.Command:
    """Return the command that the first words name, the main one if they name none."""
    found: click.Command = main
    for word in words:
        command = found.get_command(click.Context(found), word) if isinstance(found, click.Group) else None
        if command is None:
            break
        found = command
    # What a group runs where no command of its own is named.
    return found.commands.get("run", found) if isinstance(found, click.Group) and found is not main else found


def options_of(command: click.Command) -> set[str]:
    named = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return named | {"--help", "--version"}


def typed() -> Iterator[tuple[str, list[str], set[str]]]:
    """Yield the file, the first words and the options of each command that is named with a word of its own."""
    for where, line in LINES:
        for match in _COMMAND.finditer(line):
            rest = re.split(r"[;|»`()]|, | or (?!-)| && |#|  ", match["rest"])[0]
            if match["script"] == "backfill":
                rest = f"backfill {rest}"
            words = re.match(r"(?:[a-z][a-z-]*(?: |$))*", rest)
            if match["script"] in (None, "backfill") and words and words[0]:
                yield where, words[0].split(), set(_OPTION.findall(rest))


def test_every_command_that_is_named_is_there_with_its_options() -> None:
    found = list(typed())
    assert len(found) > 200
    wrong = []
    for where, words, options in found:
        command = command_of(words)
        if command is main or not options <= options_of(command):
            wrong.append((where, " ".join(words), options - options_of(command)))
    assert wrong == []


def test_every_variable_that_is_named_is_a_setting() -> None:
    fields = [*Settings.model_fields.items(), *(item for group in GROUPS for item in group.model_fields.items())]
    known = {str(field.validation_alias or name.upper()) for name, field in fields} | OTHERS
    named = {(where, name) for where, line in LINES for name in _VARIABLE.findall(line)}
    assert sorted((where, name) for where, name in named if name not in known) == []
