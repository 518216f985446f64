"""Why a row is quarantined, or noted beside the run."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row was quarantined."""

    MISSING = "missing_at_source"
    DIMENSION = "wrong_dimension"
    NOT_FINITE = "not_finite"
    ZERO = "zero_under_cosine"
    SPARSE_ONLY = "sparse_without_dense"
    SPARSE_DROPPED = "sparse_without_column"
    SPARSE_REFUSED = "sparse_does_not_fit"
    NUL = "nul_character"
    NUL_STRIPPED = "nul_stripped"
    NOT_JSON = "nan_in_metadata"
    NO_TARGET = "no_target_key"
    REFUSED = "write_refused"
    ID_REFUSED = "id_refused"
    UNREADABLE = "unreadable_record"
    UNPAIRED = "unpaired"
    NOT_ISOLATED = "not_isolated"
    NO_TEXT = "no_text"
    NO_WORDS = "no_words"
    TOO_LONG = "text_too_long"
    CHANGED_HERE = "changed_here"
    GONE = "gone_at_source"


STILL_WRITTEN = frozenset({Reason.SPARSE_DROPPED, Reason.SPARSE_REFUSED, Reason.NUL_STRIPPED})
"""Reasons that stand against a row whose dense vector was written all the same."""

ASKED_FOR = frozenset({Reason.NUL_STRIPPED})
"""Reasons of rows that were written as a person asked for: the run is as clean as without them."""

LEFT_ALONE = frozenset({Reason.CHANGED_HERE, Reason.GONE})
"""Reasons that stand against a row which is good as it is: a person decides what is to become of it."""
