"""Each command line in a process of its own says and does what the other tests of this folder see of it in theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from fingerprint import fingerprint
from migrating import ROOT, Database
from typed import Completed, type_in

COMMANDS = {
    "alembic": [
        ("upgrade", "head"),
        ("current",),
        ("-x", "purge=true", "downgrade", "base"),
        ("-x", "dimension=many", "upgrade", "head"),
        ("-x", "dimension=4", "upgrade", "head", "--sql"),
    ],
    "amprenta_vectors": [
        ("db", "plan"),
        ("db", "upgrade"),
        ("db", "downgrade", "--purge"),
        ("db", "downgrade", "nowhere"),
    ],
}


FEWER = {
    "alembic": [("-x", "dimension=many", "upgrade", "head"), ("upgrade", "head")],
    "amprenta_vectors": [("db", "upgrade"), ("db", "downgrade", "nowhere")],
}
"""One that ends well and one that does not: each takes a second and more. `make torture` types them all."""


def told(done: Completed) -> tuple[int, str, str]:
    """How a command ended and what it said, but for what is another every time: sizes, names and moments."""
    said = (re.sub(r"clone_\d+|\d+\.\d+ MB", "…", text) for text in (done.stdout, done.stderr))
    return (done.returncode, *said)


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        *(pytest.param(*each, id=each[0]) for each in FEWER.items()),
        *(pytest.param(*each, id=f"{each[0]}, all", marks=pytest.mark.torture) for each in COMMANDS.items()),
    ],
)
def test_a_process_of_its_own_says_and_does_the_same(
    clone: Callable[..., Database], module: str, commands: list[tuple[str, ...]]
) -> None:
    by_process, in_process = clone(), clone()
    codes = set()
    for arguments in commands:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": by_process.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        here = type_in(module, *arguments, environment={**os.environ, "DATABASE_URL": in_process.url})
        out, err = process.communicate(timeout=120)
        there = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert told(there) == told(here)
        assert fingerprint(by_process) == fingerprint(in_process)
        assert here.returncode or here.stdout or here.stderr
        codes.add(here.returncode)
    assert {0, 2} <= codes
