"""Filters on columns of the table itself: the language and meaning are those over metadata, the values are typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from amprenta_vectors.errors import FilterUnsupported
from amprenta_vectors.pg.types import TEXTS, bare_type
from amprenta_vectors.stores.filters.language import RANGES
from amprenta_vectors.stores.filters.values import edge, is_storable, rounds_to_any

_INTEGERS = ("smallint", "integer", "bigint")
_LARGEST_INTEGER = 2**63 - 1
MOST_INDEXED = 16
"""Values of one ``$in`` for which an index is asked one by one; in a longer list, rows are looked up."""

_KINDS: dict[str, sa.types.TypeEngine[Any]] = {
    **dict.fromkeys(TEXTS, sa.Text()),
    **dict.fromkeys(_INTEGERS, sa.BigInteger()),
    "numeric": sa.Numeric(),
    "double precision": sa.Double(),
    "real": sa.REAL(),
    "boolean": sa.Boolean(),
}


@dataclass(frozen=True)
class FilterColumn:
    """A column of the table that a filter may ask; its type matters when one does."""

    column: sa.ColumnElement[Any]
    type_name: str
    """The type as SQL writes it; that of a domain's base, and text for an enumeration."""

    def typed(self, field: str) -> sa.ColumnElement[Any]:
        """Return the column as it is compared. Raises `FilterUnsupported` for a type that no operand can equal."""
        kind = _KINDS.get(bare_type(self.type_name))
        if kind is None:
            raise FilterUnsupported(
                f"a filter on {field!r} asks a column of type {self.type_name}; expected text, a number or a boolean",
                hint="filter on another field",
            )
        # Casting a text type to text loses no index; a number is compared in its own type.
        return sa.cast(self.column, kind) if isinstance(kind, sa.Text) else sa.type_coerce(self.column, kind)


def column_sql(operator: str, operand: Any, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return a comparison that is not negated, on a typed column of the table; NULL is a missing field.

    Numbers compare as Pinecone compares them, as float64 on both sides: so an exact column is compared with the values
    that round to the operand, and a ``real`` one with the operand as a ``real``.
    """
    if operator == "$exists":
        return column.is_not(None)
    values: Sequence[Any] = operand if operator == "$in" else (operand,)
    if isinstance(column.type, sa.Text):
        texts = [] if operator in RANGES else [value for value in values if is_storable(value)]
        return column == sa.func.any(_array(texts, sa.Text())) if texts else sa.false()
    if isinstance(column.type, sa.Boolean):
        wanted = [] if operator in RANGES else [value for value in values if isinstance(value, bool)]
        return sa.or_(sa.false(), *(column.is_(value) for value in wanted))
    numbers = [value for value in values if isinstance(value, float)]
    if operator in RANGES:
        return _ordered(operator, numbers[0], column)
    if isinstance(column.type, sa.Float):
        return column == sa.func.any(_array([_as_stored(value, column) for value in numbers], sa.Double()))
    if len(numbers) <= MOST_INDEXED:
        return sa.or_(sa.false(), *(_equal(value, column) for value in numbers))
    return _equal_any(numbers, column)


def _equal_any(numbers: Sequence[float], column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return what `_equal` does for any of many numbers, which are looked up and not tried one by one."""
    if not isinstance(column.type, sa.BigInteger):
        ranges = rounds_to_any(column, numbers, lambda edges: _array([*map(str, edges)], sa.Text(), sa.Numeric()))
        return sa.and_(ranges, column != sa.cast("NaN", sa.Numeric))
    exact = [int(number) for number in numbers if abs(number) < 2**53 and number.is_integer()]
    found = column == sa.func.any(_array(exact, sa.BigInteger()))
    large = [number for number in numbers if abs(number) >= 2**53]
    if not large:
        return found
    # An integer that is beyond bigint is nobody's, and numeric holds both.
    whole = sa.cast(column, sa.Numeric)
    return sa.or_(found, rounds_to_any(whole, large, lambda edges: _array([*map(str, edges)], sa.Text(), sa.Numeric())))


def _equal(number: float, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    if isinstance(column.type, sa.BigInteger) and abs(number) < 2**53:
        return column == sa.cast(int(number), sa.BigInteger) if number.is_integer() else sa.false()
    return sa.and_(_ordered("$gte", number, column), _ordered("$lte", number, column))


def _ordered(operator: str, number: float, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    if isinstance(column.type, sa.Float):
        bound: sa.ColumnElement[Any] = sa.cast(_as_stored(number, column), sa.Double)
        # PostgreSQL sorts NaN above every number.
        return sa.and_(compare(operator, column, bound), column != sa.cast(math.nan, sa.Double))
    operator, exact = edge(operator, number)
    if isinstance(column.type, sa.BigInteger):
        return _integer_ordered(operator, exact, column)
    bound = sa.cast(sa.bindparam(None, str(exact), sa.Text(), unique=True), sa.Numeric)
    return sa.and_(compare(operator, column, bound), column != sa.cast("NaN", sa.Numeric))


def _integer_ordered(operator: str, exact: Decimal, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Compare with the nearest integer that is in the range, so that an index on the column serves."""
    upward = operator in ("$gt", "$gte")
    whole = math.ceil(exact) if upward else math.floor(exact)
    if whole == exact and operator in ("$gt", "$lt"):
        whole += 1 if upward else -1
    if abs(whole) > _LARGEST_INTEGER:
        return column.is_not(None) if upward == (whole < 0) else sa.false()
    return compare("$gte" if upward else "$lte", column, sa.cast(whole, sa.BigInteger))


def compare(operator: str, column: sa.ColumnElement[Any], bound: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return ``column`` in the relation to ``bound`` that the operator of a range names."""
    match operator:
        case "$gt":
            return column > bound
        case "$gte":
            return column >= bound
        case "$lt":
            return column < bound
        case _:
            return column <= bound


def _as_stored(number: float, column: sa.ColumnElement[Any]) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number)) if isinstance(column.type, sa.REAL) else number


def _array(items: Sequence[Any], type_: Any, held_as: Any = None) -> sa.ColumnElement[Any]:
    return sa.cast(sa.bindparam(None, list(items), ARRAY(type_), unique=True), ARRAY(held_as or type_))
