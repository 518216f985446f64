"""Two models never share a column and scope: a second one is refused, an unknown one is checked where it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, environment, execute, run_job, stored, to_ids, to_job, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.backfill.verify.model_check import median_cosine
from amprenta_vectors.batch import Vectors
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import MODEL, WordLlamaEmbedder
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.keymaps import Identity
from amprenta_vectors.schema.slice import Slice

StartEmulator = Callable[..., PineconeEmulator]
IDS = to_ids(120)
VERBS = ("open", "close", "sort", "hide")
THINGS = ("file", "socket", "window", "list", "door", "shop")
PLACES = ("Python", "Paris", "a hurry", "the dark", "C")
TEXTS = [f"How to {verb} a {thing} in {place}" for verb in VERBS for thing in THINGS for place in PLACES]


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """What wordllama makes of the texts."""
    return WordLlamaEmbedder().embed(TEXTS)


@pytest.fixture
def wide(database_url: str) -> Iterator[sa.Engine]:
    """A database whose column is as wide as wordllama's vectors."""
    settings = Settings.load(database_url=database_url, vector_dimension=MODEL.dimension)
    upgrade(settings)
    engine = create_engine(settings)
    yield engine
    engine.dispose()


def index_of(emulator: StartEmulator, vectors: Vectors, *, with_texts: bool = True) -> PineconeEmulator:
    pinecone = emulator(dimension=MODEL.dimension)
    pinecone.load("", IDS, vectors, [{"text": text} if with_texts else {} for text in TEXTS])
    return pinecone


def run(url: str, pinecone: PineconeEmulator, *arguments: str, code: int = 0, **more: str) -> Result:
    variables: Mapping[str, str] = environment(url, pinecone, **more)
    result = CliRunner().invoke(main, ["backfill", "--no-verify", *arguments], env=dict(variables))
    assert result.exit_code == code, result.output
    return result


def blurred(vectors: Vectors) -> Vectors:
    """As a server in half precision gives them."""
    return vectors.astype(np.float16).astype(np.float32)


def test_vectors_of_an_unknown_model_pass_where_their_texts_embedded_again_are_the_same(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    pinecone = index_of(emulator, blurred(vectors))
    output = run(database_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama").output
    assert "50 texts of the source embedded again by wordllama-l2-supercat: median cosine 1.0000" in output
    assert len(stored(wide)) == 120


def test_vectors_of_another_model_end_the_command_before_anything_is_written(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    pinecone = index_of(emulator, to_vectors(120, MODEL.dimension))
    output = run(database_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama", code=2).output
    assert "the vectors of the source are not from wordllama-l2-supercat: of 50 texts" in output
    assert "expected at least 0.99" in output
    assert "EMBEDDING_MODEL" in output
    assert stored(wide) == {}
    assert execute(wide, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(0,)]


def test_a_few_changed_texts_do_not_stop_a_run(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    changed = vectors.copy()
    changed[::3] = to_vectors(40, MODEL.dimension)
    pinecone = index_of(emulator, changed)
    run(database_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama")
    assert len(stored(wide)) == 120


@pytest.mark.parametrize("right", [True, False])
def test_rows_of_the_table_give_the_texts_where_the_source_has_none(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors, right: bool
) -> None:
    pinecone = index_of(emulator, vectors if right else to_vectors(120, MODEL.dimension), with_texts=False)
    rows = [{"key": key, "text": text} for key, text in zip(IDS, TEXTS, strict=True)]
    with wide.begin() as connection:
        insert = sa.text("INSERT INTO rag_chunks (namespace, chunk_id, content) VALUES ('', :key, :text)")
        connection.execute(insert, rows)
    output = run(database_url, pinecone, AMPRENTA_EMBEDDER="wordllama", code=0 if right else 2).output
    assert ("median cosine 1.0000" in output) is right
    assert len(stored(wide)) == (120 if right else 0)


def test_a_run_of_a_declared_model_asks_for_no_text(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    pinecone = index_of(emulator, to_vectors(120, MODEL.dimension))
    output = run(
        database_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama", EMBEDDING_MODEL="other"
    ).output
    assert "embedded again" not in output
    assert "unknown" not in output


def fill(engine: sa.Engine, vectors: Vectors, model: str | None = None) -> None:
    """Rows that an application wrote, texts and vectors."""
    rows = [
        {"key": f"own-{key}", "text": text, "vector": str(vector.tolist()), "model": model}
        for key, text, vector in zip(IDS, TEXTS, vectors, strict=True)
    ]
    with engine.begin() as connection:
        insert = sa.text(
            "INSERT INTO rag_chunks (namespace, chunk_id, content, embedding, embedding_model) "
            "VALUES ('', :key, :text, CAST(:vector AS vector), :model)"
        )
        connection.execute(insert, rows)


@pytest.mark.parametrize("right", [True, False])
def test_vectors_that_no_run_wrote_are_embedded_again_too(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors, right: bool
) -> None:
    fill(wide, vectors if right else to_vectors(120, MODEL.dimension))
    pinecone = index_of(emulator, vectors)
    arguments = {"AMPRENTA_EMBEDDER": "wordllama", "EMBEDDING_MODEL": MODEL.name}
    output = run(database_url, pinecone, "--keys-from", "source", code=0 if right else 2, **arguments).output
    if right:
        assert "50 texts of rag_chunks.embedding embedded again" in output
    else:
        assert "the vectors of rag_chunks.embedding are not from wordllama-l2-supercat" in output


def test_without_an_embedder_an_unknown_model_is_a_notice(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    pinecone = index_of(emulator, vectors)
    output = run(database_url, pinecone, "--keys-from", "source").output
    (line,) = [line for line in output.splitlines() if "unknown" in line]
    assert "unchecked" in line
    assert "EMBEDDING_MODEL" in line
    assert "AMPRENTA_EMBEDDER" in line
    assert len(stored(wide)) == 120


def test_texts_that_are_not_there_are_a_notice(
    database_url: str, wide: sa.Engine, emulator: StartEmulator, vectors: Vectors
) -> None:
    pinecone = index_of(emulator, vectors, with_texts=False)
    output = run(database_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama").output
    assert "fewer than 5 texts" in output


def test_an_embedder_of_another_dimension_is_an_error_that_names_both(
    upgraded_url: str, emulator: StartEmulator
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, to_vectors(120))
    output = run(upgraded_url, pinecone, "--keys-from", "source", AMPRENTA_EMBEDDER="wordllama", code=2).output
    assert "256 dimensions" in output
    assert "has 8" in output


def test_an_embedder_that_is_none_is_an_error_that_lists_them(upgraded_url: str, emulator: StartEmulator) -> None:
    output = run(upgraded_url, emulator(), AMPRENTA_EMBEDDER="nonesuch", code=2).output
    assert "AMPRENTA_EMBEDDER" in output
    assert "wordllama" in output


def a_stub() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, to_vectors(120), strict=True)})


def test_a_model_that_rows_name_and_no_run_wrote_is_refused_to_a_run_of_another(engine: sa.Engine) -> None:
    fill(engine, to_vectors(120), "m0")
    with pytest.raises(RunConflict, match="holds vectors of model m0; this run is m1"):
        run_job(engine, to_job(engine, a_stub(), model="m1"))
    assert run_job(engine, to_job(engine, a_stub(), model="m0")).counts.written == 120


def test_the_model_of_another_scope_is_no_matter(engine: sa.Engine) -> None:
    fill(engine, to_vectors(120), "m0")
    assert run_job(engine, to_job(engine, a_stub(), namespace="other", model="m1")).counts.written == 120


def test_rows_that_name_a_model_and_hold_no_vector_are_no_matter(engine: sa.Engine) -> None:
    fill(engine, to_vectors(120), "m0")
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id <> :key", key=f"own-{IDS[0]}")
    execute(engine, "UPDATE rag_chunks SET embedding_model = NULL WHERE chunk_id = :key", key=f"own-{IDS[0]}")
    assert run_job(engine, to_job(engine, a_stub(), model="m1")).counts.written == 120


def test_some_rows_are_found_by_the_index_whatever_the_size_of_the_table(engine: sa.Engine) -> None:
    from amprenta_vectors.backfill.verify.row_sample import models_in_rows, some_rows

    execute(
        engine,
        "INSERT INTO rag_chunks (namespace, chunk_id, content) "
        "SELECT 'n' || g % 3, g::text, '' FROM generate_series(1, 60000) g",
    )
    execute(engine, "ANALYZE rag_chunks")
    table = to_job(engine, a_stub()).slice.table
    rows = sa.select(some_rows(Slice(table, {"namespace": "n1"}, Identity())))
    compiled = rows.compile(engine)
    with engine.connect() as connection:
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params).scalars())
        assert "Seq Scan" not in plan
        assert "Sort" not in plan
        assert models_in_rows(connection, Slice(table, {"namespace": "n1"}, Identity())) == set()


def test_the_median_is_of_cosines_and_a_vector_without_direction_has_none() -> None:
    left = np.array([[1, 0], [0, 2], [3, 3], [0, 0]], np.float32)
    assert median_cosine(left[:3], left[:3] * np.float32(5)) == pytest.approx(1.0)
    assert median_cosine(left[3:], left[3:]) == 0.0
    assert median_cosine(left[:1], left[1:2]) == 0.0
