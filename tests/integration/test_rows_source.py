"""Rows of a table as their own source: their texts are embedded, by the same runs that move vectors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    LEASE_SECONDS,
    POLL_SECONDS,
    Recorder,
    StubSource,
    end_process,
    errors_of,
    execute,
    fork_process,
    run_forked,
    run_job,
    to_job,
)
from click.testing import CliRunner, Result

from amprenta_vectors.backends.rows.source import RowsOrigin
from amprenta_vectors.batch import Vectors
from amprenta_vectors.cli import main
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.errors import TransientError
from amprenta_vectors.moves.verification import verify_job
from amprenta_vectors.sandbox.embedding_servers import Answer, OpenAIServer
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.keymaps import OwnKeys, open_key_map
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable

ROWS = 300
WITHOUT_TEXT = {7, 70}
NOTES = VectorTable(
    name="notes",
    table="notes",
    key=("day", "number"),
    scope=("tenant",),
    text="body",
    dimension=256,
    source="rows",
)
DECLARED = """
[tables.articles]
table = "articles"
key = "id"
model = "made_by"
dimension = 256
source = "rows"
text_columns = ["title", "body"]
"""


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


@pytest.fixture
def articles(engine: sa.Engine, tmp_path: Path) -> dict[str, str]:
    """A table with texts and without vectors, and the environment of one who embeds them: nothing of Pinecone's."""
    execute(
        engine,
        """
        CREATE TABLE articles (id integer PRIMARY KEY, title text, body text, embedding vector(256), made_by text);
        INSERT INTO articles SELECT n, 'Article ' || n, 'About the number ' || n || ' and what it counts.'
        FROM generate_series(1, 300) n;
        UPDATE articles SET title = ' ', body = NULL WHERE id IN (7, 70);
        """,
    )
    config = tmp_path / "amprenta.toml"
    config.write_text(DECLARED)
    return {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "AMPRENTA_CONFIG": str(config),
        "AMPRENTA_TABLE": "articles",
        "AMPRENTA_EMBEDDER": "wordllama",
        "AMPRENTA_LEASE_SECONDS": str(LEASE_SECONDS),
    }


def run(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def text_of(number: int) -> str:
    return f"Article {number}\nAbout the number {number} and what it counts."


def vectors_of(engine: sa.Engine, table: str = "articles") -> dict[int, Vectors]:
    rows = execute(engine, f"SELECT id, vector_send(embedding) FROM {table} WHERE embedding IS NOT NULL")
    return {number: np.frombuffer(bytes(sent)[4:], ">f4").astype(np.float32) for number, sent in rows}


def count_writes(engine: sa.Engine) -> None:
    """From now on a trigger keeps the number of every row whose embedding is written."""
    execute(
        engine,
        """
        CREATE TABLE writes (id integer);
        CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO writes VALUES (NEW.id);
            RETURN NULL;
        END $$;
        CREATE TRIGGER note_write AFTER UPDATE OF embedding ON articles FOR EACH ROW EXECUTE FUNCTION note_write();
        """,
    )


def writes(engine: sa.Engine) -> dict[int, int]:
    return dict(execute(engine, "SELECT id, count(*) FROM writes GROUP BY id"))


def test_read_units_that_no_text_is_charged_by_are_warned_of(articles: dict[str, str]) -> None:
    warned = CliRunner().invoke(main, ["backfill", "--max-read-units", "5"], env=articles)
    assert warned.exit_code == 3, warned.output
    assert "AMPRENTA_MAX_READ_UNITS limits nothing" in warned.output
    assert "--max-cost" in warned.output


def test_rows_are_embedded_verified_and_told_of_their_model(
    articles: dict[str, str], engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    result = run(articles, "backfill", "--resume")
    assert result.exit_code == 3, result.output
    assert "298 rows written" in result.output
    assert "quarantined: 2 no_text" in result.output
    assert "verified 200 vectors of articles(title, body)/, embedded again: each is as near" in result.output
    numbers = [number for number in range(1, ROWS + 1) if number not in WITHOUT_TEXT]
    found = vectors_of(engine)
    assert sorted(found) == numbers
    assert np.array_equal([found[number] for number in numbers], embedder.embed([text_of(n) for n in numbers]))
    assert execute(engine, "SELECT DISTINCT made_by FROM articles WHERE embedding IS NOT NULL") == [
        ("wordllama-l2-supercat",)
    ]
    assert errors_of(engine, execute(engine, "SELECT max(id) FROM migration_run")[0][0]) == {
        "7": "no_text",
        "70": "no_text",
    }


def test_a_killed_run_over_rows_goes_on_and_writes_each_row_once(articles: dict[str, str], engine: sa.Engine) -> None:
    count_writes(engine)
    environment = {
        **articles,
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "AMPRENTA_REPORT": os.environ["AMPRENTA_REPORT"],
        "AMPRENTA_BATCH_SECONDS": "off",
        "AMPRENTA_LEASE_SECONDS": "0.5",
        "AMPRENTA_POLL_SECONDS": str(POLL_SECONDS),
    }
    options = ("--resume", "--batch-size", "3", "--workers", "1")
    process = fork_process(environment, *options)
    try:
        while not writes(engine):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        end_process(process)
    assert 0 < len(writes(engine)) < ROWS - len(WITHOUT_TEXT)
    code, output = run_forked(environment, "--resume", "--batch-size", "3")
    assert code == 3, output
    assert writes(engine) == dict.fromkeys(set(range(1, ROWS + 1)) - WITHOUT_TEXT, 1)


def test_rows_that_get_a_text_are_taken_again(articles: dict[str, str], engine: sa.Engine) -> None:
    run(articles, "backfill", "--resume")
    execute(engine, "UPDATE articles SET body = 'now there is one' WHERE id = 7")
    result = run(articles, "retry-failed")
    assert result.exit_code == 3, result.output
    assert "1 rows written" in result.output
    assert "quarantined: 1 no_text" in result.output
    assert 7 in vectors_of(engine)


def test_verification_finds_what_lacks_its_vector_and_what_has_another(
    articles: dict[str, str], engine: sa.Engine
) -> None:
    run(articles, "backfill", "--resume")
    execute(engine, "UPDATE articles SET embedding = NULL WHERE id = 3")
    execute(engine, "DELETE FROM articles WHERE id > 150")
    execute(engine, "UPDATE articles SET body = 'An altogether other matter: the sea at night' WHERE id = 4")
    result = run(articles, "verify")
    assert result.exit_code == 1
    assert "missing: '3'" in result.output
    assert "different: '4': its text embedded again lies" in result.output
    # Those without a text are not missing; the others are as they were.
    assert result.output.count("missing: ") == result.output.count("different: ") == 1


def test_a_vector_that_rounds_otherwise_is_no_other_vector(articles: dict[str, str], engine: sa.Engine) -> None:
    run(articles, "backfill", "--resume", "--no-verify")
    execute(engine, "UPDATE articles SET embedding = embedding::halfvec(256)::vector(256)")
    assert run(articles, "verify").exit_code == 0


def test_what_would_be_embedded_is_said_and_nothing_is_changed(articles: dict[str, str], engine: sa.Engine) -> None:
    result = run(articles, "backfill", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "300 texts, 256 dimensions" in result.output
    assert "read units" not in result.output
    assert "pinecone" not in result.output.lower()
    offline = run(articles, "backfill", "--dry-run", "--offline")
    assert offline.exit_code == 0, offline.output
    assert "from its own title, body, embedded by wordllama" in offline.output
    inspected = run(articles, "sources", "inspect")
    assert inspected.exit_code == 0, inspected.output
    assert "export VECTOR_DIMENSION=256" in inspected.output
    assert "text: in 98" in inspected.output
    assert vectors_of(engine) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"AMPRENTA_EMBEDDER": ""}, "AMPRENTA_EMBEDDER is not set"),
        ({"EMBEDDING_MODEL": "text-embedding-3-small"}, "embeds by 'wordllama-l2-supercat'"),
        ({"AMPRENTA_SOURCE": "pages"}, "AMPRENTA_SOURCE"),
        (
            {"AMPRENTA_TABLE": "rag_chunks", "AMPRENTA_SOURCE": "rows"},
            "makes vectors of 256 dimensions, rag_chunks.embedding has 8",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_begins(
    articles: dict[str, str], engine: sa.Engine, change: dict[str, str], expected: str
) -> None:
    result = run({**articles, **change}, "backfill", "--resume")
    assert result.exit_code == 2
    assert expected in result.output
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(0,)]


def test_a_table_without_a_text_column_names_the_mend(articles: dict[str, str]) -> None:
    config = Path(articles["AMPRENTA_CONFIG"])
    config.write_text(DECLARED.replace('text_columns = ["title", "body"]', ""))
    result = run(articles, "backfill")
    assert result.exit_code == 2
    assert "names no column whose text could be embedded" in result.output
    assert "text_columns" in result.output


class Passing:
    """An embedder that is unreachable at first."""

    def __init__(self, embedder: WordLlamaEmbedder, failures: int) -> None:
        self.model: Model = embedder.model
        self.failures = failures
        self._embedder = embedder

    def embed(self, texts: Sequence[str]) -> Vectors:
        if self.failures:
            self.failures -= 1
            raise TransientError("the embedder does not answer")
        return self._embedder.embed(texts)


@pytest.fixture
def notes(engine: sa.Engine) -> Iterator[VectorTable]:
    """Rows of two tenants, with a key of two columns."""
    execute(
        engine,
        """
        CREATE TABLE notes (tenant text, day date, number integer, body text, embedding vector(256),
                            PRIMARY KEY (tenant, day, number));
        INSERT INTO notes SELECT t, DATE '2026-01-01' + n % 5, n, t || ' wrote note ' || n
        FROM unnest(ARRAY['a', 'b']) t, generate_series(1, 40) n;
        """,
    )
    with engine.connect() as connection:
        yield resolve_table(connection, NOTES)


def note_job(engine: sa.Engine, table: VectorTable, embedder: Any, **changes: Any) -> Any:
    source = RowsOrigin(engine, table, embedder).open(table, "a", with_metadata=False)
    key_map = OwnKeys([table.column_types[name] for name in table.key])
    values = {"keys_from": "table", "key_map": key_map, "scope": {"tenant": "a"}, "batch_size": 10, **changes}
    return to_job(engine, source, table=table, **values)


def test_an_embedder_that_is_away_is_waited_for(
    notes: VectorTable, engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    seen = Recorder()
    summary = run_job(engine, note_job(engine, notes, Passing(embedder, 3)), observer=seen)
    assert (summary.counts.written, summary.errors) == (40, {})
    assert "the embedder does not answer" in seen.reasons


def test_only_the_rows_of_one_scope_are_read_and_written(
    notes: VectorTable, engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    origin = RowsOrigin(engine, notes, embedder)
    assert origin.namespaces() == {"a": 40, "b": 40}
    run_job(engine, note_job(engine, notes, embedder, keys_from="source"))
    filled = execute(engine, "SELECT tenant, count(embedding) FROM notes GROUP BY tenant ORDER BY tenant")
    assert filled == [("a", 40), ("b", 0)]
    found = vectors_of(engine, "(SELECT number AS id, embedding FROM notes) AS notes")
    assert np.array_equal(
        [found[number] for number in range(1, 41)], embedder.embed([f"a wrote note {n}" for n in range(1, 41)])
    )


CATALOGUE = VectorTable(
    name="catalogue",
    table="catalogue",
    key=("id",),
    dimension=256,
    hash="embedding_hash",
    text_hash="embedding_text_hash",
    key_rule=KeyRule("lookup", lookup="id"),
    text_columns=("name",),
)


def test_rows_of_another_source_and_rows_embedded_here_share_a_column_and_both_verify(
    engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    execute(
        engine,
        """
        CREATE TABLE catalogue (id integer PRIMARY KEY, name text, embedding vector(256),
                                embedding_hash bigint, embedding_text_hash bigint);
        INSERT INTO catalogue (id, name) SELECT n, 'product ' || n FROM generate_series(1, 20) n;
        """,
    )
    with engine.connect() as connection:
        table = resolve_table(connection, CATALOGUE)
    old = np.random.default_rng(0).standard_normal((10, 256)).astype(np.float32)
    there = StubSource({str(number): [vector] for number, vector in enumerate(old, 1)}, dimension=256)
    moved = to_job(engine, there, table=table, key_map=open_key_map(table, {}, engine))
    run_job(engine, moved)
    rows = RowsOrigin(engine, table, embedder).open(table, "", with_metadata=False)
    own = to_job(engine, rows, table=table, key_map=OwnKeys(["integer"]), keys_from="table")
    assert run_job(engine, own).counts.written == 10
    assert not verify_job(engine, moved).unexpected
    assert not verify_job(engine, own).unexpected
    # An embedding that neither of them made is one too many.
    execute(engine, "UPDATE catalogue SET embedding_text_hash = NULL WHERE id = 15")
    assert verify_job(engine, moved).unexpected


def test_given_keys_alone_are_done_and_what_is_there_is_replaced_once(
    notes: VectorTable, engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    run_job(engine, note_job(engine, notes, embedder))
    before = dict(execute(engine, "SELECT number, embedding::text FROM notes WHERE tenant = 'a'"))
    execute(engine, "UPDATE notes SET body = 'rewritten ' || number WHERE number IN (1, 2)")
    keys = ['["2026-01-02", "1"]', '["2026-01-04", "3"]', '["2026-01-02", "1"]', '["2026-01-02", "99"]']
    job = note_job(engine, notes, embedder, keys_from="given", given=keys, replaces=True)
    summary = run_job(engine, job)
    after = dict(execute(engine, "SELECT number, embedding::text FROM notes WHERE tenant = 'a'"))
    assert {number for number in after if after[number] != before[number]} == {1}
    # The second is as it was, so it is not written; the last is no row.
    assert (summary.run.planned_keys, summary.counts.written, summary.errors) == (3, 1, {"missing_at_source": 1})


def test_without_replacing_a_given_row_keeps_its_vector(
    notes: VectorTable, engine: sa.Engine, embedder: WordLlamaEmbedder
) -> None:
    run_job(engine, note_job(engine, notes, embedder))
    execute(engine, "UPDATE notes SET body = 'rewritten'")
    job = note_job(engine, notes, embedder, keys_from="given", given=['["2026-01-02", "1"]'])
    assert run_job(engine, job).counts.written == 0


@pytest.fixture
def openai(articles: dict[str, str]) -> Iterator[OpenAIServer]:
    """The stub of a service that bills, and the environment that leads to it."""
    with OpenAIServer("a-key") as server:
        articles |= {
            "AMPRENTA_EMBEDDER": "openai",
            "OPENAI_API_KEY": "a-key",
            "OPENAI_BASE_URL": f"{server.host}/v1",
            "VECTOR_DIMENSION": "256",
        }
        yield server


def test_a_text_that_many_rows_of_a_batch_have_is_billed_once(
    articles: dict[str, str], engine: sa.Engine, openai: OpenAIServer
) -> None:
    execute(engine, "UPDATE articles SET title = 'The same', body = 'for all of them' WHERE id > 100")
    result = run(articles, "backfill", "--workers", "1", "--no-verify")
    assert result.exit_code == 3, result.output
    assert len(vectors_of(engine)) == 298
    assert len({vector.tobytes() for number, vector in vectors_of(engine).items() if number > 100}) == 1
    assert set(openai.billed.values()) == {1}
    assert len(openai.billed) == 99


def test_a_service_that_gives_fewer_vectors_fails_the_batch_by_name_and_the_run_is_resumed(
    articles: dict[str, str], engine: sa.Engine, openai: OpenAIServer
) -> None:
    openai.faults.append(
        Answer(200, {"object": "list", "model": "m", "data": [{"index": 0, "embedding": [0.5] * 256}]})
    )
    failed = run(articles, "backfill", "--workers", "1", "--no-verify")
    assert failed.exit_code == 1, failed.output
    assert "batch 1 (300 keys from '1'): openai gave 1 vectors for 298 texts" in failed.output
    assert vectors_of(engine) == {}
    assert run(articles, "backfill", "--resume", "--no-verify").exit_code == 3
    assert len(vectors_of(engine)) == 298


def test_a_text_that_the_service_does_not_take_is_found_by_halving_and_the_others_arrive(
    articles: dict[str, str], engine: sa.Engine, openai: OpenAIServer
) -> None:
    execute(engine, "UPDATE articles SET body = repeat('too long ', 4000) WHERE id IN (30, 31)")
    assert run(articles, "backfill", "--workers", "1", "--no-verify").exit_code == 3
    assert set(range(1, 301)) - set(vectors_of(engine)) == WITHOUT_TEXT | {30, 31}
    assert "id_refused" in run(articles, "errors").output


@pytest.mark.parametrize(("rule", "billed"), [("cut", 1), ("chunk", 4)])
def test_a_long_text_is_refused_cut_or_embedded_in_chunks(
    articles: dict[str, str], engine: sa.Engine, openai: OpenAIServer, rule: str, billed: int
) -> None:
    words = " ".join(f"word{number}" for number in range(45))
    execute(
        engine, "DELETE FROM articles WHERE id > 2; UPDATE articles SET title = NULL, body = :b WHERE id = 1", b=words
    )
    articles["AMPRENTA_TEXT_CHARACTERS"] = "100"
    refused = run(articles, "backfill", "--no-verify")
    assert refused.exit_code == 3, refused.output
    assert set(vectors_of(engine)) == {2}
    listed = run(articles, "errors").output
    assert "text_too_long" in listed
    assert f"{len(words)} characters; AMPRENTA_TEXT_CHARACTERS is 100" in listed
    openai.billed.clear()
    articles["AMPRENTA_LONG_TEXTS"] = rule
    assert run(articles, "retry-failed").exit_code == 0
    assert set(vectors_of(engine)) == {1, 2}
    pieces = [text for text in openai.billed if text.startswith("word")]
    assert len(pieces) == billed
    assert max(map(len, pieces)) <= 100
    if rule == "chunk":
        assert " ".join(sorted(pieces, key=words.index)) == words


def test_a_text_without_words_is_counted_apart_and_nothing_is_paid_for_it(
    articles: dict[str, str], engine: sa.Engine, openai: OpenAIServer
) -> None:
    execute(engine, "UPDATE articles SET title = '— … !', body = '***' WHERE id = 9")
    result = run(articles, "backfill", "--no-verify")
    assert result.exit_code == 3
    assert "1 no_words" in run(articles, "errors").output
    assert not any("***" in text for text in openai.billed)
