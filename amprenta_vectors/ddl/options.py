"""What a migration environment hands to the operations, and what they say while they work."""

from __future__ import annotations

import logging
from typing import Any

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


def purging(operations: Operations) -> bool:
    """Whether ``-x purge=true`` asks a downgrade to drop data instead of keeping it."""
    return str(_option(operations, "purge")).lower() == "true"


def _option(operations: Operations, name: str) -> Any:
    return operations.get_context().opts.get("amprenta_options", {}).get(name)
