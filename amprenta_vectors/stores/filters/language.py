"""Pinecone's metadata filter language, read and evaluated; :mod:`amprenta_vectors.stores.filters.sql` compiles it.

A filter maps fields to operands: ``{"genre": "drama", "year": {"$gte": 1990, "$lt": 2000}}``. Several fields, or
several operators on one field, must all hold; ``$and`` and ``$or`` take lists of filters and nest.

=====================  ==========================================  =========================================
operator               operand                                     matches
=====================  ==========================================  =========================================
``$eq`` (or none)      a string, number or boolean                 a field that equals it
``$ne``                a string, number or boolean                 whatever ``$eq`` does not
``$gt $gte $lt $lte``  a number                                    a number so related to it
``$in``                up to 10,000 strings, or numbers            a field that equals one of them
``$nin``               up to 10,000 strings, or numbers            whatever ``$in`` does not
``$exists``            a boolean                                   whether the record has the field
=====================  ==========================================  =========================================

What the service's documentation leaves open is settled as follows, wherever a filter runs:

- A **missing field** equals nothing and is in no range, so ``$ne`` and ``$nin`` match it, as in MongoDB's language,
  which Pinecone's is a part of. Pinecone has no null; where a document holds one, the field counts as missing.
- A **list of strings** takes on each of its values: ``$eq`` and ``$in`` match when any value does, ``$ne`` and ``$nin``
  when none does. Other elements of a list match nothing, and a list is in no range.
- **Numbers** are float64 on both sides: two integers past 2**53 that round to one float64 are equal. Too large for
  float64 is beyond every operand.
- A **boolean** is never a number, a number never a string, and the empty list or a nested object equals nothing.
- An operand that the service refuses (null, a list under ``$eq``, a mixed list or booleans under ``$in``) is refused
  here. ``{}``, whole or as a field's operand, asks for nothing and matches everything.

Sources: https://docs.pinecone.io/guides/search/filter-by-metadata and
https://docs.pinecone.io/reference/api/database-limits/operation-limits; for refusals, an empty ``$in`` and ``{}``,
mastra's tests against the service (stores/pinecone/src/vector/index.test.ts); for missing fields, haystack's
(haystack-core-integrations, integrations/pinecone/tests/test_filters.py), which expect them under ``$nin``; ``$ne`` was
reported to leave them out in March 2024 (its issue 590, since closed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amprenta_vectors.errors import FilterError

RANGES = ("$gt", "$gte", "$lt", "$lte")
FIELD_OPERATORS = ("$eq", "$ne", *RANGES, "$in", "$nin", "$exists")
GROUP_OPERATORS = ("$and", "$or")

MAX_VALUES = 10_000
"""Values that Pinecone takes in one ``$in`` or ``$nin``."""
MAX_DEPTH = 100
"""Levels to which ``$and`` and ``$or`` may nest: our own limit, far below the one of PostgreSQL's parser."""
MAX_COMPARISONS = 1000
"""Comparisons in one filter as a whole: our own limit. PostgreSQL plans so many in about a tenth of a second."""
MAX_FILTERS = 2000
MAX_TOTAL_VALUES = 20_000
MAX_BYTES = 4 * 1024 * 1024
"""Filters within ``$and`` and ``$or``, values, and bytes of names and texts (in UTF-8), in one filter as a whole: our
own limits, for filters from strangers."""

Operand = str | float | bool | tuple[str, ...] | tuple[float, ...]
"""The operand of a comparison: a number is always a float; ``$in`` and ``$nin`` take all strings or all numbers."""


@dataclass(frozen=True)
class Comparison:
    """One operator on one field."""

    field: str
    operator: str
    operand: Operand

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether a record with this metadata matches."""
        value = metadata.get(self.field)
        match self.operator:
            case "$exists":
                return (value is not None) is self.operand
            case "$eq":
                return _equals_any(value, (self.operand,))
            case "$ne":
                return not _equals_any(value, (self.operand,))
            case "$in":
                return _equals_any(value, self.operand)
            case "$nin":
                return not _equals_any(value, self.operand)
            case _:
                return _in_range(value, self.operator, self.operand)


@dataclass(frozen=True)
class AllOf:
    """A condition of which every part must match; without parts, everything does."""

    parts: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether a record with this metadata matches."""
        return all(part.matches(metadata) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """A condition of which at least one part must match."""

    parts: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether a record with this metadata matches."""
        return any(part.matches(metadata) for part in self.parts)


Condition = Comparison | AllOf | AnyOf


class _Size:
    """What a filter asks for as a whole, counted while it is parsed."""

    LIMITS: ClassVar = {
        "filters in $and and $or": MAX_FILTERS,
        "comparisons": MAX_COMPARISONS,
        "values": MAX_TOTAL_VALUES,
        "bytes of names and texts": MAX_BYTES,
    }

    def __init__(self) -> None:
        self._counts = dict.fromkeys(self.LIMITS, 0)

    def add_filters(self, more: int) -> None:
        """Count the filters of a group. Raises `FilterError` if the filter is too large."""
        self._add("filters in $and and $or", more)

    def add(self, comparison: Comparison) -> Comparison:
        """Count one comparison and return it. Raises `FilterError` if the filter is too large."""
        operand = comparison.operand
        values = operand if isinstance(operand, tuple) else (operand,)
        self._add("comparisons", 1)
        self._add("values", len(values))
        for text in (comparison.field, *values):
            if isinstance(text, str):
                self._add("bytes of names and texts", len(text.encode(errors="surrogatepass")))
        return comparison

    def _add(self, what: str, more: int) -> None:
        self._counts[what] += more
        if self._counts[what] > self.LIMITS[what]:
            raise FilterError(
                f"a filter has at most {self.LIMITS[what]:,} {what} as a whole; this one has more",
                hint="$in takes a list of values in place of as many $eq under $or; or ask several times",
            )


def parse_filter(filter: Mapping[str, Any]) -> Condition:
    """Parse a filter. Raises `FilterError` naming the operator or operand that the language does not have.

    So it does for a filter that is too large as a whole: more than 2,000 filters in groups, 1,000 comparisons, 20,000
    values or 4 MB of names and texts.
    """
    return _parse(filter, 0, _Size())


def _parse(filter: Any, depth: int, size: _Size) -> Condition:
    if not isinstance(filter, Mapping):
        raise FilterError(f"a filter maps fields to operands; got {_kind(filter)}", hint='write {"field": value}')
    if depth > MAX_DEPTH:
        raise FilterError(f"a filter nests deeper than {MAX_DEPTH} levels", hint="flatten it: $and and $or take lists")
    parts: list[Condition] = []
    for name, operand in filter.items():
        if not isinstance(name, str):
            raise FilterError(f"a field's name is a string; got {_kind(name)}")
        if name in GROUP_OPERATORS:
            parts.append(_parse_group(name, operand, depth, size))
        elif name.startswith("$"):
            raise _unknown(name, "in place of a field", GROUP_OPERATORS)
        elif isinstance(operand, Mapping):
            parts.extend(size.add(_parse_comparison(name, operator, value)) for operator, value in operand.items())
        else:
            parts.append(size.add(_parse_comparison(name, "$eq", operand)))
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _parse_group(operator: str, operand: Any, depth: int, size: _Size) -> Condition:
    if not isinstance(operand, list | tuple) or not operand:
        raise FilterError(f"{operator} takes a list of at least one filter; got {_kind(operand)}")
    size.add_filters(len(operand))
    parts = tuple(_parse(item, depth + 1, size) for item in operand)
    return AllOf(parts) if operator == "$and" else AnyOf(parts)


def _parse_comparison(field: str, operator: Any, operand: Any) -> Comparison:
    where = f"on field {field!r}"
    if operator not in FIELD_OPERATORS:
        raise _unknown(operator, where, FIELD_OPERATORS)
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise FilterError(f"$exists {where} takes true or false; got {_kind(operand)}")
        return Comparison(field, operator, operand)
    if operator in ("$in", "$nin"):
        return Comparison(field, operator, _parse_values(operator, where, operand))
    if operator in RANGES:
        if not _is_number(operand):
            raise FilterError(f"{operator} {where} takes a number; got {_kind(operand)}")
        return Comparison(field, operator, _parse_number(operator, where, operand))
    if isinstance(operand, str | bool):
        # A subclass of str may have another repr, and filters are told apart by their repr.
        return Comparison(field, operator, operand[:] if isinstance(operand, str) else operand)
    if not _is_number(operand):
        raise FilterError(
            f"{operator} {where} takes a string, a number or a boolean; got {_kind(operand)}",
            hint="$in takes a list, $exists asks for a missing field",
        )
    return Comparison(field, operator, _parse_number(operator, where, operand))


def _parse_values(operator: str, where: str, operand: Any) -> tuple[str, ...] | tuple[float, ...]:
    takes = f"{operator} {where} takes a list of strings or a list of numbers"
    if not isinstance(operand, list | tuple):
        raise FilterError(f"{takes}; got {_kind(operand)}")
    if len(operand) > MAX_VALUES:
        raise FilterError(f"{operator} {where} takes at most {MAX_VALUES} values; got {len(operand)}")
    if all(isinstance(value, str) for value in operand):
        return tuple(value[:] for value in operand)
    if all(_is_number(value) for value in operand):
        return tuple(_parse_number(operator, where, value) for value in operand)
    raise FilterError(f"{takes}; got a list of {', '.join(sorted({_kind(value) for value in operand}))}")


def _parse_number(operator: str, where: str, operand: float) -> float:
    number = _as_float(operand)
    if not math.isfinite(number):
        raise FilterError(f"{operator} {where} takes a finite number that a float64 can hold")
    return number


def _unknown(operator: Any, where: str, allowed: tuple[str, ...]) -> FilterError:
    return FilterError(f"unknown filter operator {operator!r} {where}", hint=f"one of: {', '.join(allowed)}")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", str: "string", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _equals_any(value: Any, operands: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(item, str) and item in operands for item in value)
    if isinstance(value, bool):
        return any(value is operand for operand in operands)
    if isinstance(value, str):
        return value in operands
    if not _is_number(value):
        return False
    number = _as_float(value)
    return any(number == operand for operand in operands if not isinstance(operand, bool))


def _in_range(value: Any, operator: str, operand: Any) -> bool:
    if not _is_number(value):
        return False
    number = _as_float(value)
    match operator:
        case "$gt":
            return bool(number > operand)
        case "$gte":
            return bool(number >= operand)
        case "$lt":
            return bool(number < operand)
        case _:
            return bool(number <= operand)
