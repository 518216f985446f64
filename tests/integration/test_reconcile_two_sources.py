"""Reconcile in a table whose embeddings come from two places: from a source, and from the rows' own texts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    StubSource,
    add_rows,
    errors_of,
    execute,
    expected,
    on_the_wire,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backends.rows.source import RowsSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.reconcile.dry_run import DryRun
from amprenta_vectors.batch import Vectors
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.moves.verification import verify_job
from amprenta_vectors.schema.hashes import hash_content, hash_text, is_of_text, to_bigint
from amprenta_vectors.schema.keymaps import LookUp, OwnKeys
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable

IDS, VECTORS, OTHER = to_ids(20), to_vectors(20), to_vectors(20, seed=1)
GOODS = VectorTable(
    name="goods",
    table="goods",
    key=("id",),
    dimension=8,
    hash="kept",
    text_hash="text_kept",
    text_columns=("title", "brand"),
    key_rule=KeyRule("lookup", lookup="ref"),
    declared=True,
)


class Embedder:
    """Vectors by a text's hash; keeps what it is asked for."""

    model = Model("counting", 8, "test")

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        return np.concatenate([to_vectors(1, seed=to_bigint(hash_text(text)) % 2**32) for text in texts])


@pytest.fixture
def goods(engine: sa.Engine) -> VectorTable:
    """20 rows of an application's own, none embedded; what a source calls them stands beside their keys."""
    execute(
        engine,
        "CREATE TABLE goods (id text PRIMARY KEY, ref text, title text, brand text, embedding vector(8), kept bigint, "
        "text_kept bigint)",
    )
    execute(
        engine,
        "INSERT INTO goods (id, ref, title, brand) SELECT 'row-' || r, r, 'title ' || r, 'brand' "
        "FROM unnest(CAST(:ids AS text[])) r",
        ids=IDS,
    )
    return to_job(engine, stub({}), table=GOODS).slice.table


def stub(records: dict[str, Vectors]) -> StubSource:
    return StubSource({key: [vector] for key, vector in records.items()})


def from_rows(engine: sa.Engine, table: VectorTable, embedder: Embedder, **changes: Any) -> Summary:
    source = RowsSource(engine, table, dict.fromkeys(table.scope, ""), embedder, 20)
    job = to_job(engine, source, table=table, key_map=OwnKeys(["text"]), **changes)
    return run_job(engine, job, "resume" if job.kind.keys_from == "reconcile" else "new")


def from_source(engine: sa.Engine, table: VectorTable, source: Source, **changes: Any) -> Summary:
    job = to_job(engine, source, table=table, key_map=LookUp(engine, table, {}), **changes)
    return run_job(engine, job, "resume" if job.kind.keys_from == "reconcile" else "new")


def vectors_in(engine: sa.Engine) -> dict[str, bytes]:
    rows = execute(engine, "SELECT ref, vector_send(embedding) FROM goods WHERE embedding IS NOT NULL")
    return {ref: bytes(vector) for ref, vector in rows}


def test_what_was_embedded_here_is_not_the_sources_to_list_to_replace_or_to_empty(
    engine: sa.Engine, goods: VectorTable
) -> None:
    records = dict(zip(IDS[:12], VECTORS[:12], strict=True))
    from_source(engine, goods, stub(records))
    assert from_rows(engine, goods, Embedder(), keys_from="table").counts.written == 8
    before = vectors_in(engine)
    # Two records are gone, one has another vector, and one is of a row that was embedded here.
    changed = {**records, IDS[2]: OTHER[2], IDS[15]: OTHER[15]}
    source = stub({key: vector for key, vector in changed.items() if key not in IDS[:2]})
    key_map = LookUp(engine, goods, {})
    job = to_job(engine, source, table=goods, key_map=key_map, keys_from="reconcile", delete=True)
    would = DryRun(engine, job, retry=Backoff(5.0, threading.Event(), lambda _: None)).run()
    assert would.gone is not None
    assert (would.replaced, would.gone.gone, would.gone.emptied, would.quarantined) == (1, 2, 2, {"changed_here": 1})
    summary = from_source(engine, goods, source, keys_from="reconcile", delete=True)
    assert summary.gone is not None
    assert (summary.counts.replaced, summary.gone.gone, summary.gone.emptied) == (1, 2, 2)
    assert errors_of(engine, summary.run.id) == {IDS[15]: "changed_here"}
    after = vectors_in(engine)
    assert after == {**{key: before[key] for key in IDS[2:]}, IDS[2]: on_the_wire(OTHER[2])}
    # Settled by taking the source's value, which is none of the row's text any more.
    execute(engine, "UPDATE goods SET embedding = NULL WHERE ref = :ref", ref=IDS[15])
    assert from_source(engine, goods, source, keys_from="reconcile", delete=True).errors == {}
    assert execute(engine, "SELECT text_kept FROM goods WHERE ref = :ref", ref=IDS[15]) == [(None,)]
    assert not verify_job(engine, to_job(engine, source, table=goods, key_map=key_map)).unexpected


def test_an_applications_rows_that_were_embedded_here_keep_text_and_embedding_where_keys_are_made(
    engine: sa.Engine,
) -> None:
    add_rows(engine, IDS[:4])
    table = to_job(engine, stub({}), table=RAG_CHUNKS).slice.table
    from_rows(engine, table, Embedder(), keys_from="table", scope={"namespace": ""})
    own = stored(engine)
    run_job(engine, to_job(engine, stub(dict(zip(IDS[4:], VECTORS[4:], strict=True)))))
    # The source has two of the four.
    source = stub(dict(zip(IDS[2:], OTHER[2:], strict=True)))
    summary = run_job(engine, to_job(engine, source, keys_from="reconcile", delete=True), "resume")
    assert (summary.counts.replaced, summary.errors) == (16, {"changed_here": 2})
    assert stored(engine) == {**own, **expected(IDS[4:], OTHER[4:])}
    contents = execute(engine, "SELECT DISTINCT content FROM rag_chunks WHERE chunk_id = ANY(:keys)", keys=IDS[:4])
    assert contents == [("own text",)]
    # Nor does a pass over the rows embed what came with a text from elsewhere.
    embedder = Embedder()
    assert from_rows(engine, table, embedder, keys_from="reconcile", scope={"namespace": ""}).counts.written == 0
    assert embedder.texts == []
    # To verify what was embedded here is to look at that alone.
    rows = RowsSource(engine, table, {"namespace": ""}, embedder, 20)
    job = to_job(engine, rows, table=table, key_map=OwnKeys(["text"]))
    assert not verify_job(engine, job).unexpected
    # The four rows have one text.
    assert embedder.texts == ["own text"]


def test_texts_of_several_columns_are_embedded_again_once_where_they_changed(
    engine: sa.Engine, goods: VectorTable
) -> None:
    embedder = Embedder()
    from_rows(engine, goods, embedder, keys_from="table")
    embedder.texts.clear()
    assert from_rows(engine, goods, embedder, keys_from="reconcile").counts.written == 0
    execute(engine, "UPDATE goods SET brand = 'other' WHERE ref = :ref", ref=IDS[3])
    summary = from_rows(engine, goods, embedder, keys_from="reconcile")
    assert (summary.counts.written, summary.counts.replaced, summary.errors) == (1, 1, {})
    assert embedder.texts == [f"title {IDS[3]}\nother"]
    assert vectors_in(engine)[IDS[3]] == on_the_wire(Embedder().embed(embedder.texts)[0])
    assert from_rows(engine, goods, embedder, keys_from="reconcile").counts.written == 0
    assert len(embedder.texts) == 1


def test_a_table_without_rows_has_nothing_to_embed(engine: sa.Engine, goods: VectorTable) -> None:
    execute(engine, "DELETE FROM goods")
    assert from_rows(engine, goods, Embedder(), keys_from="reconcile").counts.written == 0


def test_a_row_that_names_no_record_any_more_is_not_asked_for(engine: sa.Engine, goods: VectorTable) -> None:
    records = dict(zip(IDS, VECTORS, strict=True))
    from_source(engine, goods, stub(records))
    execute(engine, "UPDATE goods SET ref = NULL WHERE ref = :ref", ref=IDS[0])
    source = stub({key: vector for key, vector in records.items() if key not in IDS[:2]})
    asked: list[str] = []
    source.before_fetch = asked.extend
    summary = from_source(engine, goods, source, keys_from="reconcile", delete=True)
    assert summary.gone is not None
    assert (summary.gone.emptied, None in asked) == (2, False)


def test_what_is_embedded_again_by_force_has_its_texts_hash_even_where_the_vector_is_the_same(
    engine: sa.Engine, goods: VectorTable
) -> None:
    from_rows(engine, goods, Embedder(), keys_from="table")
    execute(engine, "UPDATE goods SET text_kept = NULL WHERE ref = :ref", ref=IDS[0])
    from_rows(engine, goods, Embedder(), keys_from="source", replaces=True)
    kept = to_bigint(hash_text(f"title {IDS[0]}\nbrand"))
    assert execute(engine, "SELECT text_kept FROM goods WHERE ref = :ref", ref=IDS[0]) == [(kept,)]


@pytest.mark.parametrize("text", ["", "a", "b", "c", "d"])
def test_the_hash_of_an_embedded_text_is_never_that_of_an_inserted_one(text: str) -> None:
    assert is_of_text(to_bigint(hash_text(text)))
    assert not is_of_text(to_bigint(hash_content(text, {})))
