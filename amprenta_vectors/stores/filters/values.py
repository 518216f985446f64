"""What PostgreSQL can hold of a filter's operands, and how its exact numbers compare with float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Context, Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping

_EXACT = Context(prec=1100)
"""No float64, nor the middle between two, has more digits."""


def is_storable(text: Any) -> bool:
    """Return whether PostgreSQL can hold a text.

    It refuses NUL and lone surrogates, so no stored text can equal one that has them.
    """
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def edge(operator: str, number: float) -> tuple[str, Decimal]:
    """Return the comparison on exact numbers that equals the given one on the float64 they round to.

    The numbers that round to ``number`` lie between the midpoints to its neighbours, and a midpoint rounds to whichever
    is even. So the edge to compare with is a midpoint, and whether it is included follows from what it rounds to.
    """
    upper = operator in ("$gt", "$lte")
    middle = _midpoint(number, math.inf if upper else -math.inf)
    rounds_here = float(middle) == number
    match operator:
        case "$gt":
            return ("$gt" if rounds_here else "$gte"), middle
        case "$lte":
            return ("$lte" if rounds_here else "$lt"), middle
        case "$gte":
            return ("$gte" if rounds_here else "$gt"), middle
        case _:
            return ("$lt" if rounds_here else "$lte"), middle


def _midpoint(number: float, towards: float) -> Decimal:
    neighbour = math.nextafter(number, towards)
    here, there = Decimal(number), Decimal(neighbour)
    if math.isinf(neighbour):
        # Past the largest float64, numbers round as if its next neighbour existed.
        there = _EXACT.subtract(_EXACT.add(here, here), Decimal(math.nextafter(number, -towards)))
    return _EXACT.divide(_EXACT.add(here, there), Decimal(2))


def rounds_to_any(
    value: sa.ColumnElement[Any], numbers: Iterable[float], to_array: Callable[[list[Decimal]], sa.ColumnElement[Any]]
) -> sa.ColumnElement[bool]:
    """Return whether an exact number rounds to one of ``numbers``: its place among their edges is found by halving.

    ``to_array`` makes an array of the value's own type. The ranges that round to two float64 do not overlap, so the
    only one that a value can be in is the last that begins at or below it.
    """
    groups: dict[tuple[bool, bool], tuple[list[Decimal], list[Decimal]]] = {}
    for number in sorted(set(numbers)):
        (above, low), (below, high) = edge("$gte", number), edge("$lte", number)
        lows, highs = groups.setdefault((above == "$gte", below == "$lte"), ([], []))
        lows.append(low)
        highs.append(high)
    parts: list[sa.ColumnElement[bool]] = []
    for (with_low, with_high), (lows, highs) in groups.items():
        begins, ends = Grouping(to_array(lows)), Grouping(to_array(highs))
        place = sa.func.width_bucket(value, begins, type_=sa.Integer())
        part = value <= ends[place] if with_high else value < ends[place]
        parts.append(part if with_low else sa.and_(part, value != begins[place]))
    return sa.or_(sa.false(), *parts)
