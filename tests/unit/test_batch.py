"""The vector batch: columns of one length, and what may not be stored stands aside with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from amprenta_vectors.batch import VectorBatch, Vectors
from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason


def to_batch(vectors: Any, **columns: Any) -> VectorBatch:
    rows = np.asarray(vectors, dtype=np.float32)
    return VectorBatch(source_keys=[f"k{n}" for n in range(len(rows))], vectors=rows, **columns)


def reasons(batch: VectorBatch) -> dict[str, str]:
    return {error.key: error.reason for error in batch.quarantined}


@pytest.mark.parametrize(
    "columns",
    [{"texts": ["a"]}, {"metadata": [{}, {}, {}]}, {"keys": []}, {"texts": [None, None], "keys": [("a",)]}],
)
def test_columns_of_different_lengths_are_refused(columns: Any) -> None:
    with pytest.raises(ValueError, match="a batch of 2 source keys"):
        to_batch(np.ones((2, 3)), **columns)


def test_vectors_that_are_no_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors \(2,\)"):
        VectorBatch(source_keys=["a", "b"], vectors=np.ones(2, np.float32))


def test_rows_are_taken_with_all_their_columns() -> None:
    error = RowError("gone", Reason.MISSING, "")
    batch = to_batch(
        [[1, 2], [3, 4], [5, 6]],
        texts=["a", None, "c"],
        metadata=[{"n": 0}, None, {"n": 2}],
        keys=[("x",), ("y",), ("z",)],
        quarantined=(error,),
    )
    taken = batch.take([2, 0])
    assert (taken.source_keys, taken.texts, taken.keys) == (["k2", "k0"], ["c", "a"], [("z",), ("x",)])
    assert taken.metadata == [{"n": 2}, {"n": 0}]
    assert taken.vectors.tolist() == [[5, 6], [1, 2]]
    assert taken.quarantined == (error,)
    assert batch.take([1], [("new",)]).keys == [("new",)]
    assert len(batch.take([])) == 0
    assert batch.take([]).dimension == 2


def test_a_batch_without_a_row_to_quarantine_is_not_copied() -> None:
    batch = to_batch([[1, 2], [0, -1]])
    assert batch.validated(cosine=True) is batch


def test_each_row_that_cannot_be_stored_is_quarantined_with_its_reason_and_the_others_keep_their_place() -> None:
    nan, infinity = float("nan"), float("inf")
    before = RowError("before", Reason.DIMENSION, "")
    batch = to_batch(
        [[1, 2], [nan, 1], [infinity, 1], [-infinity, nan], [0, 0], [-0.0, 0.0], [3, 4], [5, 6]],
        texts=["a", None, None, None, None, None, "nul\0", "z"],
        quarantined=(before,),
    )
    checked = batch.validated(cosine=True)
    assert (checked.source_keys, checked.texts) == (["k0", "k7"], ["a", "z"])
    assert reasons(checked) == {
        "before": Reason.DIMENSION,
        "k1": Reason.NOT_FINITE,
        "k2": Reason.NOT_FINITE,
        "k3": Reason.NOT_FINITE,
        "k4": Reason.ZERO,
        "k5": Reason.ZERO,
        "k6": Reason.NUL,
    }


def test_a_zero_vector_has_a_place_under_other_distances() -> None:
    assert to_batch([[0, 0]]).validated(cosine=False).quarantined == ()


@pytest.mark.parametrize(
    "metadata",
    [
        {"text": "\0"},
        {"a\0b": 1},
        {"list": ["fine", "not\0fine"]},
        {"nested": {"deeper": [{"deepest": "\0"}]}},
        {"pair": ("x", "\0")},
    ],
)
def test_a_nul_is_found_wherever_it_hides_in_metadata(metadata: Any) -> None:
    batch = to_batch([[1, 1], [1, 1]], metadata=[metadata, {"fine": ["\x01", None, 1.5, True]}])
    assert reasons(batch.validated(cosine=True)) == {"k0": Reason.NUL}


@pytest.mark.parametrize(
    ("value", "reason"), [(65_520.0, Reason.NOT_FINITE), (65_519.0, None), (2**-25, Reason.ZERO), (2**-24, None)]
)
def test_a_halfvec_is_judged_by_what_the_cast_leaves(value: float, reason: Reason | None) -> None:
    vectors: Vectors = np.full((1, 2), value, np.float32)
    assert to_batch(vectors).validated(cosine=True).quarantined == ()
    half = to_batch(vectors).validated(cosine=True, storage="halfvec")
    assert reasons(half) == ({"k0": reason} if reason else {})


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, Reason.NOT_FINITE), (np.inf, Reason.NOT_FINITE), (0.0, Reason.ZERO)]
)
def test_a_bad_vector_is_found_in_a_batch_of_vectors_alone(value: float, reason: Reason) -> None:
    vectors = np.array([[1, 2], [value, 0], [3, 4]], np.float32)
    valid = VectorBatch(source_keys=["a", "b", "c"], vectors=vectors).validated(cosine=True)
    assert list(valid.source_keys) == ["a", "c"]
    assert [(error.key, error.reason) for error in valid.quarantined] == [("b", reason)]


@pytest.mark.parametrize("value", [1e-30, 1e-45, 3e38])
def test_a_vector_whose_squared_length_is_no_float32_is_kept(value: float) -> None:
    vectors = np.full((2, 8), value, np.float32)
    assert VectorBatch(source_keys=["a", "b"], vectors=vectors).validated(cosine=True).quarantined == ()


def test_an_empty_batch_is_valid() -> None:
    batch = to_batch(np.empty((0, 4)))
    assert batch.validated(cosine=True) is batch
