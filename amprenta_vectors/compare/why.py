"""The reasons why a hit of the source is missing in PostgreSQL."""

from __future__ import annotations

from enum import StrEnum


class Why(StrEnum):
    """The reason why a hit is missing, worst first."""

    LOST = "lost"
    OTHER_SCOPE = "other_scope"
    NO_VECTOR = "no_vector"
    OTHER_VECTOR = "other_vector"
    FILTERED = "filtered"
    RECALL = "recall"
    FARTHER = "farther"
    TIE = "tie"
