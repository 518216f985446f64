"""The change of an embedding model with the service up, on this machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amprenta_vectors.embedders.wordllama import MODELS
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox.demo import QUESTION
from amprenta_vectors.sandbox.stage import Stage

OLD, NEW = MODELS[256].name, MODELS[128].name
ROWS = 6000
"""The chunks, unless a person asks for another number."""
KILL_AT = 0.3
BATCH_SIZE = 200
WAIT_SECONDS = 30.0
_UNIQUE = "ALTER TABLE chunk_embeddings DROP CONSTRAINT chunk_embeddings_chunk_id_key"


class ModelsDemo(Stage):
    """Adopt, add a model, a subset, compare, migrate with a kill, switch, ask over HTTP, switch back, retire."""

    _client: subprocess.Popen[str] | None = None
    _server: subprocess.Popen[str] | None = None

    def _close(self) -> None:
        for process in (self._client, self._server):
            if process is not None:
                process.kill()
                process.wait()
        super()._close()

    def _acts(self) -> list[Callable[[], None]]:
        return [
            self._old_system,
            self._expand,
            self._add,
            self._subset,
            self._migrate_with_a_kill,
            self._switch,
            self._ask_over_http,
            self._go_back,
            self._end,
        ]

    def _old_system(self) -> None:
        self._title("A retrieval system as it is today: embedding vector(256), one model, asked all the time")
        self._start_sandbox(" --rows 1")
        self._judged = self._folder.resolve() / "judged.jsonl"
        self._do(
            f"python -m amprenta_vectors.sandbox.legacy_models --rows {self._rows or ROWS} "
            f"--judged {shlex.quote(str(self._judged))}"
        )
        self._output = self._folder.resolve() / "client.json"
        self._client = self._begin(
            f"python -m amprenta_vectors.sandbox.models_client --output {shlex.quote(str(self._output))}"
        )
        self._count = self._number("SELECT count(*) FROM chunks")
        self._note("source", f"{self._count:,} chunks, each with one embedding of {OLD}, in use by asyncpg")

    def _expand(self) -> None:
        self._title("1. Expand: nothing is renamed; the model of the old column is registered")
        self._export(EMBEDDING_MODEL=OLD, VECTOR_DIMENSION="", AMPRENTA_TABLE="chunk_embeddings")
        setup = self._script("setup_migrations.py", "amprenta-vectors setup")
        self._do(f"{setup} init")
        self._do(f"{setup} run")
        self._do(f"{setup} status")
        self._export(EMBEDDING_MODEL="")

    def _add(self) -> None:
        self._title("2. Add a second model; the old application's unique index goes, as its owner says")
        self._do(f"amprenta-vectors models add {OLD} --provider wordllama --column embedding")
        self._do(f"amprenta-vectors models add {NEW} --provider wordllama --dimension 128")
        self._do(f"amprenta-vectors models migrate --to {NEW} --subset 100", expect=2)
        with self._engine.begin() as connection:
            self._say(f'psql -c "{_UNIQUE}"')
            connection.exec_driver_sql(_UNIQUE)

    def _subset(self) -> None:
        self._title("3. A small subset first, compared on queries that were judged")
        self._do(f"amprenta-vectors models migrate --to {NEW} --subset {max(100, self._count // 10)}")
        self._do(f"amprenta-vectors models compare --from {OLD} --to {NEW} --judged {shlex.quote(str(self._judged))}")

    def _migrate_with_a_kill(self) -> None:
        self._title("4. Migrate, killed with SIGKILL partway, and resumed; then the figures to decide by")
        command = f"amprenta-vectors models migrate --to {NEW} --batch-size {BATCH_SIZE} --workers 1"
        before = self._written()
        process = self._begin(command)
        killed_at = self._kill_at(before + int(KILL_AT * self._count), process)
        self._note("killed", f"SIGKILL after {killed_at:,} of {self._count:,} chunks")
        self._do(f"amprenta-vectors models switch {NEW}", expect=2)
        self._do(command)
        compare = f"amprenta-vectors models compare --from {OLD} --to {NEW} --judged {shlex.quote(str(self._judged))}"
        _, output = self._do(f"{compare} --json", show=False)
        self._do(f"{compare} --require recall=0.95")
        before_, after = json.loads(output)["models"]
        self._note("compared", f"nDCG@10 {before_['ndcg']:.3f} by {OLD}, {after['ndcg']:.3f} by {NEW}")

    def _switch(self) -> None:
        self._title("5. Switch: in force in every process within two seconds")
        seconds, _ = self._do(f"amprenta-vectors models switch {NEW}")
        self._note("switched", f"to {NEW}, said and seen in {seconds:.1f} s")

    def _ask_over_http(self) -> None:
        self._title("6. Ask over HTTP, by one model and by both")
        self._server = self._begin("amprenta-vectors serve --port 8765")
        url = "http://127.0.0.1:8765"
        deadline = time.monotonic() + WAIT_SECONDS
        while not _is_ready(url):
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise AmprentaError("the service does not answer")
            time.sleep(0.1)
        for asked in ({}, {"models": [OLD, NEW], "aggregation": "intersection"}):
            answer = _post(f"{url}/api/v1/search", {"query": QUESTION, "top_k": 3, **asked})
            for each in answer["results"]:
                self._show(f"  {each['score']:.4f}  {each['title']}")
            if len(answer["results"]) != 3:
                raise AmprentaError("the service found less than it was asked for")
        self._server.terminate()
        if self._server.wait() not in (0, 130):
            raise AmprentaError("the service did not stop as it should")
        self._note("over HTTP", "by the model that is searched, and by both, their ranks fused")

    def _go_back(self) -> None:
        self._title("7. Switch back, as quickly; then retire the second model")
        self._do(f"amprenta-vectors models switch {OLD}")
        time.sleep(1)
        self._do(f"amprenta-vectors models retire {NEW}")
        self._do("amprenta-vectors models list")
        kept = self._number("SELECT count(embedding_128_retired) FROM chunk_embeddings")
        self._note("went back", f"{kept:,} embeddings of {NEW} are kept under a retired name")

    def _end(self) -> None:
        if self._client is None:
            raise AmprentaError("no application was started")
        self._client.terminate()
        self._client.wait()
        counts = json.loads(Path(self._output).read_text())
        wrong = {name: counts.get(name, 0) for name in ("failed", "empty", "mixed")}
        if any(wrong.values()) or not (counts.get("old") and counts.get(OLD) and counts.get(NEW)):
            raise AmprentaError(f"the application's answers: {counts}")
        self._note("application", f"{sum(counts.values()):,} answers all the while: none failed, empty or mixed")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=1) as answer:  # noqa: S310 - loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
        found: dict[str, Any] = json.load(answer)
    return found
