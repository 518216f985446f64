"""What PostgreSQL cannot hold in a text or in metadata is found, and taken out where a person asked for it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.reasons import Reason
from amprenta_vectors.storable import fault_of, strip

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.sampled_from("ab\0"), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from("a\0"), max_size=2), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(text=st.none() | st.text(st.sampled_from("ab\0"), max_size=3), metadata=st.dictionaries(st.text("ab"), VALUES))
def test_what_is_stripped_can_be_held_and_the_rest_stays(text: str | None, metadata: dict[str, Any]) -> None:
    try:
        kept, fields, changed = strip(text, metadata)
    except ValueError:
        assert fault_of(text, metadata) is not None
        return
    assert fault_of(kept, fields) is None
    assert bool(changed) == (fault_of(text, metadata) is not None)
    written = json.dumps(fields, allow_nan=False)
    assert "\\u0000" not in written
    if not changed:
        assert (kept, json.dumps(fields)) == (text, json.dumps(metadata))


def to_batch(*rows: tuple[str | None, dict[str, Any]]) -> VectorBatch:
    keys = [f"k{place}" for place in range(len(rows))]
    texts, metadata = [text for text, _ in rows], [fields for _, fields in rows]
    return VectorBatch(keys, np.ones((len(rows), 2), np.float32), texts, metadata)


def test_each_row_that_was_changed_is_noted_and_the_others_are_as_they_were() -> None:
    batch = to_batch(("a\0b\0", {}), ("plain", {"n": 1}), (None, {"x": [float("nan")], "y\0": "\0"}))
    found = batch.stripped()
    assert found.texts == ["ab", "plain", None]
    assert found.metadata == [{}, {"n": 1}, {"x": [None], "y": ""}]
    assert [(row.key, row.reason) for row in found.quarantined] == [
        ("k0", Reason.NUL_STRIPPED),
        ("k2", Reason.NUL_STRIPPED),
    ]
    assert "2 NUL characters in the text" in found.quarantined[0].detail
    assert len(found.validated(cosine=True)) == 3


def test_two_fields_that_would_have_one_name_stay_quarantined() -> None:
    batch = to_batch(("x", {"a": 1, "a\0": 2})).stripped()
    assert [row.reason for row in batch.validated(cosine=True).quarantined] == [Reason.NUL]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_not_are_found_wherever_they_hide(number: float) -> None:
    for metadata in ({"x": number}, {"x": [1, number]}, {"x": {"y": [{"z": number}]}}):
        assert (fault_of("text", metadata) or ("",))[0] == Reason.NOT_JSON
