"""The options that a migration environment hands to the operations, and the log in which they say what they do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.types import LONGEST_VECTOR, CoarserStorage, IndexMethod

log = logging.getLogger("amprenta_vectors.ddl")

INDEX_CHOICES: dict[str, tuple[IndexMethod, CoarserStorage | None]] = {
    "hnsw": ("hnsw", None),
    "hnsw-halfvec": ("hnsw", "halfvec"),
    "hnsw-bit": ("hnsw", "bit"),
    "ivfflat": ("ivfflat", None),
    "ivfflat-halfvec": ("ivfflat", "halfvec"),
    "ivfflat-bit": ("ivfflat", "bit"),
}
"""The values of ``-x index=``: method, and storage if it is not the finest that the column allows."""


def configured_dimension(options: Mapping[str, Any]) -> int | None:
    """Return the dimension demanded by ``-x dimension=`` or ``VECTOR_DIMENSION``, None where neither is given."""
    value = options.get("dimension")
    if value is None:
        return None
    if not str(value).isdigit() or not 1 <= int(value) <= LONGEST_VECTOR:
        raise ConfigError(
            f"the dimension is {value!r}; expected a whole number from 1 to {LONGEST_VECTOR}", hint="-x dimension=1536"
        )
    return int(value)


def configured_index(options: Mapping[str, Any]) -> tuple[IndexMethod, CoarserStorage | None] | None:
    """Return the index method and storage that ``-x index=`` asks for, None where it is not given."""
    value = check_index(options.get("index"))
    return None if value is None else INDEX_CHOICES[value]


def check_index(value: str | None) -> str | None:
    """Return ``value`` of ``-x index=``. Raises `ConfigError` for one that is no kind of index."""
    if value is None or value in INDEX_CHOICES:
        return value
    raise ConfigError(f"-x index={value} is no kind of index", hint=f"-x index={'|'.join(INDEX_CHOICES)}")


def purging(options: Mapping[str, Any]) -> bool:
    """Return whether ``-x purge=true`` asks a downgrade to drop data instead of keeping it."""
    return str(options.get("purge")).lower() == "true"


def is_adopted(options: Mapping[str, Any], table: str) -> bool:
    """Return whether ``-x adopted=`` says that the application made ``table``, for a script without a database."""
    return table in str(options.get("adopted") or "").split(",")
