"""A simple vector store is read in the shapes that it has in the wild, and what does not pair up is named."""

from __future__ import annotations

import json
import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.fernet import Fernet

from amprenta_vectors.backends.simple.backup import Backup
from amprenta_vectors.backends.simple.pickle_reader import PickleRefused
from amprenta_vectors.backends.simple.reading import LegacyStore, read_store
from amprenta_vectors.backends.simple.source import SimpleOrigin
from amprenta_vectors.backends.simple.tree import PREFIX
from amprenta_vectors.errors import AmprentaError, ConfigError, CredentialsRefused, SourceError, SourceNotFound
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS

IDS = ["a", "b", "c"]
ROWS = [[0.5, 1.0], [2, 3], [4.0, 5.5]]
TEXTS = ["alpha", "beta", "gamma"]
FIELDS = [{"page": 1}, {"page": 2}, {"page": 3}]
BY_PLACE = ["0", "1", "2"]

VECTORS: dict[str, tuple[Any, str]] = {
    "dict of lists": (dict(zip(IDS, ROWS, strict=True)), "a dict by id"),
    "dict of arrays": ({i: np.array(row) for i, row in zip(IDS, ROWS, strict=True)}, "a dict by id"),
    "dict of dicts": ({i: {"embedding": row} for i, row in zip(IDS, ROWS, strict=True)}, "a dict by id"),
    "list of lists": (ROWS, "a list of vectors"),
    "list of arrays": ([np.array(row, np.float32) for row in ROWS], "a list of vectors"),
    "tuple of lists": (tuple(ROWS), "a list of vectors"),
    "one array": (np.array(ROWS), "one array"),
    "pairs": (list(zip(IDS, ROWS, strict=True)), "a list of id and vector"),
    "list of dicts": ([{"id": i, "vector": row} for i, row in zip(IDS, ROWS, strict=True)], "a list of dicts"),
    "ids apart": ({"ids": IDS, "vectors": np.array(ROWS, np.float32)}, "one array under a name, ids apart"),
    "under a name": ({"embeddings": ROWS, "dimension": 2}, "a list of vectors under a name"),
}
PAIRS = list(zip(IDS, TEXTS, FIELDS, strict=True))
DOCUMENTS: dict[str, tuple[Any, str]] = {
    "list with ids": ([{"id": i, "text": t, "metadata": f} for i, t, f in PAIRS], "a list of documents"),
    "list without ids": ([{"page_content": t, "metadata": f} for _, t, f in PAIRS], "a list of documents"),
    "flat": ([{"id": i, "content": t, **f} for i, t, f in PAIRS], "a list of documents"),
    "text within the metadata": ([{"id": i, "metadata": {"text": t, **f}} for i, t, f in PAIRS], "a list of documents"),
    "dict by id": ({i: {"text": t, "metadata": f} for i, t, f in PAIRS}, "a dict by id"),
    "dict under a name": (
        {"version": 1, "documents": {i: {"text": t, "metadata": f} for i, t, f in PAIRS}},
        "a dict by id under 'documents'",
    ),
    "list under a name": (
        {"documents": [{"page_content": t, "metadata": f} for _, t, f in PAIRS], "ids": IDS},
        "a list of documents under 'documents', ids apart",
    ),
    "columns": ({"ids": IDS, "texts": TEXTS, "metadatas": FIELDS}, "lists of texts and metadata, ids apart"),
    "columns without ids": ({"documents": TEXTS, "metadata": FIELDS}, "lists of texts and metadata"),
    "dicts of columns": (
        {"texts": dict(zip(IDS, TEXTS, strict=True)), "metadata": dict(zip(IDS, FIELDS, strict=True))},
        "dicts of texts and metadata by id",
    ),
}
TEXT_OF = {
    **dict.fromkeys(("list with ids", "dict by id", "dict under a name"), "text"),
    **dict.fromkeys(("list without ids", "list under a name"), "page_content"),
    **dict.fromkeys(("columns", "dicts of columns"), "texts"),
    "flat": "content",
    "text within the metadata": "metadata.text",
    "columns without ids": "documents",
}
HAS_IDS = {"dict of lists", "dict of arrays", "dict of dicts", "pairs", "list of dicts", "ids apart"}
HAVE_IDS = set(DOCUMENTS) - {"list without ids", "columns without ids"}


def write(folder: Path, vectors: Any, documents: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vectors.pkl").write_bytes(pickle.dumps(vectors))
    content = documents if isinstance(documents, bytes) else json.dumps(documents).encode()
    (folder / "metadata.json").write_bytes(content)
    return folder


def good() -> tuple[dict[str, Any], dict[str, Any]]:
    return VECTORS["dict of lists"][0], DOCUMENTS["dict by id"][0]


def content_of(store: LegacyStore) -> list[tuple[str, list[float], str, dict[str, Any]]]:
    return [(i, record.vector.tolist(), record.text, record.metadata) for i, record in store.records.items()]


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("vectors", VECTORS)
def test_every_pair_of_shapes_gives_the_same_documents_and_says_what_was_found(
    vectors: str, documents: str, tmp_path: Path
) -> None:
    store = read_store(write(tmp_path, VECTORS[vectors][0], DOCUMENTS[documents][0]), None)
    ids = IDS if vectors in HAS_IDS or documents in HAVE_IDS else BY_PLACE
    assert content_of(store) == list(zip(ids, ROWS, TEXTS, FIELDS, strict=True))
    said = f"vectors: {VECTORS[vectors][1]}; metadata: {DOCUMENTS[documents][1]}, not encrypted"
    assert store.shape == f"{said}; text: {TEXT_OF[documents]}"
    assert not store.unpaired
    assert all(record.vector.dtype == np.float32 for record in store.records.values())


def test_documents_that_keep_their_texts_in_several_ways_are_said_with_each(tmp_path: Path) -> None:
    documents = {"a": {"text": "x", "content": "y"}, "b": {"metadata": {"chunk": "z"}}, "c": "w", "d": {"page": 1}}
    store = read_store(write(tmp_path, {key: [1.0] for key in "abcd"}, documents), None)
    assert store.shape.endswith("; text: text or metadata.chunk or the entry itself")


@pytest.mark.parametrize("vectors", [{}, [], np.empty((0, 2)), np.array([])], ids=str)
@pytest.mark.parametrize("documents", [{}, [], {"documents": []}, {"texts": [], "metadatas": [], "ids": []}], ids=str)
def test_an_empty_store_has_nothing_and_is_no_error(vectors: Any, documents: Any, tmp_path: Path) -> None:
    assert read_store(write(tmp_path, vectors, documents), None).ids == []


def test_metadata_encrypted_as_a_whole_or_value_by_value_is_decrypted_and_said(tmp_path: Path) -> None:
    key = Fernet.generate_key()
    fernet = Fernet(key)
    vectors, documents = good()
    whole = fernet.encrypt(json.dumps(documents).encode())

    def hide(value: Any) -> str:
        return fernet.encrypt((value if isinstance(value, str) else json.dumps(value)).encode()).decode()

    by_value = {i: {"text": hide(d["text"]), "metadata": hide(d["metadata"])} for i, d in documents.items()}
    expected = content_of(read_store(write(tmp_path, vectors, documents), None))
    for content, said in (
        (whole, "encrypted as a whole"),
        (json.dumps(whole.decode()).encode(), "encrypted as a whole"),
        (json.dumps({"encrypted": True, "data": whole.decode()}).encode(), "encrypted as a whole"),
        (json.dumps(by_value).encode(), "6 values encrypted"),
    ):
        store = read_store(write(tmp_path, vectors, content), key.decode())
        assert content_of(store) == expected
        assert store.shape.endswith(f"{said}; text: text")


def test_what_has_no_partner_is_named_with_its_file_and_the_rest_is_read(tmp_path: Path) -> None:
    vectors, documents = good()
    vectors = {**vectors, "only vector": [1, 2], "no numbers": ["x", 2], "no text": [1, 2]}
    documents = {**documents, "only document": {"text": "x"}, "no numbers": {"text": "x"}, "no text": {"page": 1}}
    store = read_store(write(tmp_path, vectors, documents), None)
    assert list(store.records) == IDS
    assert store.unpaired == {
        "only vector": f"{tmp_path}/vectors.pkl has its vector, metadata.json has no document of this id",
        "only document": f"{tmp_path}/metadata.json has its document, vectors.pkl has no vector of this id",
        "no numbers": f"{tmp_path}/vectors.pkl: its entry is no vector of numbers",
        "no text": f"{tmp_path}/metadata.json: its entry has no text under a usual name",
    }


def test_lists_of_unequal_length_are_not_paired_by_a_guess(tmp_path: Path) -> None:
    store = read_store(write(tmp_path, ROWS, DOCUMENTS["list with ids"][0][:2]), None)
    assert not store.records
    assert set(store.unpaired) == {"0", "1", "2"}
    assert "3 vectors in vectors.pkl and 2 documents in metadata.json" in store.unpaired["0"]


def test_an_id_that_comes_twice_belongs_to_neither(tmp_path: Path) -> None:
    store = read_store(write(tmp_path, {"ids": ["a", "b", "a"], "vectors": ROWS}, DOCUMENTS["dict by id"][0]), None)
    assert list(store.records) == ["b"]
    assert store.unpaired["a"] == f"{tmp_path}/vectors.pkl has this id 2 times"


def test_bad_files_are_errors_that_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    vectors, documents = good()
    token = Fernet(Fernet.generate_key()).encrypt(json.dumps(documents).encode())
    cases: list[tuple[str, type[AmprentaError], str, str | None]] = [
        ("no vectors", SourceNotFound, "vectors.pkl is not there", None),
        ("no metadata", SourceNotFound, "metadata.json is not there", None),
        ("truncated vectors", PickleRefused, "vectors.pkl is refused: it is truncated", None),
        ("deep vectors", SourceError, "vectors.pkl holds data in one another too deeply", None),
        ("truncated metadata", SourceError, "metadata.json is no JSON", None),
        ("other vectors", SourceError, "vectors.pkl holds str; expected", None),
        ("other metadata", SourceError, "metadata.json holds an object of 'settings'", None),
        ("no key", ConfigError, "VECTOR_STORE_ENCRYPTION_KEY is not set", None),
        ("another key", CredentialsRefused, "another key", Fernet.generate_key().decode()),
        ("no such key", CredentialsRefused, "VECTOR_STORE_ENCRYPTION_KEY is no Fernet key", "secret"),
    ]
    for name, kind, said, key in cases:
        folder = write(tmp_path / name, vectors, token if "key" in name else documents)
        if name == "no vectors":
            (folder / "vectors.pkl").unlink()
        elif name == "no metadata":
            (folder / "metadata.json").unlink()
        elif name == "truncated vectors":
            (folder / "vectors.pkl").write_bytes(pickle.dumps(vectors)[:-10])
        elif name == "deep vectors":
            (folder / "vectors.pkl").write_bytes(b"}X\x07\0\0\0vectors" * 100_000 + b"N" + b"s" * 100_000 + b".")
        elif name == "truncated metadata":
            (folder / "metadata.json").write_bytes(json.dumps(documents).encode()[:-10])
        elif name == "other vectors":
            (folder / "vectors.pkl").write_bytes(pickle.dumps("text"))
        elif name == "other metadata":
            (folder / "metadata.json").write_text('{"settings": 1}')
        with pytest.raises(kind) as raised:
            read_store(folder, key)
        assert said in raised.value.message, name
        assert str(folder) in raised.value.message or "no such key" in name
        assert raised.value.hint
        assert "secret" not in str(raised.value)


def test_ids_that_cannot_be_written_down_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    vectors, documents = good()
    odd = {"half \ud800": ROWS[0], "nul \0": ROWS[1]}
    documents = {**documents, **{name: {"text": "x"} for name in odd}}
    store = read_store(write(tmp_path, {**vectors, **odd}, documents), None)
    assert list(store.records) == IDS
    assert set(store.unpaired) == {"half \\ud800", "nul \\0"}


def test_an_encrypted_value_that_is_no_text_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    vectors, documents = good()
    key = Fernet.generate_key()
    documents = {**documents, "a": {"text": Fernet(key).encrypt(b"\xff\xfe").decode()}}
    with pytest.raises(SourceError, match=r"metadata\.json has something encrypted in it that is no text"):
        read_store(write(tmp_path, vectors, documents), key.decode())


def test_one_list_in_many_places_is_one_array(tmp_path: Path) -> None:
    ids = [str(n) for n in range(1000)]
    row = [0.5] * 100
    folder = write(tmp_path, dict.fromkeys(ids, row), {i: {"text": "x"} for i in ids})
    store = read_store(folder, None)
    assert len(store.records) == 1000
    assert len({id(record.vector) for record in store.records.values()}) == 1


def test_a_text_with_half_of_a_character_is_quarantined(tmp_path: Path) -> None:
    vectors, documents = good()
    documents = {**documents, "a": {"text": "\ud800"}, "b": {"text": "x", "metadata": {"y": "\ud800"}}}
    write(tmp_path / "alice" / f"{PREFIX}x", vectors, documents)
    origin = SimpleOrigin(tmp_path, Fernet.generate_key().decode())
    batch = origin.open(VECTOR_DOCUMENTS.with_columns(dimension=2), "alice/x", with_metadata=True).fetch(IDS)
    assert batch.source_keys == ["c"]
    assert [(row.key, row.reason) for row in batch.quarantined] == [("a", Reason.UNREADABLE), ("b", Reason.UNREADABLE)]


def test_a_user_whose_folder_cannot_be_listed_is_a_store_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("alice", "bob", "carol"):
        write(tmp_path / user / f"{PREFIX}x", *good())
    (tmp_path / "a file").write_text("")
    scandir, opened = os.scandir, os.open

    def closed(path: Any, name: str) -> None:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))

    def scan(path: Any) -> Any:
        closed(path, "bob")
        return scandir(path)

    def open_folder(path: Any, *arguments: Any) -> int:
        closed(Path(path).parent, "carol")
        return opened(path, *arguments)

    # Permissions hold for everybody but root, as whom tests may run.
    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "open", open_folder)
    origin = SimpleOrigin(tmp_path, None)
    assert origin.namespaces() == {"alice/x": 3, "bob/*": 0, "carol/x": 0}
    with pytest.raises(SourceError, match=r"bob cannot be listed: Permission denied"):
        origin.store("bob/*")
    with pytest.raises(SourceError, match=r"carol cannot be read.*: Permission denied"):
        origin.store("carol/x")


def test_reading_changes_no_file_and_no_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "alice" / f"{PREFIX}x", *good())

    def content() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in (root, *root.rglob("*"))
        }

    before = content()
    origin = SimpleOrigin(root, Fernet.generate_key().decode())
    assert origin.namespaces() == {"alice/x": 3}
    source = origin.open(VECTOR_DOCUMENTS.with_columns(dimension=2), "alice/x", with_metadata=True)
    keys = [key for page, _ in source.iter_keys() for key in page]
    assert source.fetch(keys).source_keys == IDS
    origin.close()
    assert content() == before


def test_nobody_may_read_a_backup_who_may_not_read_the_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = write(root / "alice" / f"{PREFIX}x", *good())
    folder.parent.chmod(0o750)
    folder.chmod(0o700)
    (folder / "metadata.json").chmod(0o600)
    before = os.umask(0o022)
    try:
        copy, _ = Backup(root, datetime.now(UTC)).add(folder)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (copy.parent.parent, copy.parent, copy, copy / "metadata.json")]
    assert modes == [0o700, 0o750, 0o700, 0o600]
