"""The filter language, as a reader of Pinecone's documentation expects it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amprenta_vectors.errors import FilterError
from amprenta_vectors.stores.filters.language import MAX_VALUES, parse_filter

FIELDS = ["genre", "year", 'a"b', "a.b", "", "naïve ключ", "0"]
TEXTS = ["drama", "comedy", "", "1990", "true", "it's 100%", "\\", "ж"]
NUMBERS = [0, 1, -1, 1990, 1990.0, 0.1, 0.1 + 0.2, -0.0, 2**53, 2**53 + 1, 2**63, 1e308, 5e-324, 10**400, -(10**400)]
# What a float64 cannot hold may be stored, not asked for.
OPERANDS = [number for number in NUMBERS if abs(number) < 10**309]

texts = st.sampled_from(TEXTS) | st.text(max_size=3)
scalars = texts | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False)
documents = st.dictionaries(
    st.sampled_from(FIELDS),
    scalars | st.none() | st.lists(texts, max_size=3) | st.lists(scalars, max_size=2) | st.just({"drama": 1}),
    max_size=4,
)
operands = texts | st.booleans() | st.sampled_from(OPERANDS)
comparisons = st.one_of(
    operands,
    st.fixed_dictionaries({}, optional={"$eq": operands, "$ne": operands, "$exists": st.booleans()}),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(OPERANDS) for name in ("$gt", "$gte", "$lt", "$lte")}),
    st.fixed_dictionaries(
        {},
        optional={
            name: st.lists(texts, max_size=3) | st.lists(st.sampled_from(OPERANDS), max_size=3)
            for name in ("$in", "$nin")
        },
    ),
)
filters = st.recursive(
    st.dictionaries(st.sampled_from(FIELDS), comparisons, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$and": st.lists(inner, min_size=1, max_size=3), "$or": st.lists(inner, min_size=1, max_size=3)}
    ),
    max_leaves=5,
)


def plain_reading(filter: dict[str, Any], document: dict[str, Any]) -> bool:
    """Pinecone's documentation, sentence by sentence, without regard to how the package does it."""
    return all(
        any(plain_reading(item, document) for item in operand)
        if name == "$or"
        else all(plain_reading(item, document) for item in operand)
        if name == "$and"
        else all(
            holds(operator, value, document.get(name))
            for operator, value in (operand if isinstance(operand, dict) else {"$eq": operand}).items()
        )
        for name, operand in filter.items()
    )


def holds(operator: str, operand: Any, stored: Any) -> bool:
    values = [item for item in stored if type(item) is str] if type(stored) is list else [stored]
    values = [(type_of(item), as_float(item)) for item in values]
    if operator == "$exists":
        return operand == (stored is not None)
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        if type_of(stored) != "number":
            return False
        left, right = as_float(stored), as_float(operand)
        return {"$gt": left > right, "$gte": left >= right, "$lt": left < right, "$lte": left <= right}[operator]
    wanted = operand if operator in ("$in", "$nin") else [operand]
    found = any((type_of(item), as_float(item)) in values for item in wanted)
    return found if operator in ("$eq", "$in") else not found


def type_of(value: Any) -> str:
    if type(value) in (int, float):
        return "number"
    return type(value).__name__


def as_float(value: Any) -> Any:
    if type(value) is not int:
        return value if type(value) in (str, bool, float) else None
    if abs(value) >= 2**1024 - 2**970:
        return math.inf if value > 0 else -math.inf
    return float(value)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(filters, documents)
def test_matches_agrees_with_a_plain_reading_of_the_documentation(
    filter: dict[str, Any], document: dict[str, Any]
) -> None:
    assert parse_filter(filter).matches(document) == plain_reading(filter, document)


@pytest.mark.parametrize(
    ("filter", "document", "expected"),
    [
        ({"genre": "drama"}, {"genre": "drama"}, True),
        ({"genre": "drama"}, {"genre": ["comedy", "drama"]}, True),
        ({"genre": {"$ne": "drama"}}, {"genre": ["comedy", "drama"]}, False),
        ({"genre": {"$nin": ["drama", "horror"]}}, {"genre": ["comedy"]}, True),
        ({"$and": [{"genre": "comedy"}, {"genre": "drama"}]}, {"genre": ["comedy", "drama"]}, True),
        ({"genre": {"$ne": "drama"}}, {}, True),
        ({"genre": {"$nin": ["drama"]}}, {}, True),
        ({"genre": {"$in": []}}, {"genre": "drama"}, False),
        ({"genre": {"$nin": []}}, {"genre": "drama"}, True),
        ({"year": {"$gte": 1990, "$lt": 2000}}, {"year": 1990}, True),
        ({"year": {"$gte": 1990, "$lt": 2000}}, {"year": 2000.0}, False),
        ({"year": {"$gt": 1}}, {"year": "1990"}, False),
        ({"year": {"$gt": 1}}, {}, False),
        ({"flag": 1}, {"flag": True}, False),
        ({"flag": True}, {"flag": 1}, False),
        ({"id": 2**53}, {"id": 2**53 + 1}, True),
        ({"genre": {"$exists": True}}, {"genre": None}, False),
        ({"genre": {"$exists": False}}, {}, True),
        ({"genre": "drama", "year": 1990}, {"genre": "drama"}, False),
        ({"$or": [{"genre": "drama"}, {"year": 1990}]}, {"year": 1990}, True),
        ({"$or": [{"genre": "drama"}], "year": 1990}, {"genre": "drama"}, False),
        ({}, {"genre": "drama"}, True),
        ({"genre": {}}, {}, True),
    ],
)
def test_documented_examples(filter: dict[str, Any], document: dict[str, Any], expected: bool) -> None:
    assert parse_filter(filter).matches(document) is expected


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"genre": {"$regex": "d.*"}}, r"unknown filter operator '\$regex' on field 'genre'.*\$eq, \$ne"),
        ({"genre": {"name": "x"}}, r"unknown filter operator 'name' on field 'genre'"),
        ({"$not": [{"genre": "drama"}]}, r"unknown filter operator '\$not'.*\$and, \$or"),
        ({"$gt": 3}, r"unknown filter operator '\$gt' in place of a field"),
        ({"genre": None}, r"\$eq on field 'genre' takes a string, a number or a boolean; got null"),
        ({"genre": ["drama"]}, r"\$eq on field 'genre' takes .* got list.*\$in takes a list"),
        ({"year": {"$gt": "1990"}}, r"\$gt on field 'year' takes a number; got string"),
        ({"year": {"$lte": True}}, r"\$lte on field 'year' takes a number; got boolean"),
        ({"year": {"$gt": math.nan}}, r"\$gt on field 'year' takes a finite number"),
        ({"year": 10**400}, r"\$eq on field 'year' takes a finite number"),
        (
            {"genre": {"$in": "drama"}},
            r"\$in on field 'genre' takes a list of strings or a list of numbers; got string",
        ),
        ({"genre": {"$nin": ["drama", 1]}}, r"\$nin on field 'genre' .* got a list of number, string"),
        ({"flag": {"$in": [True]}}, r"\$in on field 'flag' .* got a list of boolean"),
        ({"year": {"$in": [0] * (MAX_VALUES + 1)}}, r"at most 10000 values; got 10001"),
        ({"genre": {"$exists": 1}}, r"\$exists on field 'genre' takes true or false; got number"),
        ({"$and": []}, r"\$and takes a list of at least one filter"),
        ({"$or": {"genre": "drama"}}, r"\$or takes a list of at least one filter; got dict"),
        ({"$or": ["drama"]}, r"a filter maps fields to operands; got string"),
        ({1: "drama"}, r"a field's name is a string; got number"),
    ],
)
def test_what_the_language_lacks_is_an_error_that_names_it(filter: Any, message: str) -> None:
    with pytest.raises(FilterError, match=f"(?s){message}"):
        parse_filter(filter)


def test_a_filter_too_deep_for_a_parser_is_refused() -> None:
    nested: dict[str, Any] = {"genre": "drama"}
    for _ in range(5000):
        nested = {"$and": [nested]}
    with pytest.raises(FilterError, match="deeper than 100"):
        parse_filter(nested)


def test_a_filter_that_grows_in_width_and_depth_is_refused_before_it_is_read_to_its_end() -> None:
    grown: dict[str, Any] = {"f": 1}
    for _ in range(60):
        grown = {"$or": [grown, grown, grown]}
    # Read to its end it has 3 ** 60 comparisons.
    with pytest.raises(FilterError, match="at most 1,000 comparisons as a whole"):
        parse_filter(grown)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"$or": [{"f": {"$in": ["x"] * 9000}}] * 3}, "at most 20,000 values as a whole"),
        ({"f": {"$in": ["x" * 1000] * 5000}}, "at most 4,194,304 bytes of names and texts"),
        ({"x" * 5_000_000: 1}, "at most 4,194,304 bytes of names and texts"),
        ({"f": "\N{GRINNING FACE}" * 1_100_000}, "at most 4,194,304 bytes of names and texts"),
        ({"f": "\ud800" * 1_400_000}, "at most 4,194,304 bytes of names and texts"),
        ({"$or": [{}] * 2001}, r"at most 2,000 filters in \$and and \$or as a whole"),
        ({"$or": [{"$and": [{"f": {}}] * 100}] * 20}, r"at most 2,000 filters in \$and and \$or as a whole"),
    ],
)
def test_a_filter_too_large_as_a_whole_is_refused(filter: dict[str, Any], message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_filter(filter)


def test_a_string_that_hides_itself_is_read_as_the_string_it_is() -> None:
    class Hidden(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "***"

    for write in (lambda value: value, lambda value: {"$ne": value}, lambda value: {"$in": [value]}):
        assert repr(parse_filter({"f": write(Hidden("a"))})) == repr(parse_filter({"f": write("a")}))
