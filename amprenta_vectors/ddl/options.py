"""What a migration environment hands to the operations, and what they say while they work."""

from __future__ import annotations

import logging
from typing import Any, Literal

from alembic.operations import Operations

from amprenta_vectors.errors import ConfigError

log = logging.getLogger("amprenta_vectors.ddl")

IndexMethod = Literal["hnsw", "ivfflat"]

INDEX_CHOICES: dict[str, tuple[IndexMethod, Literal["halfvec", "bit"] | None]] = {
    "hnsw": ("hnsw", None),
    "hnsw-halfvec": ("hnsw", "halfvec"),
    "hnsw-bit": ("hnsw", "bit"),
    "ivfflat": ("ivfflat", None),
    "ivfflat-halfvec": ("ivfflat", "halfvec"),
    "ivfflat-bit": ("ivfflat", "bit"),
}
"""What ``-x index=`` may be: method, and storage where it is not the finest that the column allows."""


def configured_dimension(operations: Operations) -> int | None:
    """The dimension demanded by ``-x dimension=`` or ``VECTOR_DIMENSION``, None where neither is given."""
    value = _option(operations, "dimension")
    if value is None:
        return None
    if not str(value).isdigit() or not 1 <= int(value) <= 16000:
        raise ConfigError(
            f"the dimension is {value!r}; expected a whole number from 1 to 16000", hint="-x dimension=1536"
        )
    return int(value)


def configured_index(operations: Operations) -> tuple[IndexMethod, Literal["halfvec", "bit"] | None] | None:
    """The index method and storage that ``-x index=`` asks for, None where it is not given."""
    value = check_index(_option(operations, "index"))
    return None if value is None else INDEX_CHOICES[value]


def check_index(value: str | None) -> str | None:
    """``value`` of ``-x index=``. Raises `ConfigError` for one that is no kind of index."""
    if value is None or value in INDEX_CHOICES:
        return value
    raise ConfigError(f"-x index={value} is no kind of index", hint=f"-x index={'|'.join(INDEX_CHOICES)}")


def purging(operations: Operations) -> bool:
    """Whether ``-x purge=true`` asks a downgrade to drop data instead of keeping it."""
    return str(_option(operations, "purge")).lower() == "true"


def _option(operations: Operations, name: str) -> Any:
    return operations.get_context().opts.get("amprenta_options", {}).get(name)
