"""Key maps: which rows a source key becomes, and back."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.key_values import are_canonical, canonical
from amprenta_vectors.schema.keymaps import Identity, KeyMap, Numbered, OwnKeys, Split, Uuid5, check_invertible


def to_batch(*source_keys: str) -> VectorBatch:
    vectors = np.arange(len(source_keys), dtype=np.float32).reshape(-1, 1)
    return VectorBatch(source_keys=source_keys, vectors=vectors, quarantined=(RowError("bad", Reason.DIMENSION, ""),))


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
    assert mapped.quarantined == batch.quarantined


@pytest.mark.parametrize("key_map", [Identity(), Numbered()])
def test_an_empty_batch_stays_empty(key_map: KeyMap) -> None:
    assert key_map.apply(to_batch()).keys == []


def test_names_tell_the_maps_apart() -> None:
    assert Identity().name != Numbered().name


@pytest.mark.parametrize(
    ("type_", "source_keys"),
    [
        ("bigint", ["1", "20", "9" * 18]),
        ("bigint", ["1", "042", "0", "-5", "", "+1", "1_0", " 1", "\u0661", "x", "9" * 19, "1\0"]),
        ("smallint", ["9999", "32767", "32768"]),
        ("uuid", [str(uuid.UUID(int=number)) for number in (1, 2**127)]),
        ("uuid", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", str(uuid.UUID(int=3)) + "\n", "", "no uuid"]),
        ("text", ["a", "042", "", "\n", '"', "\\"]),
        ("text", ["a", "a\0b"]),
        ("numeric", ["1.50", "x"]),
        ("bigint", []),
    ],
)
def test_keys_that_are_looked_at_together_become_what_each_becomes_alone(type_: str, source_keys: list[str]) -> None:
    key_map = OwnKeys([type_])
    alone = {key: source for source in source_keys if (key := key_map.to_key(source)) is not None}
    assert key_map.to_keys(source_keys) == alone
    for source in source_keys:
        assert are_canonical([source], type_) <= (canonical(source, type_) == source), source


def keys_of(key_map: KeyMap, *source_keys: str) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    mapped = key_map.apply(to_batch(*source_keys))
    assert mapped.keys is not None
    return list(mapped.keys), {error.key: error.detail for error in mapped.quarantined if error.key != "bad"}


SPELLINGS = [
    "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
    "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
    "a0eebc999c0b4ef8bb6d6bb9bd380a11",
    "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_uuid_that_postgresql_reads_is_that_uuid(spelling: str) -> None:
    assert keys_of(Identity(["uuid"]), spelling) == ([("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",)], {})


@pytest.mark.parametrize(
    "text",
    ["", "abc", "{" + SPELLINGS[0], SPELLINGS[0] + "}", SPELLINGS[0] + "0", "urn:uuid:" + SPELLINGS[0], "\u0660" * 32],
)
def test_what_is_no_uuid_has_no_key(text: str) -> None:
    keys, why = keys_of(Identity(["uuid"]), text)
    assert (keys, list(why)) == ([], [text])


def test_of_two_spellings_of_one_uuid_the_first_counts_and_the_other_is_quarantined() -> None:
    keys, why = keys_of(Identity(["uuid"]), SPELLINGS[0], SPELLINGS[1])
    assert len(keys) == 1
    assert why == {SPELLINGS[1]: f"{SPELLINGS[0]!r} is another spelling of the same key"}


@pytest.mark.parametrize(
    ("type_name", "text", "fits"),
    [
        ("bigint", "42", True),
        ("bigint", "-7", True),
        ("bigint", "0", True),
        ("bigint", "9223372036854775807", True),
        ("bigint", "9223372036854775808", False),
        ("bigint", "-9223372036854775808", True),
        ("integer", "2147483648", False),
        ("smallint", "32768", False),
        ("bigint", "042", False),
        ("bigint", "-0", False),
        ("bigint", "+1", False),
        ("bigint", " 1", False),
        ("bigint", "1_000", False),
        ("bigint", "0x10", False),
        ("bigint", "1.0", False),
        ("bigint", "abc", False),
        ("bigint", "", False),
        ("bigint", "٤٢", False),
        ("bigint", "9" * 5000, False),
        ("text", "042", True),
        ("character varying(3)", "longer than three", True),
        ("text", "a\0b", False),
    ],
)
def test_an_integer_has_one_spelling_and_text_stays_as_it_is(type_name: str, text: str, fits: bool) -> None:
    keys, why = keys_of(Identity([type_name]), text)
    assert (keys, list(why)) == (([(text,)], []) if fits else ([], [text]))


def test_a_composite_key_is_split_from_the_end_and_joined_again() -> None:
    split = Split("#", 3, ["text", "integer", "uuid"])
    source = f"a#b#12#{SPELLINGS[2]}"
    keys, why = keys_of(split, source, f"x#012#{SPELLINGS[2]}", "one#part")
    assert keys == [("a#b", "12", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")]
    assert why == {f"x#012#{SPELLINGS[2]}": "'012' is no integer", "one#part": "2 parts between '#'; expected 3"}
    assert Split("::", 2).to_source(("a::b", "c")) == "a::b::c"


def test_uuid5_is_of_namespace_scope_and_source_key_and_has_no_way_back() -> None:
    namespace = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
    hashed = Uuid5(namespace, {"tenant": "acme", "kind": "faq"})
    assert keys_of(hashed, "a")[0] == [(str(uuid.uuid5(namespace, "acme/faq/a")),)]
    assert keys_of(Uuid5(namespace, {}), "a")[0] == [(str(uuid.uuid5(namespace, "a")),)]
    with pytest.raises(ConfigError, match="cannot be turned back") as caught:
        check_invertible(hashed)
    assert "--keys-from source" in caught.value.hint
    check_invertible(Identity())


def test_a_key_map_that_moves_no_row_copies_no_vector() -> None:
    batch = to_batch("a", "b")
    assert Identity().apply(batch).vectors is batch.vectors


def test_parameters_are_part_of_the_name() -> None:
    one, two = uuid.uuid4(), uuid.uuid4()
    assert Split("#", 2).name != Split("/", 2).name
    assert Uuid5(one, {}).name != Uuid5(two, {}).name
