"""What PostgreSQL can hold of a filter's operands, and how its exact numbers compare with float64."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any


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
    here = Fraction(number)
    # Past the largest float64, numbers round as if its next neighbour existed.
    there = 2 * here - Fraction(math.nextafter(number, -towards)) if math.isinf(neighbour) else Fraction(neighbour)
    middle = (here + there) / 2
    # The denominator is a power of two, so the quotient is exact; no float64 has more than 1100 digits.
    return Context(prec=1100).divide(Decimal(middle.numerator), Decimal(middle.denominator))
