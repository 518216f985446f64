"""What the package promises to export, and what every command promises to explain."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import amprenta_vectors
from amprenta_vectors import errors
from amprenta_vectors.cli import main


@pytest.mark.parametrize("name", amprenta_vectors.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(amprenta_vectors, name).__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = amprenta_vectors.no_such_name


def test_importing_the_package_or_its_operations_imports_no_driver_and_no_pinecone() -> None:
    heavy = ("pinecone", "grpc", "psycopg2", "numpy", "pydantic")
    code = f"import sys, amprenta_vectors.ddl; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_error_tree_is_drawn_in_full() -> None:
    classes = [
        name for name, item in vars(errors).items() if inspect.isclass(item) and item.__module__ == errors.__name__
    ]
    assert errors.__doc__ is not None
    assert [name for name in classes if name not in errors.__doc__] == []


def test_each_error_ends_a_command_with_the_code_that_the_tree_says() -> None:
    # One that says no code of its own ends with that of the error which it is a kind of; some never reach a command.
    said = {name: int(code) for name, code in re.findall(r"(\w+) +exit (\d)", errors.__doc__ or "")}
    assert {said[name] for name in ("AmprentaError", "ConfigError", "CredentialsRefused", "SourceError")} == {1, 2}
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.AmprentaError):
            expected = next(said[ancestor.__name__] for ancestor in kind.__mro__ if ancestor.__name__ in said)
            assert kind.exit_code == expected, name


def test_of_several_codes_the_worst_stands_for_all_and_nothing_to_do_is_clean() -> None:
    assert set(errors.WORST_FIRST) == set(errors.ExitCode)
    clean, quarantined, failed = errors.ExitCode.CLEAN, errors.ExitCode.QUARANTINED, errors.ExitCode.FAILED
    assert errors.worst([clean, quarantined, failed, clean]) is failed
    assert errors.worst([clean, quarantined]) is quarantined
    assert errors.worst([]) is clean


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.SourceError], ids=lambda kind: kind.__name__)
def test_an_error_is_shown_with_its_hint_and_ends_the_command_with_its_code(
    kind: type[errors.AmprentaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("expected a, found b", hint="type this")

    monkeypatch.setattr("amprenta_vectors.config.Settings.load", fail)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == kind.exit_code
    assert result.output == "error: expected a, found b\n  hint: type this\n"


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _commands(child, (*path, name))
    return found


@pytest.mark.parametrize("path", _commands(main), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["no-such-command"]).exit_code == 2
