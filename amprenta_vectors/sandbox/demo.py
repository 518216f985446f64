"""The whole journey from Pinecone on this machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import click

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox import control
from amprenta_vectors.sandbox.stage import Stage, keys_of

QUESTION = "How do I parse command line arguments with subcommands?"
QUESTIONS = (QUESTION, "read a file line by line", "run code in another thread and wait for its result")
NOTE = "Where the release keys are kept: in the safe behind the harbour office, and nowhere else."
LATENCY_SECONDS = 0.02
PAUSED_LATENCY_SECONDS = 0.4
"""How late the demo's Pinecone answers; `LATENCY_SECONDS` is about a cloud region's, this one leaves time to pause."""
KILL_AT, PAUSE_AT = 0.3, 0.5
"""The shares of the rows that are written when the run is killed, and when it is paused."""
BATCH_SIZE, BATCHES = 500, 20
"""The most keys a batch, and about the fewest batches."""


class Demo(Stage):
    """Start, upgrade, backfill with a kill and a pause in it, verify, compare, switch, go back and forth; stop."""

    def _acts(self) -> list[Callable[[], None]]:
        return [
            self._sandbox,
            self._expand,
            self._backfill_with_a_kill_and_a_pause,
            self._compare,
            self._shadow,
            self._ask_both,
            self._write_to_both,
            self._go_back_and_forth,
        ]

    @property
    def _backfill(self) -> str:
        return self._script("backfill.py", "amprenta-vectors backfill")

    def _sandbox(self) -> None:
        self._title("A Pinecone index full of real vectors, and an application's PostgreSQL")
        self._start_sandbox(f" --rows {self._rows}" if self._rows else "")
        self._set_faults({"*": {"latency": LATENCY_SECONDS}})
        self._count = control.start(self._folder, self._rows)
        self._note("source", f"{self._count:,} docstrings and functions of Python's standard library, 256 dimensions")

    def _expand(self) -> None:
        self._title("1. Expand: the schema, safe on a live database")
        self._do("amprenta-vectors sources inspect")
        self._do(self._alembic("upgrade head"))
        self._do(f"{self._backfill} --dry-run --keys-from source")

    def _backfill_with_a_kill_and_a_pause(self) -> None:
        self._title("2. Backfill, killed with SIGKILL partway, resumed, and paused from another terminal")
        size = max(1, min(BATCH_SIZE, self._count // BATCHES))
        process = self._begin(f"{self._backfill} --keys-from source --batch-size {size}")
        killed_at = self._kill_at(int(KILL_AT * self._count), process)
        self._note("killed", f"SIGKILL after {killed_at:,} of {self._count:,} rows")
        self._do("amprenta-vectors status")
        # In batches so small, and so slow, that something is left of the run when the pause is due.
        self._set_faults({"fetch": {"latency": PAUSED_LATENCY_SECONDS}})
        began = time.monotonic()
        process = self._begin(f"{self._backfill} --resume --batch-size {size}", stdout=subprocess.PIPE)
        self._wait_until_written(PAUSE_AT * self._count, process)
        # And nothing more is done of it by the time at which the next command has started.
        self._set_faults({"fetch": {"status": 503}})
        self._do("amprenta-vectors pause")
        self._note("paused", f"after {self._written():,} rows, from another process, and resumed")
        self._set_faults({"*": {"latency": LATENCY_SECONDS}})
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
        benchmark = self._script("benchmark_vector_stores.py", "amprenta-vectors benchmark")
        self._set_faults({})
        _, output = self._do(f"{benchmark} --queries 100 --top-k 10 --use-db-vectors --json", show=False)
        report = json.loads(output)
        self._do(f"{benchmark} --queries 100 --top-k 10 --use-db-vectors")
        recalls = ", ".join(f"{store['name']} {store['recall']:.3f}" for store in report["stores"])
        self._note("compared", f"recall@10 {recalls}; overlap {report['overlap']:.3f}")

    def _shadow(self) -> None:
        self._title("4. Shadow: Pinecone answers, pgvector is asked beside it and compared")
        self._export(VECTOR_MODE="shadow", VECTOR_SECONDARY="pgvector")
        for question in QUESTIONS:
            self._do(f"amprenta-vectors sandbox ask {shlex.quote(question)}")
        self._do("amprenta-vectors compare report --output reports")
        self._note("shadowed", f"{len(QUESTIONS)} questions asked of both: reports/shadow.html")
        self._export(VECTOR_MODE="", VECTOR_SECONDARY="")

    def _ask_both(self) -> None:
        self._title("5. Switch: the same question to both backends")
        question = shlex.quote(QUESTION)
        answers = []
        for backend in ("pinecone", "pgvector"):
            self._export(VECTOR_BACKEND=backend)
            answers.append(self._do(f"amprenta-vectors sandbox ask {question}")[1])
        if keys_of(answers[0]) != keys_of(answers[1]) or not keys_of(answers[0]):
            raise AmprentaError("the two backends gave different hits")
        self._note("switched", f"{len(keys_of(answers[0]))} hits, the same from both backends")

    def _write_to_both(self) -> None:
        self._title("6. Write to both, while Pinecone is away; then let Pinecone answer again")
        self._export(VECTOR_MODE="dual", VECTOR_SECONDARY="pinecone")
        self._set_faults({"upsert": {"status": 503}})
        click.secho("    Pinecone refuses every write from here\n", fg="yellow")
        self._do(f"amprenta-vectors sandbox add {shlex.quote(NOTE)}")
        self._do("amprenta-vectors outbox status", expect=1)
        self._set_faults({})
        click.secho("\n    Pinecone is back\n", fg="yellow")
        self._do("amprenta-vectors outbox drain")
        self._export(VECTOR_BACKEND="pinecone", VECTOR_SECONDARY="pgvector")
        _, answer = self._do("amprenta-vectors sandbox ask 'where are the release keys kept?' --top-k 1")
        if NOTE[:30] not in answer:
            raise AmprentaError("Pinecone did not get what was written while it was away")
        self._note("written", "while Pinecone was away, and brought to it after: the way back loses no write")
        self._export(VECTOR_MODE="", VECTOR_SECONDARY="")

    def _go_back_and_forth(self) -> None:
        self._title("7. Go back, and forth again, with the vectors still there")
        self._do(self._alembic("downgrade base"))
        self._do(self._alembic("upgrade head"))
        _, output = self._do("amprenta-vectors verify")
        if "bit for bit" not in output:
            raise AmprentaError("the vectors did not survive the downgrade")
        self._note("rolled back", "downgrade base, upgrade head: every vector still equal, bit for bit")

    def _set_faults(self, faults: dict[str, dict[str, Any]]) -> None:
        """Set what goes wrong at the Pinecone emulator from now on, by route; earlier faults are over."""
        url = f"{self._environment['PINECONE_CONTROLLER_HOST']}/_sandbox/faults"
        body = json.dumps(faults).encode()
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()  # noqa: S310 - loopback
        request = urllib.request.Request(url, body, method="PUT")  # noqa: S310 - loopback
        urllib.request.urlopen(request).close()  # noqa: S310 - loopback

    def _summarise(self, seconds: float) -> None:
        super()._summarise(seconds)
        click.echo("\nTry it yourself: amprenta-vectors sandbox start")
