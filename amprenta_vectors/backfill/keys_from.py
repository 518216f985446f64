"""Where a run's keys come from."""

from __future__ import annotations

from typing import Literal

KeysFrom = Literal["table", "source", "table_errors", "source_errors"]
"""The table's rows without an embedding, the source's list, or the rows that runs of the one or the other kind have set
aside."""

Side = Literal["table", "source"]
"""Of a migration: where rows are to be filled, or where vectors are read."""


def retry_of(side: Side) -> KeysFrom:
    """Where the keys come from of a run that takes again what runs with keys from that ``side`` have set aside."""
    return "table_errors" if side == "table" else "source_errors"


def side_of(keys_from: KeysFrom) -> Side:
    """Where the keys came from at first. Those of the source may be keys of rows that are yet to be inserted."""
    return "table" if keys_from in {"table", "table_errors"} else "source"


def is_retry(keys_from: KeysFrom) -> bool:
    """Whether the keys are those of rows that were set aside; all batches of such a run are stored as it begins."""
    return keys_from in {"table_errors", "source_errors"}
