"""`errors` lists what is quarantined and nothing that is secret; `retry-failed` takes it again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import (
    ROOT,
    add_rows,
    end_process,
    environment,
    execute,
    expected,
    refuse,
    stored,
    to_ids,
    to_vectors,
)
from click.testing import CliRunner, Result
from forked import ForkedProcess

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

IDS, VECTORS = to_ids(40), to_vectors(40)
BAD = [IDS[3], IDS[4], IDS[30]]


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    pinecone = emulator()
    pinecone.load("", IDS[:-1], VECTORS[:-1], [{"text": "a secret text"}] * 39)
    return pinecone


@pytest.fixture
def variables(upgraded_url: str, pinecone: PineconeEmulator) -> dict[str, str]:
    return environment(upgraded_url, pinecone, EMBEDDING_MODEL="m1", AMPRENTA_BATCH_SIZE="20")


def run(variables: Mapping[str, str], *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments), env=dict(variables))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def quarantined(engine: sa.Engine, variables: dict[str, str]) -> None:
    """A run that has quarantined three rows that PostgreSQL refuses, and one that the source has not."""
    add_rows(engine, IDS)
    refuse(engine, BAD)
    run(variables, "backfill", "--no-verify", code=3)


def accept(engine: sa.Engine) -> None:
    execute(engine, "DROP FUNCTION IF EXISTS refuse CASCADE")


def document(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.usefixtures("quarantined")
def test_errors_counts_by_reason_and_lists_the_rows(variables: dict[str, str]) -> None:
    output = run(variables, "errors").output
    assert output.splitlines()[:2] == ["1 missing_at_source", "3 write_refused"]
    for key in (*BAD, IDS[-1]):
        assert key in output
    assert f"no {BAD[0]} here" in output
    assert "a secret text" not in output
    assert "own text" not in output


@pytest.mark.usefixtures("quarantined")
def test_errors_of_one_run_one_reason_and_so_many(variables: dict[str, str]) -> None:
    found = document(run(variables, "errors", "1", "--reason", "write_refused", "--limit", "2", "--json"))
    assert found["counts"] == {"write_refused": 3}
    assert [row["key"] for row in found["errors"]] == BAD[:2]
    assert {(row["run"], row["reason"], row["attempts"]) for row in found["errors"]} == {(1, "write_refused", 1)}
    assert found["errors"][0].keys() == {"run", "target", "scope", "key", "reason", "detail", "attempts", "at"}
    assert (
        "more; --limit 3 lists them all" in run(variables, "errors", "--reason", "write_refused", "--limit", "1").output
    )


def test_errors_without_any_says_so_and_an_unknown_run_is_a_usage_error(variables: dict[str, str]) -> None:
    assert "no row is quarantined" in run(variables, "errors").output
    assert "there is no run 7" in run(variables, "errors", "7", code=2).output


def test_errors_before_the_upgrade_names_the_upgrade(database_url: str, pinecone: PineconeEmulator) -> None:
    assert "alembic upgrade head" in run(environment(database_url, pinecone), "errors", code=2).output


def test_a_key_cannot_speak_to_the_terminal(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_rows(engine, ["\x1b[2J\nred"])
    run(variables, "backfill", "--no-verify", code=3)
    output = run(variables, "errors").output
    assert "\x1b" not in output
    assert "\\x1b[2J\\nred" in output


@pytest.mark.usefixtures("quarantined")
def test_rows_taken_again_are_written_and_are_errors_no_longer(
    engine: sa.Engine, variables: dict[str, str], pinecone: PineconeEmulator
) -> None:
    accept(engine)
    pinecone.load("", IDS[-1:], VECTORS[-1:])
    pinecone.calls.clear()
    assert "4 rows written" in run(variables, "retry-failed").output
    assert stored(engine) == expected(IDS, VECTORS)
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE resolved_at IS NULL") == [(0,)]
    # The keys are those that were quarantined: nothing is listed.
    assert (pinecone.calls["list"], pinecone.calls["fetch"]) == (0, 1)
    assert "no row of rag_chunks.embedding is quarantined" in run(variables, "retry-failed").output


@pytest.mark.usefixtures("quarantined")
def test_rows_refused_again_count_their_attempts_on_and_exit_with_3(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    accept(engine)
    refuse(engine, BAD[:1])
    assert "quarantined: 1 write_refused" in run(variables, "retry-failed", code=3).output
    found = document(run(variables, "errors", "--json"))
    attempts = {row["key"]: (row["run"], row["attempts"]) for row in found["errors"]}
    assert attempts == {BAD[0]: (2, 2), IDS[-1]: (2, 2)}
    assert found["counts"] == {"missing_at_source": 1, "write_refused": 1}


@pytest.mark.usefixtures("quarantined")
def test_only_rows_of_one_reason_can_be_taken_again(engine: sa.Engine, variables: dict[str, str]) -> None:
    accept(engine)
    assert "3 rows written" in run(variables, "retry-failed", "--reason", "write_refused").output
    assert document(run(variables, "errors", "--json"))["counts"] == {"missing_at_source": 1}


@pytest.mark.usefixtures("quarantined")
def test_a_row_that_the_application_deleted_is_not_inserted_again(engine: sa.Engine, variables: dict[str, str]) -> None:
    accept(engine)
    execute(engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=BAD[0])
    run(variables, "retry-failed", "--reason", "write_refused")
    assert {*BAD} & stored(engine).keys() == {*BAD[1:]}
    assert execute(engine, "SELECT count(*) FROM rag_chunks") == [(39,)]


def test_rows_that_were_listed_at_the_source_are_inserted_when_taken_again(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    refuse(engine, BAD)
    run(variables, "backfill", "--keys-from", "source", "--no-verify", code=3)
    accept(engine)
    run(variables, "retry-failed")
    assert stored(engine) == expected(IDS[:-1], VECTORS[:-1])
    ((text,),) = execute(engine, "SELECT content FROM rag_chunks WHERE chunk_id = :key", key=BAD[0])
    assert text == "a secret text"
    # What was taken again is no listing of the source: the next one lists it anew only if asked to.
    assert (
        "it had ended before" in run(variables, "backfill", "--resume", "--keys-from", "source", "--no-verify").output
    )


def test_rows_that_were_not_isolated_are_isolated_when_taken_again(
    engine: sa.Engine, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(engine, IDS[:-1])
    refuse(engine, BAD)
    with monkeypatch.context() as scarce:
        scarce.setattr("amprenta_vectors.bisect.budget", lambda rows: 3)
        run(variables, "backfill", "--no-verify", code=3)
    assert document(run(variables, "errors", "--json"))["counts"].keys() == {"not_isolated"}
    run(variables, "retry-failed", code=3)
    found = document(run(variables, "errors", "--json"))
    assert [(row["key"], row["reason"]) for row in found["errors"]] == [(key, "write_refused") for key in BAD]
    assert len(stored(engine)) == 36


@pytest.mark.usefixtures("quarantined")
@pytest.mark.parametrize("command", [["retry-failed"], ["backfill", "--resume", "--no-verify"]])
def test_a_retry_that_was_killed_is_resumed(
    engine: sa.Engine, variables: dict[str, str], pinecone: PineconeEmulator, command: list[str]
) -> None:
    accept(engine)
    pinecone.faults.set("fetch", Fault(latency=30.0))
    process = ForkedProcess(
        ROOT / "amprenta_vectors" / "__main__.py", ("retry-failed",), variables | {"AMPRENTA_LEASE_SECONDS": "0.5"}
    )
    try:
        claimed = "SELECT count(*) FROM migration_progress WHERE run_id = 2 AND attempt > 0"
        while process.poll() is None and execute(engine, claimed) == [(0,)]:
            time.sleep(0.05)
    finally:
        end_process(process)
    pinecone.faults.clear()
    other = run(variables, "backfill", code=2).output
    assert "run 2" in other
    assert "3 rows written" in run(variables, *command, code=3).output
    assert execute(engine, "SELECT id, keys_from, state FROM migration_run ORDER BY id") == [
        (1, "table", "finished"),
        (2, "table_errors", "finished"),
    ]


@pytest.mark.usefixtures("quarantined")
def test_an_unfinished_backfill_is_finished_first(engine: sa.Engine, variables: dict[str, str]) -> None:
    execute(engine, "UPDATE migration_run SET state = 'running'")
    output = run(variables, "retry-failed", code=2).output
    assert "run 1 into rag_chunks.embedding is unfinished" in output
    assert "backfill --resume" in output


@pytest.mark.usefixtures("quarantined")
def test_a_queued_backfill_is_started_first(engine: sa.Engine, variables: dict[str, str]) -> None:
    execute(
        engine,
        "INSERT INTO migration_run (vector_table, target, state, desired_state) "
        "VALUES ('rag_chunks', 'rag_chunks.embedding', 'planned', 'running')",
    )
    assert "is queued" in run(variables, "retry-failed", code=2).output
    assert execute(engine, "SELECT count(*) FROM migration_run") == [(2,)]


@pytest.mark.usefixtures("quarantined")
def test_what_another_namespace_has_quarantined_is_left_alone(
    engine: sa.Engine, variables: dict[str, str], pinecone: PineconeEmulator
) -> None:
    accept(engine)
    pinecone.load("other", IDS, VECTORS)
    assert "is quarantined" in run(variables, "retry-failed", "--namespace", "other").output
    assert "3 rows written" in run(variables, "retry-failed", "--all-namespaces", code=3).output


@pytest.mark.usefixtures("quarantined")
def test_the_command_that_is_named_takes_them_again_whatever_table_and_namespace_they_are_of(
    engine: sa.Engine, variables: dict[str, str], pinecone: PineconeEmulator
) -> None:
    pinecone.load("it's other", IDS, VECTORS)
    run(variables, "backfill", "--keys-from", "source", "--namespace", "it's other", "--no-verify", code=3)
    accept(engine)
    for elsewhere in (variables, {**variables, "AMPRENTA_TABLE": "products"}):
        (line,) = [line for line in run(elsewhere, "errors").output.splitlines() if line.startswith("take them")]
        assert "--all-namespaces" in line
    (line,) = [line for line in run(elsewhere, "errors", "2").output.splitlines() if line.startswith("take them")]
    assert line == (
        "take them again with: AMPRENTA_TABLE=rag_chunks amprenta-vectors retry-failed --namespace 'it'\"'\"'s other'"
    )
    table, _, *words = shlex.split(line.removeprefix("take them again with: "))
    name, _, value = table.partition("=")
    assert "3 rows written" in run({**elsewhere, name: value}, *words).output


def test_where_all_is_good_as_it_is_no_command_is_named(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_rows(engine, IDS)
    run(variables, "backfill", "--no-verify", code=3)
    execute(engine, "UPDATE migration_quarantine SET reason = 'gone_at_source'")
    assert "retry-failed" not in run(variables, "errors").output
