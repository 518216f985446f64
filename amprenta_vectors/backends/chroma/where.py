"""The part of a filter that Chroma can apply: it narrows a search, whose hits are checked against the whole filter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from amprenta_vectors.stores.filters.language import RANGES, AllOf, Comparison, Condition

EXACT_BELOW = 2**48
"""Chroma compares integers and floats as numbers up to here (measured, chromadb 1.5.9: up to 2**50)."""
MOST_VALUES = 1000
"""Values of one ``$in``: Chroma binds an SQLite variable to each, and a statement has at most 32,766."""
MOST_CONDITIONS = 100
"""Values of one ``$in`` that need a condition each: strings, which may be in lists, and numbers that are not whole."""
MOST_PARTS = 200
"""Comparisons in one filter: each deepens SQLite's expression tree, which may not be deeper than 1000."""
DEEPEST = 20
"""Levels of nested groups: Chroma's server refuses JSON that nests deeper than 128 levels."""

Where = dict[str, Any]

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def to_where(condition: Condition, text_field: str) -> Where | None:
    """Return a filter of Chroma's that every record matching ``condition`` passes, or None if Chroma has none.

    Other records may pass it too. ``text_field`` is not in Chroma's metadata. A negated comparison is left out: Chroma
    treats records without the field differently.
    """
    where = _to_where(condition, text_field, 0)
    return None if where is None or _parts(where) > MOST_PARTS else where


def _to_where(condition: Condition, text_field: str, depth: int) -> Where | None:
    if isinstance(condition, Comparison):
        return None if condition.field == text_field else _compared(condition)
    if depth > DEEPEST:
        return None
    parts = [_to_where(part, text_field, depth + 1) for part in condition.parts]
    if isinstance(condition, AllOf):
        return _joined("$and", parts)
    return None if None in parts else _joined("$or", parts)


def _compared(comparison: Comparison) -> Where | None:
    field, operator, operand = comparison.field, comparison.operator, comparison.operand
    if not _PLAIN.fullmatch(field):
        return None
    if operator in RANGES:
        return _ranged(field, operator, operand) if isinstance(operand, float) and _is_exact(operand) else None
    if operator == "$eq" and isinstance(operand, bool):
        return {field: {"$eq": operand}}
    values = operand if operator == "$in" else (operand,) if operator == "$eq" else ()
    if not isinstance(values, tuple) or not values:
        return None
    if all(map(_is_exact, values)):
        return _among(field, values)
    if len(values) > MOST_CONDITIONS or not all(map(_is_plain_text, values)):
        return None
    return _joined("$or", [{field: {"$in": list(values)}}, *({field: {"$contains": text}} for text in values)])


def _among(field: str, numbers: Sequence[Any]) -> Where | None:
    whole = [number for number in numbers if number.is_integer()]
    broken = [number for number in numbers if not number.is_integer()]
    if len(whole) > MOST_VALUES or len(broken) > MOST_CONDITIONS:
        return None
    around = [_joined("$and", [_ranged(field, "$gte", number), _ranged(field, "$lte", number)]) for number in broken]
    return _joined("$or", [{field: {"$in": whole}} if whole else None, *around])


def _ranged(field: str, operator: str, operand: float) -> Where:
    """Compare with the next whole number, so that nothing in the range is missed.

    Chroma cuts the digits after the point off an operand that it compares with an integer, and may change the last
    digit of a float, in an operand as in what it stores.
    """
    rounded = math.ceil(operand) if operator in ("$lt", "$lte") else math.floor(operand)
    return {field: {operator if rounded == operand else operator.removesuffix("e") + "e": float(rounded)}}


def _is_exact(value: Any) -> bool:
    return isinstance(value, float) and abs(value) < EXACT_BELOW


def _is_plain_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _joined(operator: str, parts: Iterable[Where | None]) -> Where | None:
    """Join the parts that are not None; Chroma takes a group of two or more only."""
    said = [part for part in parts if part is not None]
    if len(said) < 2:
        return said[0] if said else None
    return {operator: said}


def _parts(where: Where) -> int:
    (value,) = where.values()
    return sum(map(_parts, value)) if isinstance(value, list) else 1
