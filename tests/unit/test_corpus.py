from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from amprenta_vectors.embedders.wordllama import MODEL, WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import CHUNK_CHARACTERS, Chunk, _iter_chunks, embed_corpus, read_corpus

WHOLE = pytest.mark.journey
"""Marks what reads the whole standard library, which takes a third of a minute."""


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return read_corpus()


@WHOLE
def test_every_machine_has_twenty_thousand_chunks(chunks: list[Chunk]) -> None:
    assert len(chunks) >= 20_000


@WHOLE
def test_ids_are_unique_and_fit_pinecone(chunks: list[Chunk]) -> None:
    ids = [chunk.id for chunk in chunks]
    assert len(set(ids)) == len(ids)
    assert all(id_.isascii() and len(id_) <= 512 for id_ in ids)


@WHOLE
def test_an_id_can_be_read(chunks: list[Chunk]) -> None:
    by_id = {chunk.id: chunk for chunk in chunks}
    assert by_id["json#docstring#0"].text.startswith("JSON (JavaScript Object Notation)")
    decode = by_id["json.decoder#JSONDecoder.decode#source#0"]
    assert decode.text.startswith("def decode(self, s")
    assert decode.metadata["module"] == "json.decoder"
    assert decode.metadata["package"] == "json"
    assert decode.metadata["kind"] == "source"
    assert decode.metadata["tags"] == ["method"]
    assert decode.metadata["is_public"] is True


@WHOLE
def test_a_name_defined_again_has_an_id_of_its_own(chunks: list[Chunk]) -> None:
    by_id = {chunk.id: chunk.text for chunk in chunks}
    assert by_id["threading#Thread.name#source#0"].startswith("def name(self):")
    assert by_id["threading#Thread.name~2#source#0"].startswith("def name(self, name):")


def test_a_definition_within_any_statement_is_found(tmp_path: Path) -> None:
    path = tmp_path / "nested.py"
    path.write_text("""
if first:
    def of_if(): pass
elif second:
    def of_elif(): pass
else:
    async def of_else(): pass
try:
    def of_try(): pass
except OSError:
    def of_except(): pass
else:
    def of_try_else(): pass
finally:
    def of_finally(): pass
with some as thing:
    for item in thing:
        while item:
            def of_loops(): pass
match thing:
    case 1:
        class Matched:
            def method(self): pass
""")
    assert [chunk.id.split("#")[1] for chunk in _iter_chunks("nested", path)] == [
        "of_if",
        "of_elif",
        "of_else",
        "of_try",
        "of_except",
        "of_try_else",
        "of_finally",
        "of_loops",
        "Matched.method",
    ]


@WHOLE
def test_texts_are_what_postgresql_and_cosine_can_hold(chunks: list[Chunk]) -> None:
    assert all(chunk.text.strip() and "\0" not in chunk.text for chunk in chunks)
    assert max(len(chunk.text) for chunk in chunks) <= CHUNK_CHARACTERS
    assert all(chunk.metadata["length"] == len(chunk.text) for chunk in chunks)


@WHOLE
def test_metadata_is_flat_and_filters_well(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        assert {name: type(value) for name, value in chunk.metadata.items()} == {
            "module": str,
            "package": str,
            "kind": str,
            "line": int,
            "length": int,
            "is_public": bool,
            "tags": list,
        }
    for condition in (
        lambda metadata: metadata["kind"] == "docstring",
        lambda metadata: metadata["is_public"],
        lambda metadata: "async" in metadata["tags"],
        lambda metadata: metadata["line"] > 500,
    ):
        share = sum(map(condition, (chunk.metadata for chunk in chunks))) / len(chunks)
        assert 0.005 < share < 0.95


@WHOLE
def test_no_test_suite_and_no_installed_package_is_read(chunks: list[Chunk]) -> None:
    parts = {part for chunk in chunks for part in chunk.metadata["module"].split(".")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pytest", "numpy"}


@WHOLE
def test_reading_twice_gives_the_same_and_a_limit_its_beginning(chunks: list[Chunk]) -> None:
    assert read_corpus(500) == chunks[:500]


@WHOLE
def test_a_chunk_ends_at_a_line(chunks: list[Chunk]) -> None:
    by_id = {chunk.id: chunk.text for chunk in chunks}
    first, second = (
        by_id["argparse#ArgumentParser.__init__#source#0"],
        by_id["argparse#ArgumentParser.__init__#source#1"],
    )
    assert "\n" in first
    assert not first.endswith("\n")
    assert second.startswith("    ")


def test_the_second_call_reads_the_vectors_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embed_corpus(tmp_path, 300)
    assert first.vectors.shape == (300, MODEL.dimension)
    assert (first.vectors == WordLlamaEmbedder().embed(first.texts)).all()

    monkeypatch.setattr("amprenta_vectors.sandbox.corpus.read_corpus", None)
    second = embed_corpus(tmp_path, 300)
    assert (second.vectors == first.vectors).all()
    assert (second.ids, second.texts, second.metadata) == (first.ids, first.texts, first.metadata)


def test_another_limit_has_its_own_cache_and_nothing_is_pickled(tmp_path: Path) -> None:
    assert len(embed_corpus(tmp_path, 20).ids) == 20
    assert len(embed_corpus(tmp_path, 30).ids) == 30
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".npy", ".npy"]
    for path in tmp_path.glob("*.npy"):
        assert np.load(path, allow_pickle=False).dtype == np.float32
    for path in tmp_path.glob("*.json"):
        assert set(json.loads(path.read_text())) == {"ids", "texts", "metadata"}


def test_a_cache_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    whole = embed_corpus(tmp_path, 20)
    next(tmp_path.glob("*.json")).unlink()
    assert (embed_corpus(tmp_path, 20).vectors == whole.vectors).all()
