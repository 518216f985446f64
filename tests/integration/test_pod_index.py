"""A pod index cannot list its ids: with the table's own keys everything works, and the other way is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from backfill_tools import add_rows, execute, expected, stored, to_ids, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator


@pytest.fixture(autouse=True)
def _reports_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pod(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    pinecone: PineconeEmulator = emulator(kind="pod")
    pinecone.load("", to_ids(300), to_vectors(300))
    return pinecone


def run(pod: PineconeEmulator, url: str, *arguments: str) -> Result:
    environment = {
        "DATABASE_URL": url,
        "PINECONE_API_KEY": "test-key",
        "PINECONE_INDEX_NAME": "test-index",
        "PINECONE_CONTROLLER_HOST": pod.host,
        "PINECONE_GRPC_HOST": pod.grpc_host,
        "EMBEDDING_MODEL": "some-model",
    }
    return CliRunner().invoke(main, list(arguments), env=environment)


def test_the_rows_that_are_there_are_filled_and_compared(
    pod: PineconeEmulator, upgraded_url: str, engine: sa.Engine
) -> None:
    add_rows(engine, [*to_ids(200), "not in pinecone"])
    result = run(pod, upgraded_url, "backfill", "--resume")
    assert result.exit_code == 3, result.output
    assert "200 rows written" in result.output
    assert "verified 200 vectors" in result.output
    assert stored(engine) == expected(to_ids(200), to_vectors(300)[:200])
    assert pod.calls["list"] == 0


def test_the_comparison_finds_rows_that_differ_or_lack_their_vector(
    pod: PineconeEmulator, upgraded_url: str, engine: sa.Engine
) -> None:
    add_rows(engine, to_ids(5))
    run(pod, upgraded_url, "backfill", "--resume", "--no-verify")
    execute(engine, "UPDATE rag_chunks SET embedding = array_fill(1, ARRAY[8])::vector WHERE chunk_id = 'chunk-000001'")
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = 'chunk-000002'")
    result = run(pod, upgraded_url, "verify")
    assert result.exit_code == 1
    assert "cannot list its ids" in result.output
    assert "different: 'chunk-000001'" in result.output
    assert "missing: 'chunk-000002'" in result.output


def test_keys_from_the_source_are_refused_before_anything_begins(
    pod: PineconeEmulator, upgraded_url: str, engine: sa.Engine
) -> None:
    result = run(pod, upgraded_url, "backfill", "--keys-from", "source")
    assert result.exit_code == 2
    assert "pod index 'test-index' cannot list its ids" in result.output
    assert "--keys-from table" in result.output
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL")[0][0] == 0
