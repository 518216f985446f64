"""A table without a column for the namespace holds one: every other one is an error, wherever a scope is used."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, environment, execute, run_job, stored, to_ids, to_job, to_vectors
from click.testing import CliRunner

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, RunConflict, SchemaMismatch
from amprenta_vectors.integrations.langchain import AmprentaVectorStore
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS, VECTOR_DOCUMENTS
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

VECTORS = to_vectors(6)
IDS = to_ids(6)


@pytest.fixture
def single(engine: sa.Engine) -> sa.Engine:
    """``rag_chunks`` as an application without namespaces has it."""
    execute(engine, "ALTER TABLE rag_chunks DROP COLUMN namespace")
    execute(engine, "CREATE UNIQUE INDEX ON rag_chunks (chunk_id)")
    return engine


def source(namespace: str | None, *, identity: str = "stub") -> StubSource:
    stub = StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}, identity=identity)
    stub.description = replace(stub.description, namespace=namespace)
    return stub


def open_store(engine: sa.Engine, namespace: str) -> PgVectorStore:
    return PgVectorStore(engine, RAG_CHUNKS, {"namespace": namespace})


def calls(store: PgVectorStore) -> list[Callable[[], Any]]:
    return [
        lambda: store.query(VECTORS[0]),
        lambda: store.fetch(IDS),
        lambda: store.count(),
        lambda: store.delete(IDS),
        lambda: store.upsert([Record(IDS[0], VECTORS[1])]),
        lambda: store.scores(VECTORS[0], IDS),
        lambda: store.sample(3),
    ]


def test_the_namespace_that_the_first_run_recorded_is_the_one_it_holds(single: sa.Engine) -> None:
    run_job(single, to_job(single, source("a"), limit=3))
    before = stored(single)
    for mode in ("new", "resume", "restart"):
        with pytest.raises(ConfigError, match="holds 'a', as run 1 recorded; the namespace asked for is 'b'"):
            run_job(single, to_job(single, source("b")), mode)  # type: ignore[arg-type]
    for keys_from in ("reconcile", "table"):
        with pytest.raises(ConfigError, match="holds 'a'"):
            run_job(single, to_job(single, source("b"), keys_from=keys_from))  # type: ignore[arg-type]
    for other in ("b", ""):
        for call in calls(open_store(single, other)):
            with pytest.raises(ConfigError, match="holds 'a'"):
                call()
    assert stored(single) == before
    assert open_store(single, "a").count() == 3
    run_job(single, to_job(single, source("a")))
    assert len(stored(single)) == 6


def test_where_nothing_was_recorded_the_default_is_taken_and_any_other_is_refused(single: sa.Engine) -> None:
    execute(single, "INSERT INTO rag_chunks (chunk_id, embedding) VALUES ('k', :v)", v=str(VECTORS[0].tolist()))
    assert open_store(single, "").count() == 1
    assert open_store(single, "__default__").count() == 1
    for call in calls(open_store(single, "b")):
        with pytest.raises(ConfigError, match="nothing says that it holds 'b'") as refused:
            call()
    assert 'holds = "b" under [tables.rag_chunks]' in str(refused.value.hint)


@pytest.mark.parametrize("other", ["line\nbreak", "tab\t", "bell\a", "del\x7f", 'quo"te', "back\\slash"])
def test_the_hint_can_be_typed_whatever_the_namespaces_are(single: sa.Engine, other: str) -> None:
    held = "it's $HOME `id`"
    run_job(single, to_job(single, source(held), limit=3))
    with pytest.raises(ConfigError) as refused:
        open_store(single, other).count()
    variable, option, rest = re.split(r", or |; if it holds the other one by now: ", str(refused.value.hint))
    shell = ["sh", "-c", f'{variable}; echo "$PINECONE_NAMESPACE"; printf "%s\\n" {option}']
    assert subprocess.check_output(shell, text=True).splitlines() == [held, "--namespace", held]
    assert tomllib.loads(rest.partition(" under ")[0]) == {"holds": other}


def test_a_run_that_wrote_nothing_records_nothing_that_binds(single: sa.Engine) -> None:
    run_job(single, to_job(single, source("a"), keys_from="table"))
    assert stored(single) == {}
    run_job(single, to_job(single, source("b")))
    assert open_store(single, "b").count() == 6


def test_a_second_source_into_one_slice_is_refused_by_name_unless_asked_for(single: sa.Engine) -> None:
    run_job(single, to_job(single, source(None, identity="one"), limit=3))
    for keys_from in ("source", "reconcile"):
        with pytest.raises(RunConflict, match="holds vectors of one; this run is of two"):
            run_job(single, to_job(single, source(None, identity="two"), keys_from=keys_from))  # type: ignore[arg-type]
    run_job(single, to_job(single, source(None, identity="two")), "restart")
    assert len(stored(single)) == 6
    # That is the source by now.
    run_job(single, to_job(single, source(None, identity="two"), keys_from="reconcile"))


def test_documents_without_their_owner_are_refused(documents_url: str) -> None:
    engine = sa.create_engine(sa.make_url(documents_url).set(drivername="postgresql+psycopg2"))
    execute(engine, "ALTER TABLE vector_documents DROP COLUMN user_id CASCADE")
    with engine.connect() as connection, pytest.raises(SchemaMismatch, match="no column user_id"):
        resolve_table(connection, VECTOR_DOCUMENTS)
    store = PgVectorStore(engine, VECTOR_DOCUMENTS, {"user_id": "a", "collection_name": "c"})
    with pytest.raises(SchemaMismatch, match="no column user_id, which every read and write binds"):
        store.count()
    engine.dispose()


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    started = emulator()
    for namespace in ("a", "b"):
        started.load(namespace, IDS, VECTORS)
    return started


def run(variables: dict[str, str], *arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments), env=variables)


def test_every_command_takes_the_namespace_it_holds_and_no_other(
    single: sa.Engine, upgraded_url: str, pinecone: PineconeEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = environment(upgraded_url, pinecone, VECTOR_BACKEND="pgvector", VECTOR_DIMENSION="8")
    assert run(there, "backfill", "--keys-from", "source", "--namespace", "a").exit_code == 0
    for namespace, code in (("a", 0), ("b", 2)):
        variables = {**there, "PINECONE_NAMESPACE": namespace}
        for arguments in (
            ["backfill", "--resume", "--keys-from", "source"],
            ["verify"],
            ["reconcile", "--dry-run"],
            ["reconcile"],
            ["canary"],
        ):
            done = run(variables, *arguments)
            assert done.exit_code == code, (arguments, done.output)
            if code:
                assert "holds 'a'" in done.output
                assert "export PINECONE_NAMESPACE=a, or" in done.output
        found = [each["found"] for each in json.loads(run(variables, "doctor", "--json").output)["findings"]]
        assert any("holds 'a'" in each for each in found) == bool(code)
    settings = Settings.load(database_url=upgraded_url, vector_backend="pgvector", namespace="b")
    chain = AmprentaVectorStore(Texts(), get_vector_store(settings))  # type: ignore[arg-type]
    for call in (lambda: chain.similarity_search("x"), lambda: chain.delete(IDS), lambda: chain.add_texts(["x"])):
        with pytest.raises(ConfigError, match="holds 'a'"):
            call()
    # What the hint says to type beside it.
    Path("amprenta.toml").write_text('[tables.rag_chunks]\nholds = "b"\n')
    store = get_vector_store(settings)
    assert store.count() == 6
    store.close()


class Texts:
    """An embedder that gives everything one vector."""

    def embed_query(self, text: str) -> list[float]:
        return VECTORS[0].tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTORS[0].tolist() for _ in texts]
