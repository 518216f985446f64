"""What the tests share that embed texts by a service which limits, fails and bills."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from backfill_tools import LEASE_SECONDS, POLL_SECONDS, end_process, execute, fork_process
from forked import ForkedProcess
from waiting import until

from amprenta_vectors.backfill.progress.charges import to_money
from amprenta_vectors.batch import Vectors
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import read_corpus
from amprenta_vectors.sandbox.embedding_servers import Answer, OpenAIServer, embed_as, openai_refusal

DIMENSION = 64
PRICE = 20.0
"""Of a million tokens."""
WORKERS = 2
DECLARED = f"""
[tables.pages]
table = "pages"
key = "id"
model = "made_by"
dimension = {DIMENSION}
source = "rows"
text_columns = ["body"]
"""


class HardService(OpenAIServer):
    """A service that answers some requests, by their number, with 429, with 500 or by hanging up, and bills the others.

    A process is told by its address, ``/NAME/v1``. Answers to ``held`` are billed and kept back. One that does
    not fail by itself answers as ``faults_at`` says, by the number of a request.
    """

    def __init__(self, *, fails: bool = True) -> None:
        super().__init__("a-key")
        self.held: str | None = None
        self.kept_back: list[Sequence[str]] = []
        self.refused: dict[int, int] = {}
        self.faults_at: dict[int, Answer] = {}
        self._fails = fails
        self._numbers = count(1)
        self._free = threading.Event()

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        name, _, rest = path.lstrip("/").partition("/")
        with self._lock:
            number = next(self._numbers)
            fault = self._fault(number) if self._fails else self.faults_at.get(number)
            if fault is not None:
                self.refused[fault.status] = self.refused.get(fault.status, 0) + 1
                return fault
        answer = super().answer(f"/{rest}", headers, body)
        if name == self.held:
            with self._lock:
                self.kept_back.append(body["input"])
            self._free.wait()
        return answer

    def free(self) -> None:
        """Answer what was kept back, also to a process that is gone."""
        self.held = None
        self._free.set()

    @staticmethod
    def _fault(number: int) -> Answer | None:
        if number % 9 == 4:
            refusal = openai_refusal(429, "rate_limit_exceeded")
            return Answer(refusal.status, refusal.body, {"retry-after-ms": "200"})
        if number % 29 == 5:
            return openai_refusal(500, "server_error")
        return Answer(0) if number % 31 == 6 else None

    @property
    def cost(self) -> float:
        """What was billed, in money."""
        return self.tokens / 1_000_000 * PRICE


def fill_pages(engine: sa.Engine, rows: int) -> list[str]:
    """Fill a table with real texts; of ten rows two have the text of a row far away. Return the texts by their row."""
    chunks = [chunk.text[:300] for chunk in read_corpus(min(rows, 20_000)) if any(map(str.isalnum, chunk.text[:300]))]
    numbered = (text if turn == 0 else f"{text}\n{turn}" for turn in count() for text in chunks)
    different = list(dict.fromkeys(islice(numbered, rows)))
    texts = [
        different[(7 * number) % (len(different) // 2)] if number % 5 == 4 else different[number % len(different)]
        for number in range(rows)
    ]
    execute(
        engine,
        f"CREATE TABLE pages (id integer PRIMARY KEY, body text, embedding vector({DIMENSION}), made_by text)",
    )
    execute(
        engine,
        "INSERT INTO pages SELECT place, body FROM unnest(CAST(:texts AS text[])) WITH ORDINALITY AS t(body, place)",
        texts=texts,
    )
    return [text.strip() for text in texts]


def variables_for(engine: sa.Engine, service: OpenAIServer, folder: Path, **more: str) -> dict[str, str]:
    """The environment of one who embeds the pages, without an address of the service."""
    config = folder / "amprenta.toml"
    config.write_text(DECLARED)
    names = ("PATH", "HOME", "LANG", "TMPDIR", "AMPRENTA_REPORT")
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "AMPRENTA_CONFIG": str(config),
        "AMPRENTA_TABLE": "pages",
        "AMPRENTA_EMBEDDER": "openai",
        "OPENAI_API_KEY": "a-key",
        "OPENAI_BASE_URL": f"{service.host}/one/v1",
        "VECTOR_DIMENSION": str(DIMENSION),
        "AMPRENTA_WORKERS": str(WORKERS),
        "AMPRENTA_BATCH_SECONDS": "off",
        "AMPRENTA_LEASE_SECONDS": str(LEASE_SECONDS),
        "AMPRENTA_POLL_SECONDS": str(POLL_SECONDS),
        "AMPRENTA_TOKEN_PRICE": str(PRICE),
        **more,
    }


def start(variables: Mapping[str, str], service: OpenAIServer, name: str, *arguments: str) -> ForkedProcess:
    """Start a process that has an address of its own of the service."""
    address = {"OPENAI_BASE_URL": f"{service.host}/{name}/v1"}
    return fork_process({**variables, **address}, "--resume", "--no-verify", *arguments)


def end_all(processes: Iterable[ForkedProcess]) -> None:
    """End them, however they are."""
    for process in processes:
        end_process(process)


def embed_with_a_limit_and_a_kill(engine: sa.Engine, folder: Path, rows: int, *, batch_size: int) -> None:
    """Embed so many texts by four processes below a limit that does for half of them, kill one, and resume.

    Asserts that neither limit is passed, that all texts are embedded in the end, and that the texts that were embedded
    twice are those whose answers the killed process waited for.
    """
    texts = fill_pages(engine, rows)
    in_all = sum(WordLlamaEmbedder().count_tokens(sorted(set(texts))))
    limit = in_all / 2 / 1_000_000 * PRICE
    with HardService() as service:
        service.held = "three"
        variables = variables_for(
            engine, service, folder, AMPRENTA_MAX_COST=str(limit), AMPRENTA_BATCH_SIZE=str(batch_size)
        )
        killed, others = start(variables, service, "three"), {}
        try:
            until(lambda: len(service.kept_back) == WORKERS)
            others = {name: start(variables, service, name) for name in ("one", "two", "four")}
            lost = [text for asked in service.kept_back for text in asked]
            until(lambda: len(service.billed) > 3 * len(lost))
            killed.kill()
            killed.wait()
            service.free()
            ended = {name: process.communicate(timeout=MOST_SECONDS)[0] for name, process in others.items()}
        finally:
            end_all([killed, *others.values()])
        for name, output in ended.items():
            assert others[name].returncode == 1, output
            assert f"of {to_money(limit)}), and the next request may cost" in output
            assert "--max-cost N, then amprenta-vectors backfill --resume" in output
        assert service.cost <= cost_counted(engine) <= limit
        # None of them stops while a text is certain to fit.
        assert cost_counted(engine) >= 0.95 * limit
        assert 0 < len(embedded(engine)) < rows

        limit *= 4
        processes = {
            name: start(variables, service, name, "--max-cost", str(limit)) for name in ("one", "two", "three", "four")
        }
        try:
            ended = {name: process.communicate(timeout=MOST_SECONDS)[0] for name, process in processes.items()}
        finally:
            end_all(processes.values())
        assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(processes, 0), ended
        assert service.cost <= cost_counted(engine) <= limit
        assert service.refused.keys() == {0, 429, 500}

        found = embedded(engine)
        assert sorted(found) == list(range(1, rows + 1))
        wanted = dict(zip(different := sorted(set(texts)), expected(different), strict=True))
        for place, text in enumerate(texts, 1):
            assert np.allclose(found[place], wanted[text], atol=1e-5), place
        assert service.billed.keys() == set(texts)
        assert {text: times for text, times in service.billed.items() if times > 1} == dict.fromkeys(lost, 2)
        assert execute(engine, "SELECT count(*) FROM migration_text") == [(0,)]


MOST_SECONDS = 1800


def cost_counted(engine: sa.Engine) -> float:
    """What the run counts as spent, in money."""
    tokens: int = execute(engine, "SELECT read_units FROM migration_run WHERE source_kind = 'rows'")[0][0]
    return tokens / 1_000_000 * PRICE


def embedded(engine: sa.Engine) -> dict[int, Vectors]:
    """The vectors of the pages that have one."""
    rows = execute(engine, "SELECT id, vector_send(embedding) FROM pages WHERE embedding IS NOT NULL")
    return {number: np.frombuffer(bytes(sent)[4:], ">f4").astype(np.float32) for number, sent in rows}


def expected(texts: Sequence[str]) -> Vectors:
    """The vectors that the service gives."""
    vectors = embed_as(texts, DIMENSION)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
