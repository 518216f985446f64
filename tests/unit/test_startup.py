"""What a command line costs before it does anything: help comes without what only work needs."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from amprenta_vectors.cli import JOURNEY, main

HEAVY = ("alembic", "grpc", "numpy", "pinecone", "psycopg2", "pydantic", "rich", "sqlalchemy", "tqdm")
HELP = """
import contextlib, io, json, sys
from amprenta_vectors.cli import main
for name in ["", *main.list_commands(None)]:
    with contextlib.redirect_stdout(io.StringIO()):
        main([*filter(None, [name]), "--help"], standalone_mode=False)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_help_of_every_command_loads_nothing_that_only_work_needs() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_every_command_stands_in_one_step_of_the_journey_in_a_line_that_is_shown_whole() -> None:
    assert isinstance(main, click.Group)
    names = [name for commands in JOURNEY.values() for name in commands]
    assert len(names) == len(set(names))
    shown = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for step, commands in JOURNEY.items():
        assert f"{step}:" in shown
        for name, text in commands.items():
            assert f"{name} {text}" in shown
            assert main.get_command(click.Context(main), name) is not None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("statsu", "there is no command 'statsu'; did you mean 'status'?"),
        ("retry_failed", "did you mean 'retry-failed'?"),
        ("xyzzy", "there is no command 'xyzzy'\n"),
    ],
)
def test_a_misspelt_command_is_suggested(typed: str, said: str) -> None:
    done = CliRunner().invoke(main, [typed])
    assert done.exit_code == 2
    assert said in done.output
