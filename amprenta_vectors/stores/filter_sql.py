"""Metadata filters as bound SQL over jsonb."""

from __future__ import annotations

import json
import math
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from amprenta_vectors.stores.filters import AllOf, AnyOf, Comparison, Condition

MOST_INDEXED = 16
"""Values of one ``$in`` that an index is asked for one by one; a longer list is hashed, and rows looked up in it."""


def to_sql(
    condition: Condition,
    metadata_column: sa.ColumnElement[Any],
    *,
    text_field: str | None = None,
    text_column: sa.ColumnElement[Any] | None = None,
) -> sa.ColumnElement[bool]:
    """The condition over a jsonb column, for a WHERE clause: NULL stands for false where a field is missing.

    Every field name and operand is bound. Nothing is cast, so no metadata makes PostgreSQL raise. ``$eq``, and ``$in``
    of up to `MOST_INDEXED` values, are containment (``@>``), which a GIN index with ``jsonb_path_ops`` serves; it takes
    stored numbers to be written as float64 are, in at most 17 significant digits, or as integers. Conditions on
    ``text_field`` go to ``text_column``, where one is given.
    """
    match condition:
        case AllOf(parts) | AnyOf(parts):
            compiled = [to_sql(part, metadata_column, text_field=text_field, text_column=text_column) for part in parts]
            return sa.and_(sa.true(), *compiled) if isinstance(condition, AllOf) else sa.or_(sa.false(), *compiled)
        case Comparison(field, operator, operand):
            positive = {"$ne": "$eq", "$nin": "$in"}.get(operator, operator)
            if text_column is not None and field == text_field:
                expression = _text_sql(positive, operand, text_column)
            else:
                expression = _field_sql(positive, operand, field, metadata_column)
            negated = operator in ("$ne", "$nin") or (operator == "$exists" and operand is False)
            return expression.is_not(sa.true()) if negated else expression


def _text_sql(operator: str, operand: Any, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    if operator == "$exists":
        return column.is_not(None)
    values = (operand,) if operator == "$eq" else operand
    texts = [value for value in values if is_storable(value)] if operator in ("$eq", "$in") else []
    return _is_any(column, texts, sa.Text()) if texts else sa.false()


def _field_sql(operator: str, operand: Any, field: str, metadata: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    if not is_storable(field):
        return sa.false()
    value = metadata.op("->", return_type=JSONB())(sa.bindparam(None, field, sa.Text(), unique=True))
    kind = sa.func.jsonb_typeof(value)
    match operator:
        case "$exists":
            return kind != "null"
        case "$eq":
            return _equal_sql(operand, field, metadata, value)
        case "$in":
            return _in_sql(operand, field, metadata, value)
        case _:
            return sa.and_(kind == "number", _bound_sql(operator, operand, value))


def _equal_sql(
    operand: Any, field: str, metadata: sa.ColumnElement[Any], value: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    if isinstance(operand, str):
        if not is_storable(operand):
            return sa.false()
        return sa.or_(_contains(metadata, {field: operand}), _contains(metadata, {field: [operand]}))
    return _contains(metadata, {field: operand}) if _is_exact(operand) else _rounds_to(operand, value)


def _in_sql(
    operands: Any, field: str, metadata: sa.ColumnElement[Any], value: sa.ColumnElement[Any]
) -> sa.ColumnElement[bool]:
    if len(operands) <= MOST_INDEXED:
        return sa.or_(sa.false(), *(_equal_sql(operand, field, metadata, value) for operand in operands))
    exact = [operand for operand in operands if _is_exact(operand)]
    parts = [
        _rounds_to(operand, value) for operand in operands if not isinstance(operand, str) and operand not in exact
    ]
    if exact:
        parts.append(_is_any(value, exact, JSONB()))
    texts = [operand for operand in exact if isinstance(operand, str)]
    if texts:
        # ?| looks at an object's keys too, hence the type.
        overlaps = value.op("?|", return_type=sa.Boolean())(_array(texts, sa.Text()))
        parts.append(sa.and_(sa.func.jsonb_typeof(value) == "array", overlaps))
    return sa.or_(sa.false(), *parts)


def _is_exact(operand: Any) -> bool:
    """Whether jsonb can hold the operand, and its equality, exact for numbers, is that of float64."""
    if isinstance(operand, str):
        return is_storable(operand)
    return isinstance(operand, bool) or abs(operand) < 2**53


def is_storable(text: Any) -> bool:
    """Whether PostgreSQL can hold a text: it refuses NUL and lone surrogates, so nothing stored can equal those."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _contains(metadata: sa.ColumnElement[Any], document: dict[str, Any]) -> sa.ColumnElement[bool]:
    return metadata.op("@>", is_comparison=True, return_type=sa.Boolean())(_json(json.dumps(document)))


def _is_any(column: sa.ColumnElement[Any], values: list[Any], type_: Any) -> sa.ColumnElement[bool]:
    """``= ANY(array)``: PostgreSQL hashes a long list, where a chain of OR would be tried one by one."""
    items = [json.dumps(value) for value in values] if isinstance(type_, JSONB) else values
    return column == sa.func.any(_array(items, type_))


def _array(items: list[str], type_: Any) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(None, items, ARRAY(sa.Text()), unique=True), ARRAY(type_))


def _json(text: str) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(None, text, sa.Text(), unique=True), JSONB)


def _rounds_to(number: float, value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    return sa.and_(
        sa.func.jsonb_typeof(value) == "number", _bound_sql("$gte", number, value), _bound_sql("$lte", number, value)
    )


def _bound_sql(operator: str, number: float, value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """A comparison of a stored number, which is exact, with a float64 operand, as if the stored one were rounded.

    The numbers that round to ``number`` lie between the midpoints to its neighbours, and a midpoint rounds to whichever
    is even. So the edge to compare with is a midpoint, and whether it is included follows from what it rounds to.
    """
    upper = operator in ("$gt", "$lte")
    edge = _midpoint(number, math.inf if upper else -math.inf)
    rounds_here = float(edge) == number
    bound = _json(str(edge))
    match operator:
        case "$gt":
            return value > bound if rounds_here else value >= bound
        case "$lte":
            return value <= bound if rounds_here else value < bound
        case "$gte":
            return value >= bound if rounds_here else value > bound
        case _:
            return value < bound if rounds_here else value <= bound


def _midpoint(number: float, towards: float) -> Decimal:
    neighbour = math.nextafter(number, towards)
    here = Fraction(number)
    # Past the largest float64, rounding goes on as if its next neighbour existed.
    there = 2 * here - Fraction(math.nextafter(number, -towards)) if math.isinf(neighbour) else Fraction(neighbour)
    middle = (here + there) / 2
    # The denominator is a power of two, so the quotient is exact; no float64 has more than 1100 digits.
    return Context(prec=1100).divide(Decimal(middle.numerator), Decimal(middle.denominator))
