"""Upgrades and downgrades killed at random moments, then finished by the same command: nobody can tell afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from alembic.script import ScriptDirectory
from fingerprint import fingerprint
from forms import FORM
from killing import ROWS, Copies, adopt, copies, finish, kill, name_of  # noqa: F401 - a fixture among them
from migrating import Database
from systems import PRODUCTS, SYSTEMS, System

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings

SOONER = 0.8
"""A process that had ended before it was to be killed is given this share of the time when it is tried again."""
TRIES = 30


def legs(section: str) -> list[tuple[str, str]]:
    """Up, down, up for every revision, from the first one on."""
    script = ScriptDirectory.from_config(migrate.alembic_config(Settings.load(database_url="postgresql://"), section))
    chain = [revision.revision for revision in script.walk_revisions()][::-1]
    lower = ["base", *chain]
    return [
        leg
        for revision, before in zip(chain, lower, strict=False)
        for leg in (("upgrade", revision), ("downgrade", before), ("upgrade", revision))
    ]


def kill_once(
    copies: Copies,  # noqa: F811
    before: Database,
    system: System,
    command: str,
    revision: str,
    seconds: float,
    chance: random.Random,
) -> tuple[object, object]:
    """Kill the command in a database like ``before``, finish it, and return what the database came to."""
    for _ in range(TRIES):
        with copies(name_of(before)) as db:
            if kill(db, system, command, revision, chance.uniform(0, seconds)):
                if chance.random() < 0.5:
                    kill(db, system, command, revision, chance.uniform(0, seconds))
                finish(db, system, command, revision)
                return fingerprint(db), system.contents(db)
        seconds *= SOONER
    pytest.fail(f"{command} {revision} was never killed")


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(adopt, id="adopted"),
        pytest.param(
            None, id="empty", marks=pytest.mark.skipif(not FORM.empty_databases, reason="not in the short form")
        ),
    ],
)
def test_killed_at_any_moment_the_same_command_finishes_the_work(
    copies: Copies,  # noqa: F811
    begin: Callable[[Database, System], None] | None,
    system: System,
    chance: random.Random,
) -> None:
    with copies(None) as undisturbed:
        if begin is not None:
            begin(undisturbed, system)
        for command, revision in legs(system.section):
            with copies(name_of(undisturbed)) as before:
                seconds = finish(undisturbed, system, command, revision)
                expected = fingerprint(undisturbed), system.contents(undisturbed)
                for _ in range(FORM.upgrade_kills):
                    found = kill_once(copies, before, system, command, revision, seconds, chance)
                    assert found == expected, (command, revision)
            system.live_on(undisturbed, first=ROWS + 1)


def test_a_whole_upgrade_killed_again_and_again_ends_as_if_never_disturbed(
    copies: Copies,  # noqa: F811
    chance: random.Random,
) -> None:
    system, kills = PRODUCTS, 0
    with copies(None) as undisturbed:
        adopt(undisturbed, system)
        seconds = finish(undisturbed, system, "upgrade", "head") / 2
        expected = fingerprint(undisturbed), system.contents(undisturbed)
    for _ in range(TRIES):
        with copies(None) as db:
            adopt(db, system)
            for _ in range(10):
                kills += kill(db, system, "upgrade", "head", chance.uniform(0, seconds))
            finish(db, system, "upgrade", "head")
            assert (fingerprint(db), system.contents(db)) == expected
        if kills > 1:
            return
        seconds *= SOONER
    pytest.fail("the upgrade was never killed twice")
