"""squawk, which knows what is dangerous on a live database, has nothing to say of what `--sql` prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from migrating import ROOT
from test_offline import write

from amprenta_vectors.migrate import SECTIONS

SQUAWK = str(Path(sys.executable).parent / "squawk")
CONFIGURATION = ROOT / ".squawk.toml"

SEES_NO_CONDITION = {
    "prefer-robust-stmts": "the block asks the catalogue first, in the same transaction",
}
UPGRADE = {
    **SEES_NO_CONDITION,
    "renaming-table": "a table that a downgrade retired comes back; nobody uses the retired name",
    "renaming-column": "a column that a downgrade retired comes back; nobody uses the retired name",
    "ban-drop-function": "the trigger's, which the taking back of a column made itself",
    "require-concurrent-index-creation": "on a table that the statement before has made",
    "prefer-bigint-over-int": "a dimension, at most 16,000, and the number of attempts",
    "adding-required-field": "where the table has no rows, which the block asks under its lock",
}
DOWNGRADE = {
    **SEES_NO_CONDITION,
    "renaming-table": "what has rows is kept under a retired name instead of dropped",
    "renaming-column": "what has values is kept under a retired name instead of dropped",
    "ban-drop-not-null": "so that the old application, which leaves the column out, can insert",
    "ban-drop-column": "ours, and empty, unless a purge was asked for",
    "ban-drop-table": "ours, and empty, unless a purge was asked for",
    "ban-drop-function": "the trigger's, which an interrupted upgrade may have left",
    "ban-drop-extension": "made here, and nothing uses it: RESTRICT",
    "ban-drop-view": "the section's own, and nothing uses it: RESTRICT",
}
"""Rules that statements inside blocks break, and why that is right there."""
ONLY = {"adding-required-field": "documents", "ban-drop-view": "products"}
"""Those that one section alone breaks."""


def rules_broken(script: str, *options: str) -> set[str]:
    done = subprocess.run(
        [SQUAWK, "--reporter", "json", *options, "--stdin-filepath", "script.sql"],
        input=script,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode in {0, 1}, done.stderr
    return {problem["rule_name"] for problem in json.loads(done.stdout)}


def inside_blocks(script: str) -> str:
    """Every DDL statement that stands in a block, and the concurrent build that a block hands to psql."""
    found = re.findall(r"^ +((?:CREATE|ALTER|DROP|COMMENT)\b.*?;)$", script, re.MULTILINE | re.DOTALL)
    for before, after in re.findall(
        r"'(CREATE INDEX CONCURRENTLY [^']*)' \|\| expression \|\| ' ' \|\| opclass \|\| '([^']*)'", script
    ):
        found.append(f"{before}embedding vector_cosine_ops{after};")
    found += [f"{statement};" for statement in re.findall(r"'(DROP INDEX CONCURRENTLY \w+)'", script)]
    return "SET lock_timeout = '2s'; SET statement_timeout = 0;\n" + "\n".join(found)


@pytest.fixture(scope="module", params=SECTIONS)
def section(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def up(section: str) -> str:
    return write("-n", section, "-x", "dimension=1536", "upgrade", "head")


@pytest.fixture(scope="module")
def down(section: str) -> str:
    return write("-n", section, "-x", "purge=true", "downgrade", "head:base")


def allowed(rules: dict[str, str], section: str) -> set[str]:
    """What the blocks of a section may break."""
    return rules.keys() - {rule for rule, only in ONLY.items() if only != section}


def test_squawk_passes_what_is_printed(up: str, down: str) -> None:
    for script in (up, down):
        assert rules_broken(script, "-c", str(CONFIGURATION)) == set()


def test_every_exception_in_the_configuration_is_needed(up: str, tmp_path: Path) -> None:
    text = CONFIGURATION.read_text()
    excluded = set(re.findall(r'^    "(.*)",$', text, re.MULTILINE))
    bare = tmp_path / "squawk.toml"
    bare.write_text(text[: text.index("excluded_rules")])
    assert rules_broken(up, "-c", str(bare)) == excluded


def test_squawk_passes_what_stands_in_the_blocks_of_an_upgrade(section: str, up: str) -> None:
    inside = inside_blocks(up)
    assert "CREATE INDEX CONCURRENTLY" in inside
    assert "ADD COLUMN embedding_hash" in inside
    assert rules_broken(inside, "-c", str(CONFIGURATION)) == allowed(UPGRADE, section)


def test_squawk_passes_what_stands_in_the_blocks_of_a_downgrade(section: str, down: str) -> None:
    inside = inside_blocks(down)
    assert "DROP INDEX CONCURRENTLY" in inside
    assert rules_broken(inside, "-c", str(CONFIGURATION)) == allowed(DOWNGRADE, section)
