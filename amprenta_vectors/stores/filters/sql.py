"""Translates metadata filters to bound SQL over jsonb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from amprenta_vectors.errors import FilterUnsupported
from amprenta_vectors.stores.filters.columns import MOST_INDEXED, FilterColumn, column_sql, compare
from amprenta_vectors.stores.filters.language import AllOf, AnyOf, Comparison, Condition
from amprenta_vectors.stores.filters.values import edge, is_storable, rounds_to_any


def to_sql(
    condition: Condition,
    metadata: sa.ColumnElement[Any] | None,
    columns: Mapping[str, FilterColumn] | None = None,
) -> sa.ColumnElement[bool]:
    """Return the condition over a jsonb column, for a WHERE clause: NULL stands for false if a field is missing.

    Every field name and operand is bound. Nothing is cast, so no metadata makes PostgreSQL raise. ``$eq``, and ``$in``
    of up to `MOST_INDEXED` values, are containment (``@>``), which a GIN index with ``jsonb_path_ops`` serves; it takes
    stored numbers to be written as float64 are, in at most 17 significant digits, or as integers. Conditions on a field
    in ``columns`` go to that column of the table instead. Raises `FilterUnsupported` for a column of a type that no
    operand can equal, and for any other field if there is no ``metadata``.
    """
    match condition:
        case AllOf(parts) | AnyOf(parts):
            compiled = [to_sql(part, metadata, columns) for part in parts]
            return sa.and_(sa.true(), *compiled) if isinstance(condition, AllOf) else sa.or_(sa.false(), *compiled)
        case Comparison(field, operator, operand):
            positive = {"$ne": "$eq", "$nin": "$in"}.get(operator, operator)
            if columns is not None and field in columns:
                expression = column_sql(positive, operand, columns[field].typed(field))
            elif metadata is not None:
                expression = _field_sql(positive, operand, field, metadata)
            else:
                raise _no_such_field(field, columns or {})
            negated = operator in ("$ne", "$nin") or (operator == "$exists" and operand is False)
            return expression.is_not(sa.true()) if negated else expression


def _no_such_field(field: str, columns: Mapping[str, Any]) -> FilterUnsupported:
    return FilterUnsupported(
        f"the table has no metadata column to filter by, and no column for {field!r}",
        hint=(f"one of: {', '.join(columns)}; " if columns else "")
        + "amprenta-vectors doctor names a column that may hold metadata",
    )


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
    inexact = [operand for operand in operands if not isinstance(operand, str) and not _is_exact(operand)]
    parts: list[sa.ColumnElement[bool]] = []
    if inexact:
        rounded = rounds_to_any(value, inexact, lambda edges: _array([str(each) for each in edges], JSONB()))
        parts.append(sa.and_(sa.func.jsonb_typeof(value) == "number", rounded))
    if exact:
        parts.append(_is_any(value, exact, JSONB()))
    texts = [operand for operand in exact if isinstance(operand, str)]
    if texts:
        # ?| looks at an object's keys too, hence the type.
        overlaps = value.op("?|", return_type=sa.Boolean())(_array(texts, sa.Text()))
        parts.append(sa.and_(sa.func.jsonb_typeof(value) == "array", overlaps))
    return sa.or_(sa.false(), *parts)


def _is_exact(operand: Any) -> bool:
    """Return whether jsonb can hold the operand and compare it, as exact numbers, just as float64 does."""
    if isinstance(operand, str):
        return is_storable(operand)
    return isinstance(operand, bool) or abs(operand) < 2**53


def _contains(metadata: sa.ColumnElement[Any], document: dict[str, Any]) -> sa.ColumnElement[bool]:
    return metadata.op("@>", is_comparison=True, return_type=sa.Boolean())(_json(json.dumps(document)))


def _is_any(column: sa.ColumnElement[Any], values: list[Any], type_: Any) -> sa.ColumnElement[bool]:
    """Return ``= ANY(array)``: PostgreSQL hashes a long list, while it would try a chain of OR one by one."""
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
    """Compare a stored number, which is exact, with a float64 operand, as if the stored one were rounded."""
    operator, exact = edge(operator, number)
    return compare(operator, value, _json(str(exact)))
