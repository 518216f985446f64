"""Where a run's keys come from."""

from __future__ import annotations

from typing import Literal, get_args

KeysFrom = Literal["table", "source", "given", "table_errors", "source_errors", "reconcile"]
"""Where a run's keys come from: the table's rows without an embedding, the source's list, a list that a person gave,
the rows that runs of one side have quarantined, or the source's list again, to bring the table to what it has now."""

Side = Literal["table", "source"]
"""A side of a move: the table, where rows are filled, or the source, where vectors are read."""


def retry_of(side: Side) -> KeysFrom:
    """Return where a run's keys come from if it retries what runs with keys from that ``side`` have quarantined."""
    return "table_errors" if side == "table" else "source_errors"


def side_of(keys_from: KeysFrom) -> Side:
    """Return the side that the keys first came from; a source's keys may be of rows that are yet to be inserted."""
    return "source" if keys_from in {"source", "source_errors", "reconcile"} else "table"


def all_of(side: Side) -> list[KeysFrom]:
    """Return every `KeysFrom` whose keys are of that ``side``."""
    every: tuple[KeysFrom, ...] = get_args(KeysFrom)
    return [keys_from for keys_from in every if side_of(keys_from) == side]


def is_retry(keys_from: KeysFrom) -> bool:
    """Return whether the keys are those of quarantined rows."""
    return keys_from in {"table_errors", "source_errors"}
