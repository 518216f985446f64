"""Key maps: which rows a source key becomes, and back."""

from __future__ import annotations

import numpy as np
import pytest

from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.errors import RowError
from amprenta_vectors.schema.keymaps import Identity, KeyMap, Numbered


def to_batch(*source_keys: str) -> VectorBatch:
    vectors = np.arange(len(source_keys), dtype=np.float32).reshape(-1, 1)
    return VectorBatch(source_keys=source_keys, vectors=vectors, rejected=(RowError("bad", Reason.DIMENSION, ""),))


def test_identity_keeps_each_key() -> None:
    assert Identity().apply(to_batch("a", "b")).keys == [("a",), ("b",)]


def test_numbered_counts_the_rows_of_each_source_key_in_fetched_order() -> None:
    mapped = Numbered().apply(to_batch("a", "b", "a", "a", "b"))
    assert mapped.keys == [("a", "0"), ("b", "0"), ("a", "1"), ("a", "2"), ("b", "1")]


@pytest.mark.parametrize("key_map", [Identity(), Numbered()])
def test_the_source_key_is_found_again_and_nothing_else_of_the_batch_changes(key_map: KeyMap) -> None:
    batch = to_batch("a", "b", "a")
    mapped = key_map.apply(batch)
    assert mapped.keys is not None
    assert [key_map.to_source(key) for key in mapped.keys] == list(batch.source_keys)
    assert (mapped.vectors == batch.vectors).all()
    assert mapped.rejected == batch.rejected


@pytest.mark.parametrize("key_map", [Identity(), Numbered()])
def test_an_empty_batch_stays_empty(key_map: KeyMap) -> None:
    assert key_map.apply(to_batch()).keys == []


def test_names_tell_the_maps_apart() -> None:
    assert Identity().name != Numbered().name
