"""What a store cannot take is refused in the same words by each, before anything is sent or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import API_KEY, INDEX_NAME, to_vectors
from chroma_tools import fill

from amprenta_vectors.backends.simple.store import SimpleStore
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.factory import get_vector_store, open_chroma_store
from amprenta_vectors.stores.protocol import Record, VectorStore
from amprenta_vectors.systems.documents.store import DocumentStore

VECTOR = np.ones(8, np.float32)
STORES = ("pgvector", "pinecone", "dual", "chroma", "simple", "documents")


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, engine: sa.Engine, upgraded_url: str, tmp_path: Path
) -> Iterator[VectorStore]:
    opened = open_store(request.param, upgraded_url, tmp_path, request.getfixturevalue("emulator"))
    opened.upsert([Record("there", VECTOR, "text", {"page": 1})])
    yield opened
    assert list(opened.fetch(["there", "k"])) == ["there"]
    assert opened.count() == 1
    opened.close()


def open_store(kind: str, url: str, folder: Path, emulator: Callable[..., PineconeEmulator]) -> VectorStore:
    if kind in ("simple", "documents"):
        simple = SimpleStore(folder / "alice" / "vector_store_x", str, dimension=8)
        return DocumentStore(simple, str) if kind == "documents" else simple
    if kind == "chroma":
        fill(folder / "chroma", ["there"], to_vectors(1))
        return open_chroma_store(Settings.load(chroma_path=folder / "chroma", table="products"))
    pinecone = emulator()
    # One that it knows, since a namespace is made by its first record.
    settings: dict[str, Any] = {
        "database_url": url,
        "pinecone_api_key": API_KEY,
        "pinecone_index_name": INDEX_NAME,
        "pinecone_controller_host": pinecone.host,
        "pinecone_grpc_host": pinecone.grpc_host,
        "vector_backend": "pinecone" if kind == "pinecone" else "pgvector",
    }
    if kind == "dual":
        settings |= {"vector_mode": "dual", "vector_secondary": "pinecone"}
    return get_vector_store(Settings.load(**settings))


def holding_itself() -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    metadata["self"] = [metadata]
    return metadata


def nested(levels: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(levels):
        metadata = {"x": metadata}
    return metadata


REFUSED: list[tuple[Any, str]] = [
    (Record(7, VECTOR), "its key is of type int; expected str"),  # type: ignore[arg-type]
    (Record(None, VECTOR), "its key is of type NoneType"),  # type: ignore[arg-type]
    (Record(b"k", VECTOR), "its key is of type bytes"),  # type: ignore[arg-type]
    (Record("", VECTOR), "its key is empty"),
    (Record("k\0", VECTOR), "or has a NUL character"),
    (Record("k\ud800", VECTOR), "half a surrogate"),
    (Record("k", VECTOR, 7), "its text is of type int"),  # type: ignore[arg-type]
    (Record("k", VECTOR, "t", [1]), "its metadata is of type list; expected a mapping"),  # type: ignore[arg-type]
    (Record("k", VECTOR, "t", {1: 2}), "a field named 1, of type int"),  # type: ignore[dict-item]
    (Record("k", VECTOR, "t", {"a": {1: 2, "1": 3}}), "a field named 1, of type int"),
    (Record("k", VECTOR, "t", holding_itself()), "or holds itself"),
    (Record("k", VECTOR, "t", nested(5000)), "deeper than 100 levels"),
]


def test_a_record_that_no_store_can_hold_is_refused_by_its_key_and_nothing_is_written(store: VectorStore) -> None:
    for record, said in REFUSED:
        with pytest.raises(RowError, match=said):
            store.upsert([Record("before", VECTOR, "text", {"page": 1}), record])
    for given in ([("k", VECTOR)], {"k": VECTOR}, [None]):
        with pytest.raises(ConfigError, match="expected records; got") as refused:
            store.upsert(given)  # type: ignore[arg-type]
        assert "Record(" in refused.value.hint
    assert store.count() == 1


def test_keys_that_are_none_are_refused_and_such_as_no_store_can_hold_are_absent(store: VectorStore) -> None:
    for call in (store.fetch, store.delete):
        for given, said in (("there", "expected several"), ([7], "of type int"), ([None], "of type NoneType")):
            with pytest.raises(ConfigError, match=said) as refused:
                call(given)  # type: ignore[operator]
            assert refused.value.hint
        assert not call(["a\0", "a\ud800"])  # type: ignore[operator]
    assert list(store.fetch(("there", "there"))) == ["there"]
    # Whatever gives the keys one by one.
    assert list(store.fetch(key for key in ("there", "k"))) == ["there"]  # type: ignore[arg-type]
    store.upsert([Record("k", VECTOR, "text", {"page": 1})])
    store.delete(key for key in ("k",))  # type: ignore[arg-type]
    assert store.count() == 1


def test_metadata_that_is_none_is_empty_and_numbers_of_numpy_are_numbers(store: VectorStore) -> None:
    store.upsert([Record("there", VECTOR, "text", None)])  # type: ignore[arg-type]
    assert len(store.query(VECTOR, top_k=np.int64(1))) == 1  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not an array of numbers"):
        store.query([10**400] * 8)
