"""Upgrades and downgrades that are killed at their commits, and finished by the same command."""

from __future__ import annotations

import itertools
import signal

import pytest
from fingerprint import fingerprint
from killing import (  # noqa: F401 - a fixture among them
    ROWS,
    Copies,
    adopt,
    copies,
    finish,
    name_of,
    start,
    wait_for,
)
from systems import BESIDE_MODELS, MODEL_COLUMNS, STEPPED, System

WAY = (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head"))


@pytest.mark.parametrize(
    "system",
    # A sample: the section that is the default, beside models, and an application's revisions; the others in
    # `make torture`.
    [
        pytest.param(system, id=name, marks=() if system in (BESIDE_MODELS, MODEL_COLUMNS) else pytest.mark.torture)
        for name, system in STEPPED.items()
    ],
)
def test_killed_at_its_commits_the_same_command_finishes_the_work(copies: Copies, system: System) -> None:  # noqa: F811
    """Each try gets three commits further than the one before would have, so that the last one comes to the end."""
    with copies(None) as undisturbed:
        adopt(undisturbed, system)
        for command, revision in WAY:
            with copies(name_of(undisturbed)) as db:
                finish(undisturbed, system, command, revision)
                for commits in itertools.count(1, 3):
                    code = wait_for(start(db, system, command, revision, commits=commits))
                    if code == 0:
                        break
                    assert code == -signal.SIGKILL
                assert commits > 1, "nothing was killed"
                assert fingerprint(db) == fingerprint(undisturbed), command
                assert system.contents(db) == system.contents(undisturbed), command
            system.live_on(undisturbed, first=ROWS + 1)
