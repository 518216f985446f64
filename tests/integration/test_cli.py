"""The commands as their user meets them: messages, exit codes, and nothing changed where nothing should be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

DIMENSION = 8
API_KEY = "test-key"
INDEX_NAME = "test-index"


def run(environment: Mapping[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=dict(environment))


@pytest.fixture
def index(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    started = emulator(dimension=DIMENSION)
    rng = np.random.default_rng(5)
    for namespace, rows in (("", 30), ("other", 12)):
        vectors = rng.standard_normal((rows, DIMENSION), dtype=np.float32)
        ids = [f"{namespace}-{number}" for number in range(rows)]
        started.load(namespace, ids, vectors, [{"text": f"text of {key}", "page": n} for n, key in enumerate(ids)])
    return started


@pytest.fixture
def environment(upgraded_url: str, index: PineconeEmulator) -> dict[str, str]:
    return {
        "DATABASE_URL": upgraded_url,
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": index.host,
        "PINECONE_GRPC_HOST": index.grpc_host,
        "AMPRENTA_RETRY_SECONDS": "2",
    }


def snapshot(engine: sa.Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        tables = ("rag_chunks", "migration_run", "migration_progress", "migration_index")
        return [tuple(row) for name in tables for row in connection.execute(sa.text(f"SELECT * FROM {name}"))]


def test_backfill_from_the_source_fills_verifies_and_exits_0(environment: dict[str, str]) -> None:
    result = run(environment, "backfill", "--keys-from", "source")
    assert result.exit_code == 0, result.output
    assert "30 rows written" in result.output
    assert "every vector is equal, bit for bit" in result.output


def test_all_namespaces_become_one_run_each(environment: dict[str, str]) -> None:
    result = run(environment, "backfill", "--keys-from", "source", "--all-namespaces")
    assert result.exit_code == 0, result.output
    status = run(environment, "status").output
    assert "run 2 finished" in status
    assert "namespace=other" in status
    assert "12 written" in status


def test_an_empty_table_and_a_full_index_name_keys_from_source(environment: dict[str, str]) -> None:
    result = run(environment, "backfill", "--no-verify")
    assert result.exit_code == 0
    assert "--keys-from source" in result.output


def test_force_replaces_what_is_there_and_writes_the_hash_of_all(
    environment: dict[str, str], engine: sa.Engine
) -> None:
    run(environment, "backfill", "--keys-from", "source", "--no-verify")
    change = (
        "UPDATE rag_chunks SET embedding_hash = NULL; "
        "UPDATE rag_chunks SET embedding = array_fill(0.5::real, ARRAY[8])::vector WHERE chunk_id = '-2'"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(change))
    left = run(environment, "backfill", "--keys-from", "source", "--no-verify")
    assert "0 rows written" in left.output
    replaced = run(environment, "backfill", "--force")
    assert replaced.exit_code == 0, replaced.output
    assert "30 rows written" in replaced.output
    assert "every vector is equal, bit for bit" in replaced.output
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(embedding_hash) FROM rag_chunks")) == 30


def test_dry_run_counts_and_changes_nothing(environment: dict[str, str], engine: sa.Engine) -> None:
    before = snapshot(engine)
    result = run(environment, "backfill", "--dry-run", "--keys-from", "source")
    assert result.exit_code == 0, result.output
    assert "30 vectors" in result.output
    assert "text: metadata field 'text' becomes content" in result.output
    assert "pg_dump --format=custom" in result.output
    assert "Nothing was changed" in result.output
    assert snapshot(engine) == before


def test_offline_dry_run_connects_to_nothing(environment: dict[str, str]) -> None:
    nowhere = environment | {
        "DATABASE_URL": "postgresql://user:secret-word@127.0.0.1:1/app",
        "PINECONE_CONTROLLER_HOST": "http://127.0.0.1:1",
    }
    result = run(nowhere, "backfill", "--dry-run", "--offline")
    assert result.exit_code == 0, result.output
    assert "Nothing was connected to" in result.output
    assert "secret-word" not in result.output


def test_the_last_line_of_json_output_is_an_object(environment: dict[str, str]) -> None:
    result = run(environment, "backfill", "--keys-from", "source", "--json")
    events = [json.loads(line) for line in result.output.splitlines()]
    ended = [event for event in events if event["event"] in {"finished", "verified", "reported"}]
    assert [event["event"] for event in ended] == ["finished", "verified", "reported"]
    assert ended[1]["unexpected"] == 0
    assert events[-1] == ended[-1]


def test_status_without_runs_names_the_queued_one(environment: dict[str, str]) -> None:
    output = run(environment, "status").output
    assert "planned" in output
    assert "python scripts/backfill.py --resume" in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["backfill", "--resume", "--restart"], "contradict"),
        (["backfill", "--force", "--keys-from", "table"], "contradict"),
        (["backfill", "--offline"], "--dry-run"),
        (["backfill", "--namespace", "a", "--all-namespaces"], "contradict"),
        (["backfill", "--batch-size", "0"], "AMPRENTA_BATCH_SIZE"),
        (["backfill", "--workers", "many"], "--workers"),
        (["backfill", "--keys-from", "somewhere"], "--keys-from"),
    ],
)
def test_a_wrong_option_is_named_and_exits_2(environment: dict[str, str], arguments: list[str], expected: str) -> None:
    result = run(environment, *arguments)
    assert result.exit_code == 2
    assert expected in result.output


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": "not a url"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "mysql://user@host/app"}, "'mysql'"),
        ({"PINECONE_API_KEY": ""}, "PINECONE_API_KEY is not set"),
        ({"PINECONE_API_KEY": "wrong-key"}, "check PINECONE_API_KEY"),
        ({"PINECONE_INDEX_NAME": ""}, "PINECONE_INDEX_NAME is not set"),
        ({"PINECONE_INDEX_NAME": "no-such-index"}, "check PINECONE_INDEX_NAME"),
        ({"PINECONE_NAMESPACE": "no-such-namespace"}, "it has: __default__ (30), other (12)"),
        ({"VECTOR_DIMENSION": "768"}, "VECTOR_DIMENSION is 768, but rag_chunks.embedding is vector(8)"),
        ({"AMPRENTA_TABLE": "no_such_table"}, "one of: rag_chunks"),
        ({"PINECONE_TRANSPORT": "carrier-pigeon"}, "PINECONE_TRANSPORT"),
        ({"PINECONE_GRPC_HOST": "http://example.com:80"}, "unencrypted"),
    ],
)
def test_a_wrong_setting_is_named_with_the_mend_and_exits_2(
    environment: dict[str, str], variables: dict[str, str], expected: str
) -> None:
    result = run(environment | variables, "backfill", "--resume")
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "hint:" in result.output
    assert "Traceback" not in result.output
    assert "wrong-key" not in result.output


def test_an_index_of_another_dimension_is_refused_naming_both(
    environment: dict[str, str], emulator: Callable[..., PineconeEmulator]
) -> None:
    wide = emulator(dimension=16)
    wide.load("", ["a"], np.ones((1, 16), dtype=np.float32))
    variables = {"PINECONE_CONTROLLER_HOST": wide.host, "PINECONE_GRPC_HOST": wide.grpc_host}
    result = run(environment | variables, "backfill", "--resume")
    assert result.exit_code == 2
    assert "has 16 dimensions, rag_chunks.embedding has 8" in result.output


def test_before_the_upgrade_the_backfill_names_the_command(environment: dict[str, str], database_url: str) -> None:
    for command in ("backfill", "status", "verify"):
        result = run(environment | {"DATABASE_URL": database_url}, command)
        assert result.exit_code == 2, result.output
        assert "alembic upgrade head" in result.output


def test_verify_lists_what_differs_and_exits_1(environment: dict[str, str], engine: sa.Engine) -> None:
    run(environment, "backfill", "--keys-from", "source")
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM rag_chunks WHERE chunk_id = '-1'"))
        connection.execute(
            sa.text("UPDATE rag_chunks SET embedding = array_fill(1, ARRAY[8])::vector WHERE chunk_id = '-2'")
        )
        connection.execute(
            sa.text("INSERT INTO rag_chunks (chunk_id, embedding) VALUES ('-x', array_fill(1, ARRAY[8])::vector)")
        )
    result = run(environment, "verify")
    assert result.exit_code == 1
    assert "missing: '-1'" in result.output
    assert "different: '-2'" in result.output
    assert "extra: '-x'" in result.output


def test_ask_a_store_for_the_public_names(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import amprenta_vectors

    run(environment, "backfill", "--keys-from", "source")
    found = []
    for backend in ("pinecone", "pgvector"):
        for name, value in (environment | {"VECTOR_BACKEND": backend}).items():
            monkeypatch.setenv(name, value)
        store = amprenta_vectors.get_vector_store()
        hits = store.query(np.ones(DIMENSION), top_k=5, filter={"page": {"$lt": 20}})
        found.append([(hit.key, hit.text, hit.metadata["page"]) for hit in hits])
        store.close()
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_with_json_every_line_is_an_object_with_its_time_errors_and_dry_run_too(environment: dict[str, str]) -> None:
    nowhere = environment | {"PINECONE_INDEX_NAME": "elsewhere"}
    for variables, arguments in [
        (environment, ("backfill", "--keys-from", "source", "--json")),
        (environment, ("backfill", "--keys-from", "source", "--dry-run", "--json")),
        (environment | {"AMPRENTA_LOG_FORMAT": "json"}, ("verify",)),
        (nowhere, ("backfill", "--json")),
        (environment | {"AMPRENTA_WORKERS": "many"}, ("backfill", "--json")),
    ]:
        result = run(variables, *arguments)
        said = [json.loads(line) for line in result.output.splitlines()]
        assert said, arguments
        assert all({"event", "time"} <= line.keys() for line in said), said
        assert (said[-1]["event"] == "error") == (result.exit_code > 0), said
    assert run(environment, "status").output.startswith("run 1")


def test_a_hint_names_the_command_where_there_is_no_script(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "start it with: amprenta-vectors backfill --resume" in run(environment, "status").output


def test_where_more_differ_than_are_shown_the_command_that_lists_them_is_one(
    environment: dict[str, str], engine: sa.Engine, tmp_path: Path
) -> None:
    run(environment, "backfill", "--keys-from", "source", "--no-verify")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rag_chunks SET embedding = NULL"))
    output = run(environment, "verify").output
    assert "amprenta-vectors verify --output FILE lists them all" in output
    run(environment, "verify", "--output", str(tmp_path / "all"))
    assert len((tmp_path / "all").read_text().splitlines()) == 30
