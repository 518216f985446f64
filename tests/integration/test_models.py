"""From one embedding model of a table to another, with the table in use: add, migrate, compare, switch, retire."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from embedded_rows import LARGE, SMALL, TEXTS, embed_rows, embedder
from tenacity import Retrying, stop_after_delay, wait_fixed

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError, DimensionMismatch, TransientError
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record
from amprenta_vectors.stores.texts import TextStore

QUESTION = "how is an exception handled in a try statement"

Run = Callable[..., Result]


@pytest.fixture
def engine(embedded_url: str) -> Iterator[sa.Engine]:
    made = create_engine(Settings.load(database_url=embedded_url))
    yield made
    made.dispose()


@pytest.fixture
def run(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command of ``models``, and expect an exit code."""
    monkeypatch.setenv("DATABASE_URL", embedded_url)
    monkeypatch.setattr("amprenta_vectors.moves.models.migrating.SEEN_SECONDS", 0.0)

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["models", *arguments])
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def store(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgVectorStore]:
    """A running application's store, which looks at the registry before every use."""
    monkeypatch.setattr("amprenta_vectors.stores.pgvector.models.LOOK_SECONDS", 0.0)
    opened = open_pgvector_store(Settings.load(database_url=embedded_url))
    yield opened
    opened.close()


@pytest.fixture
def added(run: Run) -> Run:
    """The model of the vectors registered, and a smaller one added."""
    run("add", LARGE, "--provider", "wordllama", "--column", "embedding")
    run("add", SMALL, "--provider", "wordllama", "--dimension", "128")
    return run


def column(engine: sa.Engine, name: str, where: str = "true") -> list[Any]:
    with engine.connect() as connection:
        return list(
            connection.execute(sa.text(f"SELECT {name} FROM rag_chunks WHERE {where} ORDER BY chunk_id")).scalars()
        )


def vector_of(engine: sa.Engine, key: str, name: str = "embedding_128") -> np.ndarray | None:
    [text] = column(engine, f"{name}::text", f"chunk_id = '{key}'")
    return None if text is None else np.array(json.loads(text), np.float32)


def assert_embedded(engine: sa.Engine, key: str, text: str) -> None:
    found = vector_of(engine, key)
    assert found is not None
    np.testing.assert_allclose(found, embedder(128).embed([text])[0], atol=1e-6)


def test_the_five_commands_change_the_model_and_the_way_back_is_one(added: Run, store: PgVectorStore) -> None:
    before = [hit.key for hit in store.search(QUESTION, top_k=5)]
    assert store.model == LARGE
    added("migrate", "--to", SMALL, "--subset", "50")
    added("migrate", "--to", SMALL)
    compared = json.loads(added("compare", "--from", LARGE, "--to", SMALL, "--queries", "20", "--json").output)
    assert [report["rows"] for report in compared["models"]] == [len(TEXTS), len(TEXTS)]
    assert compared["models"][1]["recall"] == 1.0
    added("switch", SMALL)
    assert store.model == SMALL
    by_small = store.query(embedder(128).embed([QUESTION])[0], top_k=5)
    assert [hit.key for hit in store.search(QUESTION, top_k=5)] == [hit.key for hit in by_small]
    added("switch", LARGE)
    assert [hit.key for hit in store.search(QUESTION, top_k=5)] == before
    added("retire", SMALL)
    assert [hit.key for hit in store.search(QUESTION, top_k=5)] == before


def test_what_is_written_with_a_text_is_embedded_for_each_model_that_is_written(
    added: Run, store: PgVectorStore, engine: sa.Engine
) -> None:
    text = "a generator is resumed by its next method"
    store.upsert(
        [Record("k0", embedder(256).embed([text])[0], text), Record("new", embedder(256).embed([text])[0], text)]
    )
    assert_embedded(engine, "k0", text)
    assert_embedded(engine, "new", text)
    # Without a text the row keeps its own, from which the other model's vector is.
    store.upsert([Record("k0", embedder(256).embed(["other"])[0])])
    assert_embedded(engine, "k0", text)
    # A vector of the second model is written in its column, and the text is embedded for the first.
    store.upsert([Record("k1", embedder(128).embed([text])[0], text)])
    assert_embedded(engine, "k1", text)
    np.testing.assert_allclose(vector_of(engine, "k1", "embedding"), embedder(256).embed([text])[0], atol=1e-6)


def test_a_model_that_fails_never_fails_the_write_and_a_run_makes_it_good(
    added: Run, store: PgVectorStore, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    added("migrate", "--to", SMALL)
    assert vector_of(engine, "k0") is not None
    store.models.now()

    def fail(*_: object) -> None:
        raise OSError("the service is away")

    text = "an iterator has no length"
    with monkeypatch.context() as away:
        away.setattr("amprenta_vectors.embedders.registered.ModelEmbedder.embed", fail)
        store.upsert([Record("k0", embedder(256).embed([text])[0], text)])
    # The vector of the text that was there would be found for what it says no more.
    assert vector_of(engine, "k0") is None
    assert store.models.missed == 1
    for attempt in Retrying(stop=stop_after_delay(60), wait=wait_fixed(0.05), reraise=True):
        with attempt:
            # It is noted at the next use, unless what loads the model in the background notes it first.
            store.models.now()
            assert "1 texts were not embedded" in added("list").output
    refused = added("switch", SMALL, code=2)
    assert "1 rows with a text are neither embedded as it is now nor quarantined, such as 'k0'" in refused.output
    added("migrate", "--to", SMALL)
    assert_embedded(engine, "k0", text)
    added("switch", SMALL)


def test_the_tables_own_column_is_filled_by_the_model_that_is_registered_for_it(
    added: Run, store: PgVectorStore, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the way back asks for it, where the first model failed meanwhile."""
    added("migrate", "--to", SMALL)
    added("switch", SMALL)

    def fail(*_: object) -> None:
        raise OSError("the service is away")

    text = "an iterator has no length"
    with monkeypatch.context() as away:
        away.setattr("amprenta_vectors.embedders.registered.ModelEmbedder.embed", fail)
        store.upsert([Record("k0", embedder(128).embed([text])[0], text)])
    refused = added("switch", LARGE, code=2)
    assert f"amprenta-vectors models migrate --to {LARGE}" in refused.output
    added("migrate", "--to", LARGE)
    np.testing.assert_allclose(vector_of(engine, "k0", "embedding"), embedder(256).embed([text])[0], atol=1e-6)
    added("switch", LARGE)


def test_a_text_that_sql_changed_is_embedded_again_and_a_switch_waits_for_it(added: Run, engine: sa.Engine) -> None:
    added("migrate", "--to", SMALL)
    text = "the application changed this paragraph by a statement of its own"
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rag_chunks SET content = :text WHERE chunk_id = 'k7'"), {"text": text})
    assert "such as 'k7'" in added("switch", SMALL, code=2).output
    added("migrate", "--to", SMALL)
    assert_embedded(engine, "k7", text)
    added("switch", SMALL)


def test_a_vector_is_searched_in_the_column_of_its_own_model_until_that_is_retired(
    added: Run, store: PgVectorStore
) -> None:
    added("migrate", "--to", SMALL)
    asked = embedder(256).embed([QUESTION])[0]
    before = store.query(asked, top_k=5)
    added("switch", SMALL)
    assert store.query(asked, top_k=5) == before
    assert store.query(asked, top_k=5, model=LARGE) == before
    with pytest.raises(DimensionMismatch, match="the vector has 256 dimensions, wordllama-l2-supercat-128 has 128"):
        store.query(asked, model=SMALL)
    with pytest.raises(ConfigError, match=f"'nobody' is no model of table rag_chunks; its models: {LARGE}, {SMALL}"):
        store.query(asked, model="nobody")
    added("retire", LARGE)
    with pytest.raises(ConfigError, match=f"its models: {SMALL}"):
        store.query(asked, model=LARGE)
    with pytest.raises(DimensionMismatch, match="a vector of 256 dimensions is from no model"):
        store.query(asked)


def test_of_two_models_of_one_dimension_a_vector_without_a_name_is_an_error_once_queries_were_switched(
    run: Run, store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", LARGE, "--provider", "wordllama", "--column", "embedding")
    run("add", "prefixed", "--provider", "wordllama", "--dimension", "256", "--parameter", "text_prefix=passage: ")
    run("migrate", "--to", "prefixed")
    asked = embedder(256).embed([QUESTION])[0]
    before = store.query(asked, top_k=5)
    run("switch", "prefixed")
    with pytest.raises(ConfigError, match="both have 256 dimensions"):
        store.query(asked)
    assert store.query(asked, top_k=5, model=LARGE) == before
    run("switch", LARGE)
    with pytest.raises(ConfigError, match="both have 256 dimensions"):
        store.query(asked)
    named = open_pgvector_store(
        Settings.load(database_url=store._engine.url.render_as_string(hide_password=False), embedding_model=LARGE)
    )
    assert named.query(asked, top_k=5) == before
    named.close()


def test_a_deleted_row_is_empty_for_every_model_and_no_run_fills_it(
    added: Run, store: PgVectorStore, engine: sa.Engine
) -> None:
    added("migrate", "--to", SMALL)
    store.delete(["k3"])
    assert vector_of(engine, "k3") is None
    assert vector_of(engine, "k3", "embedding") is None
    added("migrate", "--to", SMALL)
    assert vector_of(engine, "k3") is None
    added("switch", SMALL)
    # Once the application writes it again, it is a row as any other.
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rag_chunks SET content = 'written again' WHERE chunk_id = 'k3'"))
    added("migrate", "--to", SMALL)
    assert_embedded(engine, "k3", "written again")


def test_what_is_retired_comes_back_with_add_but_for_rows_that_changed(
    added: Run, store: PgVectorStore, engine: sa.Engine
) -> None:
    added("migrate", "--to", SMALL)
    added("retire", SMALL)
    assert "embedding_128_retired" in columns_of(engine)
    assert "embedding_128" not in columns_of(engine)
    store.upsert([Record("k5", embedder(256).embed(["changed"])[0], "changed")])
    added("add", SMALL, "--provider", "wordllama")
    kept = column(engine, "chunk_id", "embedding_128 IS NOT NULL")
    assert "k5" not in kept
    assert len(kept) == len(TEXTS) - 1
    added("migrate", "--to", SMALL)
    assert_embedded(engine, "k5", "changed")
    added("switch", SMALL)


def test_purge_drops_the_values_and_forgets_the_model(added: Run, engine: sa.Engine) -> None:
    added("migrate", "--to", SMALL, "--subset", "10")
    added("retire", SMALL, "--purge")
    assert not [name for name in columns_of(engine) if "128" in name]
    with engine.connect() as connection:
        assert list(connection.execute(sa.text("SELECT model_name FROM embedding_models")).scalars()) == [LARGE]


def columns_of(engine: sa.Engine) -> list[str]:
    return [each["name"] for each in sa.inspect(engine).get_columns("rag_chunks")]


def test_a_part_of_the_rows_is_embedded_first(added: Run, engine: sa.Engine) -> None:
    added("migrate", "--to", SMALL, "--where", "content LIKE '%exception%' AND chunk_id <> '100%:'")
    chosen = column(engine, "chunk_id", "content LIKE '%exception%'")
    assert chosen
    assert column(engine, "chunk_id", "embedding_128 IS NOT NULL") == chosen
    refused = added("migrate", "--to", SMALL, "--where", "no_such_column = 1", code=2)
    assert "--where 'no_such_column = 1' is refused" in refused.output
    added("migrate", "--to", SMALL)
    assert len(column(engine, "chunk_id", "embedding_128 IS NOT NULL")) == len(TEXTS)


def test_every_namespace_is_migrated(added: Run, engine: sa.Engine, store: PgVectorStore) -> None:
    embed_rows(engine, TEXTS[:5], "other")
    added("migrate", "--to", SMALL)
    assert column(engine, "embedding_128 IS NULL") == [False] * (len(TEXTS) + 5)
    added("switch", SMALL)


def test_queries_are_switched_while_others_are_under_way_and_none_is_mixed(
    added: Run, embedded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    added("migrate", "--to", SMALL)
    monkeypatch.setattr("amprenta_vectors.stores.pgvector.models.LOOK_SECONDS", 0.01)
    store = open_pgvector_store(Settings.load(database_url=embedded_url))
    by = {name: store.search(QUESTION, top_k=10, model=name) for name in (LARGE, SMALL)}
    assert by[LARGE] != by[SMALL]
    done, wrong, seen = threading.Event(), list[Any](), set[str]()

    def ask() -> None:
        while not done.is_set():
            try:
                hits = store.search(QUESTION, top_k=10)
                name = next((name for name, expected in by.items() if expected == hits), None)
                (wrong.append(hits) if name is None else seen.add(name))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in (SMALL, LARGE) * 3:
        added("switch", name)
        assert store.search(QUESTION, top_k=10) == by[name]
    done.set()
    for thread in threads:
        thread.join()
    store.close()
    assert wrong == []
    assert seen == {LARGE, SMALL}


def test_a_switch_names_the_process_that_cannot_load_the_model(
    run: Run, store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", LARGE, "--provider", "wordllama", "--column", "embedding")
    monkeypatch.setenv("OPENAI_API_KEY", "a key that is not sent")
    run("add", "text-embedding-3-small", "--provider", "openai")
    monkeypatch.delenv("OPENAI_API_KEY")
    store.models.now()
    found = run("switch", "text-embedding-3-small", "--wait", "20", "--force")
    assert f"forced: {len(TEXTS)} rows with a text" in found.output
    assert "cannot load it: ConfigError: OPENAI_API_KEY is not set" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", LARGE, "--dimension", "64"], "model exists with different dimension: wordllama-l2-supercat is"),
        (["add", "other", "--dimension", "128", "--column", "embedding_128"], "holds the vectors of model"),
        (["add", "other"], "the dimension of model other is not known"),
        (["add", "other", "--provider", "wordllama"], "wordllama makes vectors of several dimensions"),
        (["add", "o", "--dimension", "8", "--parameter", "prefix=x"], "--parameter is 'prefix=x'; expected one of"),
        (["migrate", "--to", "other"], "'other' is no model of table rag_chunks; its models: "),
        (["switch", "other"], "'other' is no model of table rag_chunks; its models: "),
        (["switch", SMALL], "200 rows with a text are neither embedded as it is now nor quarantined"),
        (["retire", LARGE], "wordllama-l2-supercat is the model that queries search"),
        (["compare", "--from", LARGE, "--to", SMALL], "has embedded no text to make queries of"),
        (["compare", "--from", LARGE, "--to", SMALL, "--require", "ndcg=2"], "--require is 'ndcg=2'; expected one"),
        (["compare", "--from", LARGE, "--to", SMALL, "--judged", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_said(added: Run, arguments: list[str], message: str) -> None:
    assert message in added(*arguments, code=2).output


def test_which_model_the_vectors_are_of_is_taken_from_the_settings_or_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        "nothing says which model the vectors in rag_chunks.embedding are of"
        in run("add", SMALL, "--provider", "wordllama", "--dimension", "128", code=2).output
    )
    monkeypatch.setenv("EMBEDDING_MODEL", LARGE)
    run("add", SMALL, "--provider", "wordllama", "--dimension", "128")
    listed = json.loads(run("list", "--json").output)
    found = [(each["column"]["model"]["name"], each["column"]["model"]["provider"]) for each in listed["models"]]
    assert found == [(LARGE, "wordllama"), (SMALL, "wordllama")]


def test_a_judged_file_decides_and_a_pipeline_can_require_it(added: Run, tmp_path: Path, engine: sa.Engine) -> None:
    added("migrate", "--to", SMALL)
    judged = tmp_path / "judged.jsonl"
    queries = [{"query": " ".join(text.split()[:15]), "relevant": {f"k{place}": 1}} for place, text in enumerate(TEXTS)]
    judged.write_text("\n".join(json.dumps(query) for query in queries[:30]), encoding="utf-8")
    command = ["compare", "--from", LARGE, "--to", SMALL, "--judged", str(judged)]
    found = json.loads(added(*command, "--json", "--require", "ndcg=0.6", "--require", "mrr=0.5").output)
    assert (found["judged"], found["among"]) == (30, None)
    assert 0.6 <= found["models"][1]["ndcg"] <= 1.0
    assert "ndcg is 0." in added(*command, "--require", "ndcg=1", code=1).output


def test_after_a_subset_both_are_ranked_on_the_rows_that_both_have(added: Run, tmp_path: Path) -> None:
    added("migrate", "--to", SMALL, "--subset", "40")
    judged = tmp_path / "judged.jsonl"
    queries = [{"query": " ".join(text.split()[:15]), "relevant": {f"k{place}": 1}} for place, text in enumerate(TEXTS)]
    judged.write_text("\n".join(json.dumps(query) for query in queries), encoding="utf-8")
    found = json.loads(added("compare", "--from", LARGE, "--to", SMALL, "--judged", str(judged), "--json").output)
    assert (found["judged"], found["among"]) == (40, 40)
    large, small = found["models"]
    assert large["ndcg"] > 0.7
    assert small["ndcg"] > 0.7


def test_two_models_are_shadowed_by_the_text_that_is_asked(
    added: Run, embedded_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    added("migrate", "--to", SMALL)
    settings = {"database_url": embedded_url, "vector_backend": "pgvector", "vector_mode": "shadow"}
    with closing(get_vector_store(Settings.load(**settings, shadow_model=SMALL))) as store:
        texts = TextStore(store, lambda _: pytest.fail("embedded here"), lambda _: pytest.fail("embedded here"))
        hits = texts.search(QUESTION, 5)
        assert store.query(embedder(256).embed([QUESTION])[0], top_k=5) == hits
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT secondary_store, hits, overlap, query FROM shadow_query")).all()
    assert [(row.secondary_store, row.hits, row.query) for row in found] == [(SMALL, 5, [])]
    assert 0 < found[0].overlap <= 1
    with pytest.raises(ConfigError, match="AMPRENTA_SHADOW_MODEL is 'x': two models of one table are compared"):
        get_vector_store(Settings.load(database_url=embedded_url, vector_backend="pgvector", shadow_model="x"))


def test_a_column_that_no_model_has_is_named_with_the_command_that_adds_one(
    embedded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", embedded_url)
    monkeypatch.setenv("AMPRENTA_TABLE", "rag_chunks.embedding_999")
    result = CliRunner().invoke(main, ["index", "build"])
    assert result.exit_code == 2
    assert "column rag_chunks.embedding_999 does not exist" in result.output
    assert "AMPRENTA_TABLE=rag_chunks amprenta-vectors models list" in result.output
    listed = CliRunner().invoke(main, ["models", "list"])
    assert listed.exit_code == 2
    assert "AMPRENTA_TABLE=rag_chunks" in listed.output


def test_a_switch_without_an_index_is_refused_with_the_command_that_builds_it(added: Run, engine: sa.Engine) -> None:
    added("migrate", "--to", SMALL)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding_128_hnsw"))
    refused = added("switch", SMALL, code=2).output
    assert "no valid index serves on column embedding_128" in refused
    assert "AMPRENTA_TABLE=rag_chunks.embedding_128 amprenta-vectors index build" in refused
    built = CliRunner().invoke(main, ["index", "build"], env={"AMPRENTA_TABLE": "rag_chunks.embedding_128"})
    assert built.exit_code == 0, built.output
    added("switch", SMALL)


def test_a_switch_says_that_the_way_back_to_a_second_store_closes(added: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    added("migrate", "--to", SMALL)
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    monkeypatch.setenv("VECTOR_MODE", "dual")
    monkeypatch.setenv("VECTOR_SECONDARY", "pinecone")
    assert "the way back to it closes" in added("switch", SMALL, code=2).output
    assert (
        "forced: VECTOR_SECONDARY pinecone has vectors of the former model" in added("switch", SMALL, "--force").output
    )


def test_an_embedder_of_another_dimension_than_it_says_is_named(
    added: Run, store: PgVectorStore, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE embedding_models SET dimension = 64 WHERE model_name = :name"), {"name": SMALL}
        )
    registered = store.models.now().chosen(SMALL).model
    with pytest.raises(DimensionMismatch, match="embedding dimension mismatch: wordllama gives 128 dimensions"):
        ModelEmbedder(registered, embedder(128))


def test_a_provider_that_is_down_in_the_middle_is_waited_for(
    added: Run, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, calls = ModelEmbedder.embed, list[int]()

    def flaky(self: ModelEmbedder, texts: Sequence[str]) -> Any:
        calls.append(len(texts))
        if len(calls) in (2, 3):
            raise TransientError("the provider is down")
        return embed(self, texts)

    monkeypatch.setattr(ModelEmbedder, "embed", flaky)
    added("migrate", "--to", SMALL, "--batch-size", "50")
    assert len(calls) > 4
    assert column(engine, "embedding_128 IS NULL") == [False] * len(TEXTS)


def test_a_table_of_ones_own_changes_its_model_too(
    run: Run, embedded_url: str, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = tmp_path / "amprenta.toml"
    declared.write_text(
        '[tables.notes]\ntable = "notes"\nschema = "app"\nkey = "id"\nscope = "tenant"\nembedding = "vec"\n'
        'storage = "halfvec"\ndimension = 256\ntext_columns = ["title", "body"]\nsource = "rows"\n'
    )
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA app"))
        connection.execute(
            sa.text(
                "CREATE TABLE app.notes (tenant text, id bigint, title text, body text, vec halfvec(256), "
                "PRIMARY KEY (tenant, id))"
            )
        )
        rows = [
            {
                "tenant": f"t{place % 2}",
                "id": place,
                "title": f"note {place}",
                "body": text,
                "vec": str(vector.tolist()),
            }
            for place, (text, vector) in enumerate(zip(TEXTS[:40], embedder(256).embed(TEXTS[:40]), strict=True))
        ]
        insert = "INSERT INTO app.notes VALUES (:tenant, :id, :title, :body, CAST(:vec AS halfvec))"
        connection.execute(sa.text(insert), rows)
    monkeypatch.setenv("AMPRENTA_CONFIG", str(declared))
    monkeypatch.setenv("AMPRENTA_TABLE", "notes")
    run("add", LARGE, "--provider", "wordllama", "--column", "vec")
    run("add", SMALL, "--provider", "wordllama", "--dimension", "128", "--storage", "halfvec")
    run("migrate", "--to", SMALL)
    run("switch", SMALL)
    store = open_pgvector_store(Settings.load(database_url=embedded_url, namespace="t1"))
    hits = store.search(QUESTION, top_k=30)
    assert len(hits) == 20
    assert all(int(hit.key) % 2 for hit in hits)
    store.close()
    run("switch", LARGE, "--force")
    run("retire", SMALL)
