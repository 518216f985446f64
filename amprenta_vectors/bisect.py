"""Bisection: finding the rows that make a step fail for all, by halving, with a bound on the number of tries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason

ALWAYS_ISOLATED = 64
"""The number of refused rows, however large a share of a batch, up to which each is found."""
ISOLATED_SHARE = 20
"""The share, one row in so many, of refused rows up to which each is found: the share at which a run stops by
default."""

Refusal = TypeVar("Refusal")


def most_tries(rows: int, bad: int) -> int:
    """Return the most tries that halving ``rows`` rows takes until ``bad`` ones among them stand alone.

    The first try is of all rows. A try that fails for more than one row is followed by two, of its halves; so there are
    1 + 2·f, f being the failures among them. Halving ends after ⌈log2(rows)⌉ levels, and level d has 2^d parts, of
    which at most ``bad`` fail: f ≤ Σ min(2^d, bad) for d from 0 to ⌈log2(rows)⌉ - 1. In closed form that is no more
    than 2·bad·(⌈log2(rows)⌉ - ⌊log2(bad)⌋ + 1) tries: 113 for 7 bad ones among 1000.
    """
    levels = (rows - 1).bit_length() if rows else 0
    return 1 + 2 * sum(min(1 << level, bad) for level in range(levels))


def budget(rows: int) -> int:
    """Return the most tries that a batch of ``rows`` rows is given: enough for 64 refused rows, and for 1 in 20."""
    return most_tries(rows, max(ALWAYS_ISOLATED, -(-rows // ISOLATED_SHARE)))


@dataclass
class Isolated(Generic[Refusal]):
    """The result of halving: the rows that failed ``alone``, each with its refusal, and the parts left ``unsettled``.

    An unsettled part is ``(start, end, refusal of the part that it is half of)``; there is none if the tries sufficed.
    """

    alone: list[tuple[int, Refusal]] = field(default_factory=list)
    unsettled: list[tuple[int, int, Refusal]] = field(default_factory=list)
    tries: int = 0
    passed: int = 0


def isolate(rows: int, attempt: Callable[[int, int], Refusal | None], most: int | None = None) -> Isolated[Refusal]:
    """Try ``rows`` rows, and the halves of what fails, until each refused row stands alone or ``most`` tries are spent.

    ``attempt(start, end)`` does the step for those rows and returns None, or why it was refused. Larger parts are tried
    before smaller ones, so that as little as can be is left when the tries are spent. ``most`` is by default the
    `budget` of the rows.
    """
    found: Isolated[Refusal] = Isolated()
    most = budget(rows) if most is None else most
    waiting: deque[tuple[int, int, Refusal | None]] = deque([(0, rows, None)] if rows else [])
    while waiting:
        start, end, before = waiting.popleft()
        if before is not None and found.tries >= most:
            found.unsettled.append((start, end, before))
            continue
        found.tries += 1
        refusal = attempt(start, end)
        if refusal is None:
            found.passed += end - start
        elif end - start == 1:
            found.alone.append((start, refusal))
        else:
            middle = (start + end) // 2
            waiting += [(start, middle, refusal), (middle, end, refusal)]
    return found


def errors_of(found: Isolated[str], keys: Sequence[str], reason: Reason) -> list[RowError]:
    """Return an error for each row that was refused: for ``reason`` where it stands alone."""
    refused = [RowError(keys[row], reason, refusal) for row, refusal in found.alone]
    return refused + [
        RowError(keys[row], Reason.NOT_ISOLATED, f"one of several refused together: {refusal}")
        for start, end, refusal in found.unsettled
        for row in range(start, end)
    ]
