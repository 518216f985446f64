"""Move a running application's embeddings into PostgreSQL + pgvector under Alembic, and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amprenta_vectors.config import Settings
    from amprenta_vectors.errors import AmprentaError, ExitCode
    from amprenta_vectors.moves.move import Move
    from amprenta_vectors.stores.factory import get_async_vector_store, get_vector_store
    from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore
    from amprenta_vectors.stores.protocol import Hit, Record, VectorStore

__all__ = [
    "AmprentaError",
    "AsyncPgVectorStore",
    "ExitCode",
    "Hit",
    "Move",
    "Record",
    "Settings",
    "VectorStore",
    "get_async_vector_store",
    "get_vector_store",
]

_HOMES = {
    "AmprentaError": "errors",
    "AsyncPgVectorStore": "stores.pgvector.async_store",
    "ExitCode": "errors",
    "Hit": "stores.protocol",
    "Move": "moves.move",
    "Record": "stores.protocol",
    "Settings": "config",
    "VectorStore": "stores.protocol",
    "get_async_vector_store": "stores.factory",
    "get_vector_store": "stores.factory",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for: an Alembic environment that wants ``ddl`` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
