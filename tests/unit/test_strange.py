"""The strange records are what they say: admitted by Pinecone, and strange."""

from __future__ import annotations

import numpy as np
import pytest

from amprenta_vectors.sandbox.pinecone.validation import check_id, check_metadata, check_values
from amprenta_vectors.sandbox.strange import strange_records, strange_unstorable, to_columns


@pytest.mark.parametrize("dimension", [1, 2, 8, 256])
def test_pinecone_admits_every_strange_record(dimension: int) -> None:
    for record in [*strange_records(dimension), *strange_unstorable(dimension)]:
        check_id(record.id)
        check_id(record.namespace or "the default one")
        assert record.vector.dtype == np.float32
        check_values(record.vector, dimension, record.id)
        check_metadata(record.metadata)


def test_no_two_records_share_namespace_and_id() -> None:
    records = strange_records(8)
    assert len({(record.namespace, record.id) for record in records}) == len(records)


def test_the_same_seed_gives_the_same_records_and_another_seed_others() -> None:
    def all_bytes(seed: int) -> bytes:
        return b"".join(record.vector.tobytes() for record in strange_records(8, seed))

    assert all_bytes(1) == all_bytes(1) != all_bytes(2)


def test_the_oddities_are_there() -> None:
    records = strange_records(8)
    ids = {record.id for record in records}
    assert {"NULL", "\\N", " ", "trailing", "trailing ", "case", "Case", *map(chr, range(1, 32))} <= ids
    assert max(map(len, ids)) == 512
    vectors = np.stack([record.vector for record in records])
    assert (np.signbit(vectors) & (vectors == 0)).any()
    assert (np.abs(vectors) == np.finfo(np.float32).max).any()
    assert (np.abs(vectors[vectors != 0]) < np.finfo(np.float32).smallest_normal).any()
    values = [value for record in records for value in record.metadata.values()]
    for oddity in ("", [], 1e308, 5e-324, 0.1, 2**53, True, False):
        assert any(value == oddity and type(value) is type(oddity) for value in values), oddity


def test_storable_records_have_no_nul_and_the_others_do() -> None:
    assert not any("\\x00" in repr(record.metadata) for record in strange_records(8))
    assert all("\\x00" in repr(record.metadata) for record in strange_unstorable(8))


def test_columns_hold_every_record_once() -> None:
    records = strange_records(8)
    columns = list(to_columns(records))
    assert len(columns) == len({record.namespace for record in records})
    rebuilt = [(namespace, id_) for namespace, ids, _, _ in columns for id_ in ids]
    assert rebuilt == [(record.namespace, record.id) for record in records]
    assert all(len(ids) == len(vectors) == len(metadata) for _, ids, vectors, metadata in columns)
