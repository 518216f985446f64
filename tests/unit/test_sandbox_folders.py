"""Folders that are no sandbox, which nothing is started in."""

from __future__ import annotations

from pathlib import Path

import pytest

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox import control


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="neither empty nor a sandbox"):
        control.start(tmp_path)


def test_env_without_a_sandbox_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sandbox was started") as caught:
        control.env(tmp_path)
    assert "sandbox start" in caught.value.hint
