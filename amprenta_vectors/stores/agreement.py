"""Measures how far two answers to one query agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from amprenta_vectors.stores.protocol import Hit

PERSISTENCE = 0.9
"""The probability that a reader goes on to the next hit: of endless answers, the first ten have 86 % of the weight."""


@dataclass(frozen=True)
class Agreement:
    """How far one answer agrees with another.

    ``overlap``: the share of hits, by key, in common. ``rank_agreement``: rank-biased overlap, 1 for equal lists.
    ``score_drift``: the mean difference of the common hits' scores; None if there are none. ``missing``: keys that only
    the first answer has.
    """

    overlap: float
    rank_agreement: float
    score_drift: float | None
    missing: tuple[str, ...]


def agreement(first: Sequence[Hit], second: Sequence[Hit]) -> Agreement:
    """Return how far ``second`` agrees with ``first``; two empty answers agree."""
    scores, others = ({hit.key: hit.score for hit in hits} for hits in (first, second))
    common = scores.keys() & others.keys()
    longest = max(len(scores), len(others))
    return Agreement(
        overlap=len(common) / longest if longest else 1.0,
        rank_agreement=_rank_biased_overlap(list(scores), list(others)),
        score_drift=float(np.mean([abs(scores[key] - others[key]) for key in common])) if common else None,
        missing=tuple(key for key in scores if key not in others),
    )


def _rank_biased_overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the rank-biased overlap of two lists of keys, over the depth there is.

    Webber, Moffat and Zobel, «A similarity measure for indefinite rankings» (2010). The weights of the depths that
    exist are scaled to add up to 1.
    """
    depth = max(len(first), len(second))
    if not depth:
        return 1.0
    common, seen, other, shares = 0, set[str](), set[str](), []
    for place, (one, two) in enumerate(zip_longest(first, second), 1):
        seen.add(one)
        other.add(two)
        common += (one in other) + (two in seen) - (one == two)
        shares.append(common / place)
    weights = PERSISTENCE ** np.arange(depth)
    return float(np.dot(shares, weights) / weights.sum())
