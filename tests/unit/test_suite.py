"""What plain ``pytest`` leaves out, and what chance is drawn from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forms import FIXED_SEED, choose_form, choose_seed

TESTS = Path(__file__).parents[1]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite with this one's settings and one new file in each of four folders."""
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    for file in TESTS.glob("*.py"):
        (tmp_path / "tests").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "tests")
    for folder in ("unit", "torture", "journey", "local_models"):
        (tmp_path / "tests" / folder).mkdir()
        (tmp_path / "tests" / folder / f"test_new_{folder}.py").write_text("def test_new() -> None:\n    pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((), "unit"),
        (("-m", "torture"), "torture"),
        (("-m", "journey"), "journey"),
        (("-m", "local_models"), "local_models"),
    ],
    ids=["pytest", "torture", "journey", "local_models"],
)
def test_a_new_file_is_run_by_the_command_of_its_folder_and_no_other(
    suite: Path, asked: tuple[str, ...], found: str
) -> None:
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider")
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *plugins, *asked],
        cwd=suite,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    ids = [line for line in collected.stdout.splitlines() if "::" in line]
    assert ids == [f"tests/{found}/test_new_{found}.py::test_new"]


def test_the_seed_is_fixed_unless_another_is_asked_for() -> None:
    assert choose_seed(None) == choose_seed("") == FIXED_SEED
    assert choose_seed("7") == 7
    assert len({choose_seed("random") for _ in range(5)}) > 1


def test_a_form_that_there_is_not_is_refused() -> None:
    assert choose_form(None).name == "short"
    with pytest.raises(ValueError, match="one of: short, long"):
        choose_form("shorter")
