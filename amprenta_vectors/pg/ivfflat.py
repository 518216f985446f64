"""How many lists an ivfflat index is to have."""

from __future__ import annotations

import math

FAR_OFF = 4
"""The factor by which lists may differ from what suits the rows: a person may have chosen them with care."""


def suitable_lists(rows: int) -> int:
    """Return how many lists suit ``rows``: a thousandth up to a million, the square root beyond (pgvector's README)."""
    return max(1, rows // 1000 if rows <= 1_000_000 else math.isqrt(rows))


def fitting_lists(lists: int, rows: int) -> int:
    """Return ``lists`` if they about suit ``rows``, else how many do: an index that was made empty has one."""
    suitable = suitable_lists(rows)
    return lists if suitable / FAR_OFF <= lists <= suitable * FAR_OFF else suitable
