"""The whole journey on this machine: the real commands, one after another, each printed before it runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox import control

QUESTION = "How do I parse command line arguments with subcommands?"
QUESTIONS = (QUESTION, "read a file line by line", "run code in another thread and wait for its result")
LATENCY_SECONDS = 0.02
"""How far away the demo's Pinecone is; a cloud region answers in about this time."""
KILL_AT, PAUSE_AT = 0.3, 0.5
"""Shares of the rows that are written by then."""


class Demo:
    """Runs commands in an environment pointed at a fresh sandbox in ``folder``, and keeps what they came to."""

    def __init__(self, folder: Path, rows: int | None = None) -> None:
        self._folder = folder
        self._rows = rows
        self._environment = dict(os.environ)
        self._results: list[tuple[str, str]] = []
        # In a checkout the demo types what a user with the repository types; from a wheel, what the wheel offers.
        checkout = Path("alembic.ini").exists() and Path("scripts").is_dir()
        self._alembic = "alembic" if checkout else "amprenta-vectors db"
        self._backfill = "python scripts/backfill.py" if checkout else "amprenta-vectors backfill"
        self._benchmark = "python scripts/benchmark_vector_stores.py" if checkout else "amprenta-vectors benchmark"

    def run(self) -> None:
        """Start, upgrade, backfill with a kill and a pause in it, verify, compare, switch, go back and forth; stop."""
        began = time.monotonic()
        try:
            self._sandbox()
            self._expand()
            self._backfill_with_a_kill_and_a_pause()
            self._compare()
            self._shadow()
            self._ask_both()
            self._go_back_and_forth()
        finally:
            self._engine.dispose()
            control.stop(self._folder, remove=True)
        self._summarise(time.monotonic() - began)

    def _sandbox(self) -> None:
        self._title("A Pinecone index full of real vectors, and an application's PostgreSQL")
        control.stop(self._folder, remove=True)
        rows = f" --rows {self._rows}" if self._rows else ""
        self._do(f"amprenta-vectors sandbox start --folder {shlex.quote(str(self._folder))}{rows}")
        self._environment |= control.env(self._folder)
        self._engine = create_engine(Settings.load(database_url=self._environment["DATABASE_URL"]))
        self._set_latency(LATENCY_SECONDS)
        self._count = control.start(self._folder, self._rows)
        self._note("source", f"{self._count:,} docstrings and functions of Python's standard library, 256 dimensions")

    def _expand(self) -> None:
        self._title("1. Expand: the schema, safe on a live database")
        self._do("amprenta-vectors sources inspect")
        self._do(f"{self._alembic} upgrade head")
        self._do(f"{self._backfill} --dry-run --keys-from source")

    def _backfill_with_a_kill_and_a_pause(self) -> None:
        self._title("2. Backfill, killed with SIGKILL partway, resumed, and paused from another terminal")
        process = self._begin(f"{self._backfill} --keys-from source --batch-size 500")
        self._wait_until_written(KILL_AT, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at = self._written()
        click.secho(f"\n    kill -9 after {killed_at:,} rows\n", fg="yellow")
        self._note("killed", f"SIGKILL after {killed_at:,} of {self._count:,} rows")
        self._do("amprenta-vectors status")
        began = time.monotonic()
        process = self._begin(f"{self._backfill} --resume", stdout=subprocess.PIPE)
        self._wait_until_written(PAUSE_AT, process)
        self._do("amprenta-vectors pause")
        self._note("paused", f"after {self._written():,} rows, from another process, and resumed")
        self._do("amprenta-vectors resume")
        output, _ = process.communicate()
        click.echo(output, nl=False)
        if process.returncode != 0 or "bit for bit" not in output:
            raise AmprentaError("the backfill was not verified")
        seconds = time.monotonic() - began
        self._note("resumed", f"the rest and its index in {seconds:.1f} s; every vector verified bit for bit")
        self._note("reported", "reports/run-1.html, made from reports/run-1.json")

    def _compare(self) -> None:
        self._title("3. Compare before switching")
        self._set_latency(0)
        _, output = self._do(f"{self._benchmark} --queries 100 --top-k 10 --use-db-vectors --format json", show=False)
        report = json.loads(output)
        self._do(f"{self._benchmark} --queries 100 --top-k 10 --use-db-vectors")
        recalls = ", ".join(f"{store['name']} {store['recall']:.3f}" for store in report["stores"])
        self._note("compared", f"recall@10 {recalls}; overlap {report['overlap']:.3f}")

    def _shadow(self) -> None:
        self._title("4. Shadow: Pinecone answers, pgvector is asked beside it and compared")
        self._export(VECTOR_MODE="shadow", VECTOR_SECONDARY="pgvector")
        for question in QUESTIONS:
            self._do(f"amprenta-vectors sandbox ask {shlex.quote(question)}")
        self._do("amprenta-vectors compare report")
        self._note("shadowed", f"{len(QUESTIONS)} questions asked of both")
        self._export(VECTOR_MODE="", VECTOR_SECONDARY="")

    def _ask_both(self) -> None:
        self._title("5. Switch: the same question to both backends")
        question = shlex.quote(QUESTION)
        answers = []
        for backend in ("pinecone", "pgvector"):
            self._export(VECTOR_BACKEND=backend)
            answers.append(self._do(f"amprenta-vectors sandbox ask {question}")[1])
        if _keys(answers[0]) != _keys(answers[1]) or not _keys(answers[0]):
            raise AmprentaError("the two backends gave different hits")
        self._note("switched", f"{len(_keys(answers[0]))} hits, the same from both backends")

    def _go_back_and_forth(self) -> None:
        self._title("6. Go back, and forth again, with the vectors still there")
        self._do(f"{self._alembic} downgrade base")
        self._do(f"{self._alembic} upgrade head")
        _, output = self._do("amprenta-vectors verify")
        if "bit for bit" not in output:
            raise AmprentaError("the vectors did not survive the downgrade")
        self._note("rolled back", "downgrade base, upgrade head: every vector still equal, bit for bit")

    def _summarise(self, seconds: float) -> None:
        self._title(f"Done in {seconds:.0f} s")
        for name, value in self._results:
            click.echo(f"  {name:>11}  {value}")
        click.echo("\nTry it yourself: amprenta-vectors sandbox start")

    def _do(self, command: str, *, show: bool = True) -> tuple[float, str]:
        """Run one command to its end; returns its seconds and what it printed. A failure ends the demo."""
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
        if process.wait() != 0:
            raise AmprentaError(f"{command}: exit code {process.returncode}")
        return time.monotonic() - began, "".join(lines)

    def _begin(self, command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        self._say(command)
        return subprocess.Popen(shlex.split(command), env=self._environment, text=True, **options)  # noqa: S603

    def _export(self, **variables: str) -> None:
        self._environment |= variables
        click.secho("$ export " + " ".join(f"{name}={value}" for name, value in variables.items()), bold=True)

    def _wait_until_written(self, share: float, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and self._written() < share * self._count:
            time.sleep(0.05)
        if process.poll() is not None:
            raise AmprentaError("the backfill ended before it could be interrupted")

    def _written(self) -> int:
        with self._engine.connect() as connection:
            statement = sa.text("SELECT coalesce(sum(rows_written), 0) FROM migration_progress")
            return int(connection.execute(statement).scalar_one())

    def _set_latency(self, seconds: float) -> None:
        host = self._environment["PINECONE_CONTROLLER_HOST"]
        body = json.dumps({"*": {"latency": seconds}}).encode()
        request = urllib.request.Request(f"{host}/_sandbox/faults", body, method="PUT")  # noqa: S310 - loopback
        urllib.request.urlopen(request).close()  # noqa: S310 - loopback

    def _title(self, text: str) -> None:
        click.secho(f"\n{text}\n", fg="cyan", bold=True)

    def _say(self, command: str) -> None:
        sys.stdout.flush()
        click.secho(f"$ {command}", bold=True)

    def _note(self, name: str, value: str) -> None:
        self._results.append((name, value))


def _keys(answer: str) -> list[str]:
    return [line.split()[1] for line in answer.splitlines() if re.match(r"\s*[\d.]+ ", line)]
