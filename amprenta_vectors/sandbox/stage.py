"""The stage of every demo: the real commands, one after another, each printed before it runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox import control


class Stage:
    """Runs commands in an environment pointed at a fresh sandbox in ``folder``, and keeps what they came to.

    A demo gives `_acts`. ``rows`` is how much it is to move; None is all there is. In a checkout it types what a user
    with the repository types; from a wheel, what the wheel offers.
    """

    _engine: Engine

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        self._folder = folder
        self._rows = rows
        self._environment = dict(os.environ)
        self._results: list[tuple[str, str]] = []
        self._in_checkout = Path("alembic.ini").exists() and Path("scripts").is_dir()

    def run(self) -> None:
        """Run every act, then print the summary; the sandbox is removed however the acts end."""
        began = time.monotonic()
        try:
            for act in self._acts():
                act()
        finally:
            self._close()
            control.stop(self._folder, remove=True)
        self._summarise(time.monotonic() - began)

    def _acts(self) -> list[Callable[[], None]]:
        raise NotImplementedError

    def _close(self) -> None:
        """End what an act has left open; called before the sandbox is removed."""
        if hasattr(self, "_engine"):
            self._engine.dispose()

    def _start_sandbox(self, options: str = "") -> None:
        """Start a sandbox without anything of an earlier one; point the environment and `_engine` at it."""
        control.stop(self._folder, remove=True)
        self._do(f"amprenta-vectors sandbox start --folder {shlex.quote(str(self._folder))}{options}")
        self._environment |= control.env(self._folder)
        self._engine = create_engine(Settings.load(database_url=self._environment["DATABASE_URL"]))

    def _script(self, name: str, command: str) -> str:
        """Return ``python scripts/NAME``, or ``command`` if there are no scripts."""
        return f"python scripts/{name}" if self._in_checkout else command

    def _alembic(self, arguments: str, section: str = "alembic") -> str:
        """Return the command line that runs Alembic on a section."""
        if self._in_checkout:
            return f"alembic {arguments}" if section == "alembic" else f"alembic -n {section} {arguments}"
        named = "" if section == "alembic" else f" --section {section}"
        return f"amprenta-vectors db {arguments}{named}"

    def _do(self, command: str, *, show: bool = True, expect: int = 0) -> tuple[float, str]:
        """Run one command to its end; return its seconds and what it printed. Another exit code ends the demo."""
        if show:
            self._say(command)
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own command
            shlex.split(command), env=self._environment, stdout=subprocess.PIPE, text=True
        )
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if show:
                click.echo(line, nl=False)
        if process.wait() != expect:
            raise AmprentaError(f"{command}: exit code {process.returncode}, expected {expect}")
        return time.monotonic() - began, "".join(lines)

    def _begin(self, command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        self._say(command)
        return subprocess.Popen(shlex.split(command), env=self._environment, text=True, **options)  # noqa: S603

    def _export(self, **variables: str) -> None:
        """Set variables for the commands that follow; an empty value unsets one."""
        self._environment |= variables
        click.secho("$ export " + " ".join(f"{name}={value}" for name, value in variables.items()), bold=True)

    def _kill_at(self, keys: int, process: subprocess.Popen[str]) -> int:
        """Kill ``process`` by SIGKILL once ``keys`` rows are written; return how many are."""
        self._wait_until_written(keys, process)
        process.kill()
        process.wait()
        written = self._written()
        click.secho(f"\n    kill -9 after {written:,} rows\n", fg="yellow")
        return written

    def _wait_until_written(self, keys: float, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and self._written() < keys:
            time.sleep(0.02)
        if process.poll() is not None:
            raise AmprentaError("the backfill ended before it could be interrupted")

    def _written(self) -> int:
        return self._number("SELECT coalesce(sum(rows_written), 0) FROM migration_progress")

    def _number(self, statement: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sa.text(statement)).scalar_one())

    def _title(self, text: str) -> None:
        click.secho(f"\n{text}\n", fg="cyan", bold=True)

    def _say(self, command: str) -> None:
        sys.stdout.flush()
        click.secho(f"$ {command}", bold=True)

    def _show(self, line: str) -> None:
        click.echo(line)

    def _note(self, name: str, value: str) -> None:
        """Add a line to the summary."""
        self._results.append((name, value))

    def _summarise(self, seconds: float) -> None:
        self._title(f"Done in {seconds:.0f} s")
        for name, value in self._results:
            click.echo(f"  {name:>11}  {value}")


def keys_of(answer: str) -> list[str]:
    """Return the keys of the hits that ``sandbox ask`` printed."""
    return [line.split()[1] for line in answer.splitlines() if re.match(r"\s*[\d.]+ ", line)]
