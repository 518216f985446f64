"""docs/http.md and the Containerfile say what there is."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from configparser import ConfigParser
from pathlib import Path

import click

from amprenta_vectors.cli import main
from amprenta_vectors.service import bodies, limits, tokens

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
LINES = (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in LINES if line.startswith(f"{name} ")]


def test_the_endpoints_of_the_page_are_those_of_the_service() -> None:
    renew = runpy.run_path(str(ROOT / "scripts" / "http_reference.py"))["renew"]
    assert renew(PAGE) == PAGE, "python scripts/http_reference.py"
    assert PAGE.count("\n`POST /api/v1/search`\n") == 1
    assert f"string (0 to {bodies.MAX_QUERY_CHARACTERS:,})" in PAGE


def test_the_limits_that_the_head_of_the_page_names_are_those_of_the_service() -> None:
    assert f"{limits.MAX_BODY_BYTES // 1024} KiB at most and {limits.BODY_SECONDS:g} seconds" in PAGE
    assert f"{limits.MAX_IN_HAND} requests are handled" in PAGE
    assert f"at least {tokens.MIN_SECRET_BYTES} bytes" in PAGE


def test_the_image_has_what_its_package_is_built_from() -> None:
    copied = {word for line in instructions("COPY") if not line.startswith("--from") for word in line.split()[:-1]}
    assert copied == {
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "alembic.ini",
        "alembic",
        "amprenta_vectors",
    }
    assert all((ROOT / name).exists() for name in copied)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (extras,) = instructions("ARG")
    assert {"service", "async"} <= set(extras.partition("=")[2].split(",")) <= set(setup["options.extras_require"])


def test_the_image_runs_the_command_as_a_user_without_rights() -> None:
    (user,) = instructions("USER")
    assert int(user.partition(":")[0]) > 0
    assert [json.loads(line) for line in instructions("ENTRYPOINT")] == [["amprenta-vectors"]]
    assert [json.loads(line) for line in instructions("CMD")] == [["serve", "--host", "0.0.0.0"]]
    assert not re.search("SECRET|PASSWORD|API_KEY", "\n".join(instructions("ENV") + instructions("ARG")))


def test_each_command_that_page_and_image_give_a_container_is_there() -> None:
    told = re.findall(r"^#   (\w+ .*?)  ", "\n".join(LINES), re.MULTILINE)
    told += re.findall(r"^podman run .* amprenta (\w.*)$", PAGE, re.MULTILINE)
    assert len(told) == 5
    for line in told:
        group, *words = shlex.split(line)
        command = main.get_command(click.Context(main), group)  # type: ignore[attr-defined]
        assert command is not None
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[0])
        assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
