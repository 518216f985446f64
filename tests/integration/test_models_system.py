"""The models system: documents in chunks, each with a row a model, taken in, searched, and moved to other models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from embedded_rows import TEXTS

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import ConfigError, SchemaMismatch
from amprenta_vectors.systems.models import Database, IngestionService, Retriever
from amprenta_vectors.systems.models.ingestion import DocumentNotFound

Answer = TypeVar("Answer")
LARGE, MIDDLE, SMALL = "wordllama-256", "wordllama-128", "wordllama-64"
DOCUMENTS = {f"Topic {number}": "\n\n".join(TEXTS[number * 10 : number * 10 + 10]) for number in range(6)}
QUESTION = "how is an exception handled in a try statement"


class System:
    """The services on one database, called as a test calls what does not await."""

    def __init__(self, url: str) -> None:
        self.db = Database(Settings.load(database_url=url))
        self.ingestion = IngestionService(self.db)
        self.retriever = Retriever(self.db)
        self._loop = asyncio.new_event_loop()

    def __call__(self, awaited: Awaitable[Answer]) -> Answer:
        async def whole() -> Answer:
            return await awaited

        return self._loop.run_until_complete(whole())

    def close(self) -> None:
        self(self.db.close())
        self._loop.close()


@pytest.fixture
def system(models_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    monkeypatch.setattr("amprenta_vectors.stores.pgvector.models.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("amprenta_vectors.moves.models.migrating.SEEN_SECONDS", 0.0)
    opened = System(models_url)
    yield opened
    opened.close()


@pytest.fixture
def engine(models_url: str) -> Iterator[sa.Engine]:
    made = create_engine(Settings.load(database_url=models_url))
    yield made
    made.dispose()


@pytest.fixture
def run(models_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DATABASE_URL", models_url)
    monkeypatch.setenv("AMPRENTA_TABLE", "chunk_embeddings")

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def models(run: Callable[..., Result]) -> Callable[..., Result]:
    """Three models, of which the first is searched and the last is not written."""
    for name, dimension in ((LARGE, "256"), (MIDDLE, "128"), (SMALL, "64")):
        run("models", "add", name, "--provider", "wordllama", "--dimension", dimension)
    return run


def rows(engine: sa.Engine, statement: str) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


def ingest(system: System, **options: Any) -> list[str]:
    return [
        system(system.ingestion.ingest_document(title=title, content=content, **options))
        for title, content in DOCUMENTS.items()
    ]


def test_a_document_is_taken_in_by_every_model_that_is_written_and_found(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    system(system.db.initialize())
    assert system(system.db.get_supported_dimensions()) == [64, 128, 256]
    ids = ingest(system)
    chunks = rows(engine, "SELECT count(*) FROM chunks")[0][0]
    assert chunks > len(ids)
    counted = """
        SELECT em.model_name, em.dimension, COUNT(ce.id) as count FROM embedding_models em
        LEFT JOIN chunk_embeddings ce ON ce.model_id = em.id GROUP BY em.model_name, em.dimension ORDER BY dimension
    """
    assert rows(engine, counted) == [(SMALL, 64, chunks), (MIDDLE, 128, chunks), (LARGE, 256, chunks)]
    found = system(system.retriever.search(query=QUESTION))
    assert len(found) == 5
    assert found[0].models == (LARGE,)
    assert found[0].title in DOCUMENTS
    assert found[0].text in DOCUMENTS[found[0].title]
    assert found[0].document_id in ids


def test_the_guides_query_for_dimensions_finds_columns_of_embeddings_alone(
    models: Callable[..., Result], engine: sa.Engine
) -> None:
    found = rows(
        engine,
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'chunk_embeddings' "
        "AND column_name LIKE 'embedding_%' ORDER BY column_name",
    )
    assert found == [("embedding_128",), ("embedding_256",), ("embedding_64",)]


def test_documents_are_moved_to_a_model_by_a_run_and_queries_are_switched(
    run: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    run("models", "add", LARGE, "--provider", "wordllama", "--dimension", "256")
    ingest(system)
    run("models", "add", MIDDLE, "--provider", "wordllama", "--dimension", "128")
    refused = run("models", "switch", MIDDLE, code=2)
    assert "rows with a text are neither embedded as it is now nor quarantined" in refused.output
    status = system(system.ingestion.migrate_to_new_model(source_model=LARGE, target_model=MIDDLE))
    assert status.embedded == status.chunks > 0
    run("models", "switch", MIDDLE)
    assert system(system.retriever.search(query=QUESTION))[0].models == (MIDDLE,)
    indexes = rows(
        engine, "SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'idx_embeddings%' ORDER BY indexname"
    )
    assert [name for name, _ in indexes] == ["idx_embeddings_hnsw_128"]
    assert "WHERE (model_id = 2)" in indexes[0][1]
    # What comes in from now on needs no run.
    system(system.ingestion.ingest_document(title="later", content="coroutines are awaited"))
    assert system(system.retriever.search(query="coroutines are awaited"))[0].title == "later"


def test_one_document_is_embedded_again_by_another_model(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE model_column SET written = false WHERE NOT searched"))
    [first, *_] = ingest(system)
    before = system(system.ingestion.document_embeddings(first))
    assert [(each.model, each.embedded > 0) for each in before] == [(LARGE, True), (MIDDLE, False), (SMALL, False)]
    status = system(system.ingestion.update_document_embeddings(document_id=first, model_name=SMALL))
    assert (status.model, status.embedded) == (SMALL, status.chunks)
    found = system(system.retriever.search(query=QUESTION, model_name=SMALL))
    assert {each.document_id for each in found} == {first}
    with pytest.raises(DocumentNotFound, match="there is no document 'policy-123'"):
        system(system.ingestion.update_document_embeddings(document_id="policy-123"))
    with pytest.raises(ConfigError, match="'nobody' is no registered model; registered: wordllama-256, wordllama-128"):
        system(system.ingestion.update_document_embeddings(document_id=first, model_name="nobody"))


def test_several_models_are_searched_by_the_ranks_in_each(models: Callable[..., Result], system: System) -> None:
    ingest(system)
    names = [LARGE, SMALL]
    lists = {name: system(system.retriever.search(query=QUESTION, model_name=name, top_k=20)) for name in names}
    found = system(system.retriever.search_multi_model(query=QUESTION, model_names=names))
    for each in found:
        ranks = [[hit.chunk_id for hit in lists[name]].index(each.chunk_id) + 1 for name in each.models]
        assert each.score == pytest.approx(sum(1 / (60 + rank) for rank in ranks))
    both = system(
        system.retriever.search_multi_model(query=QUESTION, model_names=names, aggregation="intersection", top_k=20)
    )
    assert both
    assert all(each.models == (LARGE, SMALL) for each in both)
    with pytest.raises(ConfigError, match="aggregation is 'sum'"):
        system(system.retriever.search_multi_model(query="x", model_names=names, aggregation="sum"))  # type: ignore[arg-type]


def test_two_models_of_one_dimension_share_a_column_each_with_an_index_of_its_own(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    models(
        "models", "add", "prefixed", "--provider", "wordllama", "--dimension", "64", "--parameter", "text_prefix=a: "
    )
    ingest(system)
    for name in (SMALL, "prefixed"):
        models("models", "migrate", "--to", name)
    indexes = rows(engine, "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx_embeddings%64%' ORDER BY 1")
    assert indexes == [("idx_embeddings_hnsw_64",), ("idx_embeddings_hnsw_64_2",)]
    with engine.begin() as connection:
        # So few rows would be read one by one.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        by_model = "SELECT chunk_id FROM chunk_embeddings WHERE model_id = 4 ORDER BY embedding_64 <=> (SELECT "
        by_model += "embedding_64 FROM chunk_embeddings WHERE model_id = 3 LIMIT 1) LIMIT 5"
        plan = "\n".join(connection.execute(sa.text(f"EXPLAIN {by_model}")).scalars())
    assert "idx_embeddings_hnsw_64_2" in plan
    own = {name: system(system.retriever.search(query=QUESTION, model_name=name)) for name in (SMALL, "prefixed")}
    assert [each.score for each in own[SMALL]] != [each.score for each in own["prefixed"]]
    models("models", "retire", "prefixed")
    left = rows(engine, "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'idx_embeddings%64%'")
    assert left == [("idx_embeddings_hnsw_64",)]
    assert system(system.retriever.search(query=QUESTION, model_name=SMALL)) == own[SMALL]


def test_a_document_that_is_deleted_while_it_is_embedded_leaves_nothing(
    models: Callable[..., Result], system: System, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_] = ingest(system)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM chunk_embeddings"))
    embed = system.ingestion._embed

    async def slow(*arguments: Any) -> Any:
        vectors = await embed(*arguments)
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM documents WHERE id = CAST(:id AS uuid)"), {"id": first})
        return vectors

    monkeypatch.setattr(system.ingestion, "_embed", slow)
    with pytest.raises(DocumentNotFound):
        system(system.ingestion.update_document_embeddings(document_id=first))
    assert rows(engine, "SELECT count(*) FROM chunk_embeddings") == [(0,)]


def test_a_failed_ingestion_leaves_no_document(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    with pytest.raises(ConfigError, match="'nobody' is no registered model"):
        ingest(system, embedding_model="nobody")
    with pytest.raises(ConfigError, match="the content has no words"):
        system(system.ingestion.ingest_document(title="empty", content=" \n-- "))
    assert rows(engine, "SELECT count(*) FROM documents") == [(0,)]


def test_a_unique_index_on_the_chunk_alone_is_named(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE chunk_embeddings ADD CONSTRAINT one_a_chunk UNIQUE (chunk_id)"))
    with pytest.raises(SchemaMismatch, match=r"unique index one_a_chunk on \(chunk_id\) alone") as caught:
        ingest(system)
    assert "ALTER TABLE chunk_embeddings DROP CONSTRAINT one_a_chunk" in caught.value.hint
    assert "unique index one_a_chunk" in models("models", "migrate", "--to", SMALL, code=2).output


def test_queries_by_a_retired_model_are_errors_and_its_rows_are_kept(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    ingest(system)
    models("models", "retire", SMALL)
    with pytest.raises(ConfigError, match="'wordllama-64' is no registered model"):
        system(system.retriever.search(query=QUESTION, model_name=SMALL))
    kept = rows(engine, "SELECT count(embedding_64_retired) FROM chunk_embeddings")
    assert kept == rows(engine, "SELECT count(*) FROM chunks")
    assert system(system.retriever.search(query=QUESTION))


def test_purge_drops_the_rows_of_one_model_alone(
    models: Callable[..., Result], system: System, engine: sa.Engine
) -> None:
    ingest(system)
    chunks = rows(engine, "SELECT count(*) FROM chunks")[0][0]
    models("models", "retire", SMALL, "--purge")
    counted = (
        "SELECT m.model_name, count(*) FROM chunk_embeddings JOIN embedding_models m ON m.id = model_id GROUP BY 1"
    )
    assert sorted(rows(engine, counted)) == [(MIDDLE, chunks), (LARGE, chunks)]
    assert rows(engine, "SELECT model_name FROM embedding_models ORDER BY 1") == [(MIDDLE,), (LARGE,)]
    assert system(system.db.get_supported_dimensions()) == [128, 256]
    assert system(system.retriever.search(query=QUESTION))


def test_the_doctor_looks_at_the_column_of_each_model_and_at_the_rows_of_it_alone(
    models: Callable[..., Result], system: System, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    ingest(system)
    deferred = models("doctor").output
    for dimension in (256, 128, 64):
        assert f"AMPRENTA_TABLE=chunk_embeddings.embedding_{dimension} amprenta-vectors index build" in deferred
    assert "does not exist" not in deferred
    assert "have no embedding" not in deferred
    for dimension in (256, 128, 64):
        monkeypatch.setenv("AMPRENTA_TABLE", f"chunk_embeddings.embedding_{dimension}")
        models("index", "build")
    monkeypatch.setenv("AMPRENTA_TABLE", "chunk_embeddings")
    assert "missing index" not in models("doctor").output
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_embeddings_hnsw_64"))
    assert "AMPRENTA_TABLE=chunk_embeddings.embedding_64 amprenta-vectors index build" in models("doctor").output
    monkeypatch.setenv("AMPRENTA_TABLE", "chunk_embeddings.embedding_64")
    models("index", "build")
    monkeypatch.setenv("AMPRENTA_TABLE", "chunk_embeddings")
    assert "missing index" not in models("doctor").output
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE chunk_embeddings SET embedding_64 = NULL WHERE model_id = 3"))
    chunks = rows(engine, "SELECT count(*) FROM chunks")[0][0]
    output = models("doctor", code=1).output
    assert f"{chunks} of {chunks} rows of chunk_embeddings have no embedding" in output
    assert f"mend: amprenta-vectors models migrate --to {SMALL};" in output
