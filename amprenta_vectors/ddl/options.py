"""What a migration environment hands to the operations, and what they say while they work."""

from __future__ import annotations

import logging
from typing import Any, Literal

from alembic.operations import Operations

from amprenta_vectors.errors import ConfigError

log = logging.getLogger("amprenta_vectors.ddl")


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


def configured_method(operations: Operations) -> Literal["hnsw", "ivfflat"] | None:
    """The index method that ``-x index=`` asks for, None where it is not given."""
    return check_method(_option(operations, "index"))


def check_method(value: str | None) -> Literal["hnsw", "ivfflat"] | None:
    """``value`` of ``-x index=``. Raises `ConfigError` for one that is no index method."""
    match value:
        case None | "hnsw" | "ivfflat":
            return value
        case _:
            raise ConfigError(f"-x index={value} is no index method", hint="-x index=hnsw or -x index=ivfflat")


def purging(operations: Operations) -> bool:
    """Whether ``-x purge=true`` asks a downgrade to drop data instead of keeping it."""
    return str(_option(operations, "purge")).lower() == "true"


def _option(operations: Operations, name: str) -> Any:
    return operations.get_context().opts.get("amprenta_options", {}).get(name)
