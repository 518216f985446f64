"""Every field of every document of a simple vector store arrives, in whatever shape and under whatever names."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_simple_store import DOCUMENTS, IDS, ROWS, TEXTS, write

from amprenta_vectors.backends.simple import fields, shapes
from amprenta_vectors.backends.simple.fields import IDS as ID_NAMES
from amprenta_vectors.backends.simple.fields import METADATA, ORIGINAL_ID, TEXT, merge
from amprenta_vectors.backends.simple.files import SimpleFiles
from amprenta_vectors.backends.simple.raw_check import RawDocument, find_incomplete
from amprenta_vectors.backends.simple.reading import LegacyRecord, LegacyStore, read_store
from amprenta_vectors.backends.simple.source import SimpleOrigin
from amprenta_vectors.backends.simple.tree import PREFIX
from amprenta_vectors.errors import SourceError
from amprenta_vectors.schema.registry import RAG_CHUNKS

VECTOR_OF = dict(zip(IDS, ROWS, strict=True))


def metadata_of(tmp_path: Path, documents: Any, vectors: Any = None) -> dict[str, dict[str, Any]]:
    store = read_store(write(tmp_path, VECTOR_OF if vectors is None else vectors, documents), None)
    assert not store.unpaired
    return {name: record.metadata for name, record in store.records.items()}


# What an entry has beside id "a" and text "alpha", and the metadata that it is to have.
ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an id that is another one": ({"doc_ids": "x"}, {"doc_ids": "x"}),
    "ids in a list": ({"ids": ["x", "y"]}, {"ids": ["x", "y"]}),
    "the same id again": ({"document_ids": "a"}, {}),
    "both metadata and meta": ({"metadata": {"n": 1}, "meta": {"m": 2}}, {"n": 1, "meta": {"m": 2}}),
    "metadata that is no object": ({"metadata": "x", "meta": {"m": 2}}, {"metadata": "x", "m": 2}),
    "a field beside and inside": ({"page": 1, "metadata": {"page": 2}}, {"page": 2, "page__beside": 1}),
    "the same value beside and inside": ({"page": 1, "metadata": {"page": 1}}, {"page": 1}),
    "numbers that Python takes for equal": (
        {"page": True, "metadata": {"page": 1, "page__beside": 1.0}},
        {"page": 1, "page__beside": 1.0, "page__beside__beside": True},
    ),
    "an original id of its own": ({"metadata": {"original_id": "x"}}, {"original_id__metadata": "x"}),
    "an original id beside": ({"original_id": 7}, {"original_id__beside": 7}),
    "an id within the metadata": ({"metadata": {"id": "x", "doc_ids": ["y"]}}, {"id": "x", "doc_ids": ["y"]}),
    "its own id within the metadata": ({"metadata": {"id": "a"}}, {"id": "a"}),
    "two texts": ({"content": "other", "metadata": {"text": "third"}}, {"content": "other", "text": "third"}),
    "nothing under a name": ({"author": None, "metadata": {"title": None}}, {"author": None, "title": None}),
}


@pytest.mark.parametrize("what", ENTRIES)
@pytest.mark.parametrize("shape", ["list", "dict by id"])
def test_every_field_of_an_entry_arrives(what: str, shape: str, tmp_path: Path) -> None:
    given_fields, expected = ENTRIES[what]
    entries = {name: {"text": text} for name, text in zip(IDS, TEXTS, strict=True)}
    entries["a"] |= given_fields
    if shape == "list":
        documents: Any = [{"id": name, **entry} for name, entry in entries.items()]
    else:
        documents = entries
    assert metadata_of(tmp_path, documents) == {"a": expected, "b": {}, "c": {}}


def test_an_id_that_is_a_number_arrives_as_it_was(tmp_path: Path) -> None:
    documents = [{"id": place, "text": text} for place, text in enumerate(TEXTS)]
    assert metadata_of(tmp_path, documents, ROWS) == {str(place): {"id": place} for place in range(3)}


# Whole files, and the metadata of "a".
FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a list beside the texts": ({"ids": IDS, "texts": TEXTS, "pages": [1, 2, 3]}, {"pages": 1}),
    "two lists of metadata": (
        {"ids": IDS, "texts": TEXTS, "metadatas": [{"n": 1}, {}, {}], "meta": [{"n": 2, "m": 3}, None, "x"]},
        {"n": 1, "n__meta": 2, "m": 3},
    ),
    "metadata that some have not": (
        {"ids": IDS, "texts": TEXTS, "metadatas": [{"n": 1}, None, {"n": 2}]},
        {"n": 1},
    ),
    "two lists of texts": ({"ids": IDS, "texts": TEXTS, "chunks": ["1", "2", "3"]}, {"chunks": "1"}),
    "metadata by id that is no object": (
        {"texts": dict(zip(IDS, TEXTS, strict=True)), "metadata": {"a": "x"}, "tags": {"b": ["y"], "a": ["z"]}},
        {"metadata": "x", "tags": ["z"]},
    ),
    "something by id beside the documents": (
        {"documents": {name: {"text": name} for name in IDS}, "tags": {"a": ["z"]}, "version": 2},
        {"tags": ["z"]},
    ),
    "ids apart that are others": (
        {"documents": [{"id": name, "text": name} for name in IDS], "ids": ["x", "b", "c"]},
        {"ids": "x"},
    ),
    "a list beside the documents": (
        {"documents": [{"id": name, "text": name} for name in IDS], "sources": ["x", "y", "z"]},
        {"sources": "x"},
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_every_field_that_a_file_keeps_apart_arrives(what: str, tmp_path: Path) -> None:
    documents, expected = FILES[what]
    assert metadata_of(tmp_path, documents)["a"] == expected


def test_fields_that_stand_with_the_vectors_arrive(tmp_path: Path) -> None:
    documents = {name: {"text": text, "page": 1} for name, text in VECTOR_TEXTS.items()}
    entry = {"embedding": ROWS[0], "text": "alpha", "metadata": {"page": 2, "tags": ("x",)}, "norm": np.float64(1.5)}
    vectors: Any = {"a": entry, "b": ROWS[1], "c": ROWS[2]}
    expected = {"page": 1, "page__vectors": 2, "tags": ["x"], "norm": 1.5}
    assert metadata_of(tmp_path / "entries", documents, vectors)["a"] == expected
    apart = {"ids": IDS, "vectors": ROWS, "sources": ["x", "y", "z"], "dimension": 2}
    assert metadata_of(tmp_path / "apart", documents, apart)["a"] == {"page": 1, "sources": "x"}


VECTOR_TEXTS = dict(zip(IDS, TEXTS, strict=True))


def test_a_field_with_the_vectors_that_is_no_json_is_quarantined_by_name(tmp_path: Path) -> None:
    vectors: Any = {"a": {"embedding": ROWS[0], "raw": b"x"}, "b": ROWS[1], "c": ROWS[2]}
    store = read_store(write(tmp_path, vectors, {name: {"text": name} for name in IDS}), None)
    assert list(store.records) == ["b", "c"]
    assert "a value of type bytes" in store.unpaired["a"]


def test_fields_with_the_vectors_cost_what_the_file_is(tmp_path: Path) -> None:
    ids = [str(place) for place in range(2000)]
    long, many = "x" * 100_000, ["y"]
    for _ in range(40):
        many = [many, many]  # type: ignore[list-item]
    for shared in (long, many):
        vectors = {name: {"embedding": [1.0, 2.0], "note": shared} for name in ids}
        write(tmp_path, vectors, {name: {"text": name} for name in ids})
        with pytest.raises(SourceError, match="more than 8 times its size"):
            read_store(tmp_path, None)


def test_ids_that_are_lists_are_refused_by_name(tmp_path: Path) -> None:
    identity: list[Any] = []
    for _ in range(60):
        identity = [identity, identity]
    write(tmp_path, {"ids": [identity], "vectors": [[1.0, 2.0]]}, {"a": {"text": "x"}})
    with pytest.raises(SourceError, match="ids of which one is no text and no number: list"):
        read_store(tmp_path, None)


def test_an_object_that_gives_a_name_twice_loses_neither(tmp_path: Path) -> None:
    content = b'{"a": {"text": "x", "page": 1, "page": 2}, "b": {"text": "y"}, "c": {"text": "z"}, "c": {"text": "zz"}}'
    store = read_store(write(tmp_path, VECTOR_OF, content), None)
    assert {name: record.metadata for name, record in store.records.items()} == {
        "a": {"page": 1, "page__again": 2},
        "b": {},
    }
    assert store.unpaired == {"c": f"{tmp_path}/metadata.json has this id 2 times"}


def test_metadata_of_a_document_without_a_text_is_named(tmp_path: Path) -> None:
    documents = {"texts": {"a": "alpha"}, "metadata": {"a": {}, "b": {"n": 1}}}
    store = read_store(write(tmp_path, {"a": ROWS[0]}, documents), None)
    assert list(store.records) == ["a"]
    assert "no vector of this id" in store.unpaired["b"]


def test_a_text_that_goes_into_the_metadata_takes_no_fields_place(tmp_path: Path) -> None:
    documents = {"a": {"content": "alpha", "metadata": {"text": "own"}}}
    write(tmp_path / "alice" / f"{PREFIX}x", {"a": ROWS[0]}, documents)
    table = RAG_CHUNKS.with_columns(dimension=2, text=None)
    [metadata] = SimpleOrigin(tmp_path, None).open(table, "alice/x", with_metadata=True).fetch(["a"]).metadata or ()
    assert metadata == {"text": "alpha", "text__metadata": "own", ORIGINAL_ID: "a"}


NAMES = st.sampled_from([*ID_NAMES, *TEXT, *METADATA, ORIGINAL_ID, "page", "page__beside", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "b", "alpha", "[1]"]) | st.just(1.0),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.dictionaries(NAMES, VALUES, max_size=6)


def leaves(value: Any) -> Iterator[str]:
    """Every value in a value, as JSON writes it."""
    if isinstance(value, dict) and value:
        for held in value.values():
            yield from leaves(held)
    elif isinstance(value, list) and value:
        for held in value:
            yield from leaves(held)
    elif value != {}:
        yield json.dumps(value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRY, min_size=3, max_size=3), shape=st.sampled_from(["list", "by id", "under a name"]))
def test_no_value_of_any_entry_is_lost(entries: list[dict[str, Any]], shape: str, tmp_path: Path) -> None:
    documents: Any = [{**entry, "id": name} for name, entry in zip(IDS, entries, strict=True)]
    if shape == "by id":
        documents = dict(zip(IDS, entries, strict=True))
    elif shape == "under a name":
        documents = {"items": documents}
    store = read_store(write(tmp_path, VECTOR_OF, documents), None)
    assert set(store.ids) == set(IDS)
    for name, entry in zip(IDS, entries, strict=True):
        if name in store.records:
            record = store.records[name]
            held = {*leaves(record.metadata), json.dumps(record.text), json.dumps(name)}
            assert set(leaves(entry)) <= held
    if not store.unpaired:
        assert not find_incomplete(tmp_path / "metadata.json", None, raw(store))


def test_merge_keeps_every_value_under_a_name_of_its_own() -> None:
    layers = [("one", {"a": 1, "a__two": 2}), ("two", {"a": 3, "a__two": 4}), ("three", {"a": 1})]
    assert merge(layers) == {"a": 1, "a__two": 2, "a__two__two": 3, "a__two__two__two": 4}


# What is compared before old files are removed.


def raw(store: LegacyStore) -> dict[str, RawDocument]:
    return {name: RawDocument(record.text, record.metadata) for name, record in store.records.items()}


@pytest.mark.parametrize("documents", DOCUMENTS)
def test_whatever_value_is_lost_is_found_missing(documents: str, tmp_path: Path) -> None:
    vectors = ROWS if "without ids" in documents else VECTOR_OF
    store = read_store(write(tmp_path, vectors, DOCUMENTS[documents][0]), None)
    assert not find_incomplete(tmp_path / "metadata.json", None, raw(store))
    name = store.ids[1]
    for lost in (RawDocument("", {"page": 2}), RawDocument("beta", {}), RawDocument("beta", {"page": 20})):
        assert find_incomplete(tmp_path / "metadata.json", None, {**raw(store), name: lost})
    fewer = {held: document for held, document in raw(store).items() if held != name}
    assert find_incomplete(tmp_path / "metadata.json", None, fewer)


@pytest.mark.parametrize("what", FILES)
def test_fields_apart_are_found_missing_too(what: str, tmp_path: Path) -> None:
    store = read_store(write(tmp_path, VECTOR_OF, FILES[what][0]), None)
    assert not find_incomplete(tmp_path / "metadata.json", None, raw(store))
    for field in store.records["a"].metadata:
        fewer = {name: held for name, held in store.records["a"].metadata.items() if name != field}
        lost = {**raw(store), "a": RawDocument(store.records["a"].text, fewer)}
        assert find_incomplete(tmp_path / "metadata.json", None, lost), field


@pytest.mark.parametrize("encrypted", ["as a whole", "by value", "both"])
def test_what_is_encrypted_is_compared_in_the_clear(encrypted: str, tmp_path: Path) -> None:
    key = Fernet.generate_key().decode()

    def hide(value: Any) -> str:
        return Fernet(key).encrypt((value if isinstance(value, str) else json.dumps(value)).encode()).decode()

    documents: Any = {name: {"text": text, "metadata": {"n": name}} for name, text in VECTOR_TEXTS.items()}
    if encrypted != "as a whole":
        documents = {name: {"text": hide(e["text"]), "metadata": hide(e["metadata"])} for name, e in documents.items()}
    content = json.dumps(documents) if encrypted == "by value" else hide(documents)
    store = read_store(write(tmp_path, VECTOR_OF, content.encode()), key)
    assert {name: record.metadata for name, record in store.records.items()} == {name: {"n": name} for name in IDS}
    assert not find_incomplete(tmp_path / "metadata.json", key, raw(store))
    assert find_incomplete(tmp_path / "metadata.json", key, {**raw(store), "b": RawDocument("beta", {})}) == ["b"]


def test_reading_that_loses_a_field_is_seen_though_it_loses_it_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, VECTOR_OF, {name: {"text": name, "page": 1, "meta": {"n": 2}} for name in IDS})
    monkeypatch.setattr(shapes, "to_document", lambda entry: fields.Document(entry["text"], (("meta", entry["meta"]),)))
    assert find_incomplete(tmp_path / "metadata.json", None, raw(read_store(tmp_path, None))) == IDS


# What is encrypted value by value.

SEALING_KEY = Fernet.generate_key().decode()
LIKE_JSON = ["[1]", '{"text": "x"}', '"quoted"', "7", "null", "", "[", "gAAAA short", "{}"]


def seal(value: str) -> str:
    return Fernet(SEALING_KEY).encrypt(value.encode()).decode()


def read_sealed(tmp_path: Path, documents: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    content = documents if isinstance(documents, bytes) else json.dumps(documents).encode()
    store = read_store(write(tmp_path, VECTOR_OF, content), SEALING_KEY)
    assert not store.unpaired
    return {name: (record.text, record.metadata) for name, record in store.records.items()}


def sealed_entries(texts: list[str]) -> dict[str, Any]:
    """Each value encrypted on its own, in every place that a document has for one."""
    return {
        name: {"content": seal(text), "beside": seal(text), "metadata": {"note": seal(text), "tags": [seal(text)]}}
        for name, text in zip(IDS, texts, strict=True)
    }


@pytest.mark.parametrize("text", LIKE_JSON)
@pytest.mark.parametrize("whole", [False, True], ids=["by value", "and as a whole"])
def test_a_text_that_looks_like_json_stays_a_text(text: str, whole: bool, tmp_path: Path) -> None:
    documents: Any = sealed_entries([text] * 3)
    shapes_of: list[Any] = [
        documents,
        {"documents": documents},
        {"items": [{"id": n, **e} for n, e in documents.items()]},
    ]
    for found in shapes_of:
        content = seal(json.dumps(found)).encode() if whole else found
        expected = (text, {"note": text, "tags": [text], "beside": text})
        assert read_sealed(tmp_path, content) == dict.fromkeys(IDS, expected)


def test_each_text_of_a_list_of_texts_stays_one(tmp_path: Path) -> None:
    documents = {"ids": IDS, "texts": [seal(text) for text in ("[1]", '{"text": "x"}', "{}")]}
    assert [text for text, _ in read_sealed(tmp_path, documents).values()] == ["[1]", '{"text": "x"}', "{}"]
    by_id = dict(zip(IDS, map(seal, ("[1]", "7", "{}")), strict=True))
    assert [text for text, _ in read_sealed(tmp_path, by_id).values()] == ["[1]", "7", "{}"]


def test_whatever_is_encrypted_again_is_decrypted_again(tmp_path: Path) -> None:
    plain: dict[str, Any] = {name: {"text": text, "metadata": {"n": name}} for name, text in VECTOR_TEXTS.items()}
    expected = {name: (text, {"n": name}) for name, text in VECTOR_TEXTS.items()}
    by_entry: dict[str, Any] = {
        name: seal(json.dumps({**entry, "text": seal(entry["text"])})) for name, entry in plain.items()
    }
    nested = {
        n: {"text": seal(seal(e["text"])), "metadata": seal(json.dumps({"n": seal(n)}))} for n, e in plain.items()
    }
    wrapped = {"encrypted": True, "data": seal(json.dumps(by_entry))}
    contents: list[Any] = [by_entry, nested, wrapped, seal(json.dumps(nested)).encode(), seal(seal(json.dumps(nested)))]
    for documents in contents:
        assert read_sealed(tmp_path, documents) == expected


@pytest.mark.parametrize("whole", [False, True], ids=["by value", "and as a whole"])
def test_what_is_written_beside_encrypted_values_is_read_back_the_same(whole: bool, tmp_path: Path) -> None:
    documents = sealed_entries(TEXTS)
    write(tmp_path, VECTOR_OF, seal(json.dumps(documents)).encode() if whole else documents)
    metadata = {"note": "[1]", "tags": ["x", 1], "deep": {"z": [None]}, "odd": '\x1e["x"]\n', "n": 1.5, "none": None}
    new = LegacyRecord(np.array([7, 8.25], np.float32), '{"text": "x"}', metadata)
    SimpleFiles(tmp_path, SEALING_KEY).change({"b"}, [("new", new)])
    records = read_store(tmp_path, SEALING_KEY).records
    assert (records["new"].text, records["new"].metadata) == (new.text, metadata)
    assert records["a"].metadata == {"note": "alpha", "tags": ["alpha"], "beside": "alpha"}
    assert b"text" not in (tmp_path / "metadata.json").read_bytes()


# What Python makes of ids and vectors.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_uuids_ordered_dicts_and_rows_of_one_row_are_read(protocol: int, tmp_path: Path) -> None:
    ids = [UUID(int=number) for number in range(3)]
    rows = [np.array([row], np.float32) for row in ROWS]
    shapes_of: list[Any] = [
        OrderedDict(zip(ids, rows, strict=True)),
        {"ids": ids, "vectors": [[row] for row in ROWS]},
        [{"id": name, "embedding": row} for name, row in zip(ids, rows, strict=True)],
        list(zip(ids, rows, strict=True)),
    ]
    write(tmp_path, {}, {str(name): {"text": text} for name, text in zip(ids, TEXTS, strict=True)})
    for vectors in shapes_of:
        (tmp_path / "vectors.pkl").write_bytes(pickle.dumps(vectors, protocol))
        store = read_store(tmp_path, None)
        assert not store.unpaired
        assert [record.vector.tolist() for record in store.records.values()] == ROWS
        assert [record.metadata for record in store.records.values()] == [{}, {}, {}]
