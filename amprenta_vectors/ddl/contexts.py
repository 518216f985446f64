"""Contexts of our own beside the one that Alembic's environment made."""

from __future__ import annotations

import logging
from typing import Any

from alembic.migration import MigrationContext

_ALEMBICS_LOG = logging.getLogger("alembic.runtime.migration")


def open_context(**given: Any) -> MigrationContext:
    """Configure a context, as `MigrationContext.configure` does, without the two lines that Alembic logs of each.

    They tell the reader of a deployment how the migration connects; of a context for one step they would tell nothing.
    """
    _ALEMBICS_LOG.addFilter(_drop)
    try:
        return MigrationContext.configure(**given)
    finally:
        _ALEMBICS_LOG.removeFilter(_drop)


def _drop(_: logging.LogRecord) -> bool:
    return False
