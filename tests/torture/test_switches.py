"""Processes that search by text while queries are switched between two models, again and again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from embedded_rows import LARGE, SMALL
from forms import FORM

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.moves.models.switching import IN_FORCE_SECONDS, switch_model
from amprenta_vectors.moves.models.tables import open_model_table
from amprenta_vectors.stores.factory import open_pgvector_store

PROCESSES = 8
QUESTIONS = ("how is an exception handled in a try statement", "what a generator yields", "the scope of a name")
PAUSE_SECONDS = 0.05
WAIT_SECONDS = 120.0
ASKING = """
import json, sys, time
from amprenta_vectors.config import Settings
from amprenta_vectors.stores.factory import open_pgvector_store
expected, pause = json.loads(sys.argv[1]), float(sys.argv[2])
store = open_pgvector_store(Settings.load())
while True:
    for question, by_model in expected.items():
        began = time.time()
        try:
            found = [[hit.key, hit.score] for hit in store.search(question, top_k=10)]
            model = next((name for name, hits in by_model.items() if hits == found), "mixed")
        except Exception as error:
            model = f"failed: {error}"
        print(json.dumps([began, model]), flush=True)
        time.sleep(pause)
"""


@pytest.fixture
def url(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table whose rows both models have embedded."""
    monkeypatch.setenv("DATABASE_URL", embedded_url)
    for command in (
        ("add", LARGE, "--provider", "wordllama", "--column", "embedding"),
        ("add", SMALL, "--provider", "wordllama", "--dimension", "128"),
        ("migrate", "--to", SMALL),
    ):
        done = CliRunner().invoke(main, ["models", *command])
        assert done.exit_code == 0, done.output
    return embedded_url


def test_switches_under_querying_processes_fail_none_and_mix_none(
    url: str, processes: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    switches = 100 if FORM.name == "long" else 15
    settings = Settings.load(database_url=url)
    store = open_pgvector_store(settings)
    expected = {
        question: {
            name: [[hit.key, hit.score] for hit in store.search(question, top_k=10, model=name)]
            for name in (LARGE, SMALL)
        }
        for question in QUESTIONS
    }
    store.close()
    logs = [tmp_path / f"{number}.jsonl" for number in range(PROCESSES)]
    for path in logs:
        command = [sys.executable, "-c", ASKING, json.dumps(expected), str(PAUSE_SECONDS)]
        with path.open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, text=True))
    deadline = time.monotonic() + WAIT_SECONDS
    while not all(path.stat().st_size for path in logs):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    moments = []
    for number in range(switches):
        table, name = open_model_table(settings), (SMALL, LARGE)[number % 2]
        done = switch_model(settings, table, table.named(name))
        table.engine.dispose()
        assert done.late == []
        assert len(done.in_force) == PROCESSES
        moments.append((_switched_at(url, name), name))
    time.sleep(IN_FORCE_SECONDS)
    for process in processes:
        process.kill()
        process.wait()
    # The last line of a process that was killed may be cut short.
    lines = [line for path in logs for line in path.read_text().splitlines() if line.endswith("]")]
    answers = [tuple(json.loads(line)) for line in lines]
    assert {model for _, model in answers} == {LARGE, SMALL}
    for (at, name), following in zip(moments, [*moments[1:], (float("inf"), "")], strict=True):
        late = {model for began, model in answers if at + IN_FORCE_SECONDS <= began < following[0]}
        assert late <= {name}


def _switched_at(url: str, name: str) -> float:
    engine = create_engine(Settings.load(database_url=url))
    statement = sa.text("""
        SELECT extract(epoch FROM switched_at) FROM model_column JOIN embedding_models ON id = model_id
        WHERE model_name = :name
    """)
    with engine.connect() as connection:
        moment = float(connection.execute(statement, {"name": name}).scalar_one())
    engine.dispose()
    return moment
