"""The comparison of stores tells lost rows from ties, and the command prints it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.comparison import compare_stores, perturbed
from amprenta_vectors.stores.factory import open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.protocol import Record

API_KEY = "test-key"
DIMENSION = 8
SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_vector_stores.py"


@pytest.fixture
def variables(emulator: Callable[..., Any], upgraded_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": upgraded_url,
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": "test-index",
        "PINECONE_CONTROLLER_HOST": emulator().host,
    }


@pytest.fixture
def settings(variables: dict[str, str]) -> Settings:
    return Settings.load(**{name.lower(): value for name, value in variables.items()})


def records(rows: int = 400) -> list[Record]:
    """Every vector four times, as near-duplicates that no order tells apart."""
    vectors = np.random.default_rng(5).normal(size=(rows // 4, DIMENSION)).astype(np.float32)
    return [Record(f"k{i}", vectors[i // 4]) for i in range(rows)]


def test_rows_as_near_as_the_last_count_as_found(settings: Settings) -> None:
    pgvector, pinecone = open_pgvector_store(settings), open_pinecone_store(settings)
    pgvector.upsert(records())
    pinecone.upsert(records()[::-1])
    queries = perturbed(pgvector.sample(30), seed=1)
    report = compare_stores({"pinecone": pinecone, "pgvector": pgvector}, pgvector, queries, top_k=10)
    assert [store.recall for store in report.stores] == [1.0, 1.0]
    assert report.overlap is not None
    assert report.overlap < 1
    assert [store.hits for store in report.stores] == [300, 300]


def test_rows_that_a_store_lacks_lower_its_recall_and_the_overlap(settings: Settings) -> None:
    pgvector, pinecone = open_pgvector_store(settings), open_pinecone_store(settings)
    pgvector.upsert(records())
    pinecone.upsert(records()[::2])
    report = compare_stores({"pinecone": pinecone, "pgvector": pgvector}, pgvector, pgvector.sample(50), top_k=8)
    lacking, complete = report.stores
    assert complete.recall == 1
    assert lacking.recall == pytest.approx(0.5, abs=0.05)
    assert report.overlap == pytest.approx(0.5, abs=0.05)


def test_latencies_are_those_of_the_clock(settings: Settings) -> None:
    pgvector = open_pgvector_store(settings)
    pgvector.upsert(records())
    ticks = itertools.count()
    report = compare_stores({"pgvector": pgvector}, pgvector, pgvector.sample(20), top_k=3, clock=lambda: next(ticks))
    (store,) = report.stores
    assert (store.p50_ms, store.p95_ms, store.p99_ms, store.queries_per_second) == (1000, 1000, 1000, 1)


def test_an_empty_table_is_an_error_that_says_what_to_do(settings: Settings) -> None:
    pgvector = open_pgvector_store(settings)
    with pytest.raises(ConfigError, match="run the backfill"):
        compare_stores({"pgvector": pgvector}, pgvector, pgvector.sample(10), top_k=3)


def test_perturbed_vectors_are_near_and_repeatable() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 256)).astype(np.float32) * 3
    moved = perturbed(vectors, seed=4)
    distances = np.linalg.norm(moved - vectors, axis=1) / np.linalg.norm(vectors, axis=1)
    assert distances == pytest.approx(np.full(50, 0.1), rel=1e-4)
    assert np.array_equal(moved, perturbed(vectors, seed=4))


@pytest.mark.parametrize("options", [["--use-db-vectors"], ["--seed", "3"]])
def test_the_command_prints_a_table_or_json(settings: Settings, variables: dict[str, str], options: list[str]) -> None:
    scoped = Settings.load(**{name.lower(): value for name, value in variables.items()}, namespace="other")
    for store in (open_pgvector_store(scoped), open_pinecone_store(scoped)):
        store.upsert(records())
        store.close()
    command = ["--queries", "20", "--top-k", "5", "--namespace", "other", *options]

    def run(*more: str) -> Any:
        return CliRunner().invoke(main, ["benchmark", *command, *more], env=variables)

    title, _, header, pinecone, pgvector = run().stdout.splitlines()
    assert title.startswith("20 queries, overlap@5 ")
    assert header.split() == ["store", "recall@5", "p50", "ms", "p95", "ms", "p99", "ms", "queries/s", "hits"]
    assert pinecone.split()[:2] == ["pinecone", "1.000"]
    assert pgvector.split()[:2] == ["pgvector", "1.000"]
    assert len({len(line) for line in (header, pinecone, pgvector)}) == 1
    refused = run("--namespace", "empty")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 2)
    assert "nothing to compare" in refused.stderr
    report = json.loads(run("--json").stdout)
    assert [store["name"] for store in report["stores"]] == ["pinecone", "pgvector"]
    assert (report["queries"], report["top_k"]) == (20, 5)


def test_the_script_is_the_command(variables: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "--queries", "20"]
    refused = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "nothing to compare" in refused.stderr
