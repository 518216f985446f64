"""Where a run's keys come from."""

from __future__ import annotations

from typing import Literal, get_args

KeysFrom = Literal["table", "source", "given", "table_errors", "source_errors", "reconcile"]
"""The table's rows without an embedding, the source's list, a list that a person gave, or the rows that runs of the one
or the other side have quarantined; or the source's list once more, to bring the table to what the source has by now."""

Side = Literal["table", "source"]
"""Of a migration: where rows are to be filled, or where vectors are read."""


def retry_of(side: Side) -> KeysFrom:
    """Return where the keys of a run come from that retries what runs with keys from that ``side`` have quarantined."""
    return "table_errors" if side == "table" else "source_errors"


def side_of(keys_from: KeysFrom) -> Side:
    """Return where the keys came from at first. Those of the source may be keys of rows that are yet to be inserted."""
    return "source" if keys_from in {"source", "source_errors", "reconcile"} else "table"


def all_of(side: Side) -> list[KeysFrom]:
    """Return all that keys of that ``side`` may come from."""
    every: tuple[KeysFrom, ...] = get_args(KeysFrom)
    return [keys_from for keys_from in every if side_of(keys_from) == side]


def is_retry(keys_from: KeysFrom) -> bool:
    """Return whether the keys are those of quarantined rows."""
    return keys_from in {"table_errors", "source_errors"}
