"""A dry run says what a run would do, as that run then does it, and which side has more."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from backfill_tools import environment, execute, to_ids, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

IDS = to_ids(60)
NO_INDEX, AND_INDEX = r"time: less than 1 s\n", r"time: less than 1 s, then less than 1 s for the index\n"

Run = Callable[..., Result]


@pytest.fixture
def run(upgraded_url: str, emulator: Callable[..., PineconeEmulator]) -> Run:
    pinecone = emulator()
    pinecone.load("", IDS, to_vectors(60))
    variables = environment(upgraded_url, pinecone, VECTOR_DIMENSION="8")
    return lambda *arguments: CliRunner().invoke(main, ["backfill", *arguments], env=variables)


def insert(engine: sa.Engine, keys: list[str]) -> None:
    execute(engine, "INSERT INTO rag_chunks (chunk_id) SELECT unnest(CAST(:keys AS text[]))", keys=keys)


def test_records_without_a_row_are_said_with_what_the_comparison_makes_of_them(engine: sa.Engine, run: Run) -> None:
    insert(engine, IDS[:20])
    planned = run("--dry-run").output
    assert "to do: 20 vectors, keys from the table" in planned
    assert "at least 40 records of the source have no row here" in planned
    done = run()
    assert (done.exit_code, "40 missing, 0 extra, 0 different" in done.output) == (1, True)
    assert "--keys-from source inserts them" in planned
    assert run("--keys-from", "source").exit_code == 0
    assert "no row here" not in run("--dry-run").output


def test_rows_without_a_record_are_said_to_be_quarantined(engine: sa.Engine, run: Run) -> None:
    insert(engine, [*IDS, "one", "two"])
    planned = run("--dry-run").output
    assert "at least 2 rows have no record at the source, and are quarantined" in planned
    assert "no row here" not in planned
    assert "2 missing_at_source" in run().output


def test_a_limit_is_kept_to_and_the_index_has_its_time(engine: sa.Engine, run: Run) -> None:
    planned = run("--dry-run", "--keys-from", "source", "--limit", "10").output
    assert "to do: 10 vectors, keys from the source" in planned
    # Such a run leaves the index to the next one.
    assert re.search(NO_INDEX, planned)
    whole = ("--dry-run", "--keys-from", "source")
    assert re.search(AND_INDEX, run(*whole).output)
    run("--keys-from", "source", "--limit", "10")
    assert re.search(AND_INDEX, run(*whole).output)
    run("--keys-from", "source")
    execute(engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=IDS[0])
    # The index is there, and so is most of what it holds: it stays.
    assert re.search(NO_INDEX, run(*whole).output)
    assert re.search(AND_INDEX, run(*whole, "--defer-index").output)
