"""The store that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import ConfigError, UnknownBackend
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.stores.pgvector import PgVectorStore
from amprenta_vectors.stores.protocol import VectorStore


def get_vector_store(settings: Settings | None = None) -> VectorStore:
    """The store for ``VECTOR_BACKEND``, confined to ``PINECONE_NAMESPACE``; without ``settings``, from the environment.

    Make one when the application starts and share it between threads: it holds a pool of connections, given back by
    ``close()``. The pgvector store connects on first use and needs no Pinecone setting; the Pinecone store asks for the
    index here. Raises `UnknownBackend`, or `ConfigError` for a setting that the store needs.
    """
    settings = settings or Settings.load()
    open_store = BACKENDS.get(settings.vector_backend)
    if open_store is None:
        raise UnknownBackend(
            f"VECTOR_BACKEND is {settings.vector_backend!r}, which is no store", hint=f"one of: {', '.join(BACKENDS)}"
        )
    return open_store(settings)


def open_pgvector_store(settings: Settings) -> PgVectorStore:
    """The store on ``AMPRENTA_TABLE``, with an engine of its own."""
    table = get_table(settings.table)
    scopes = {"namespace": settings.pinecone_namespace}
    unknown = [name for name in table.scope if name not in scopes]
    if unknown:
        raise ConfigError(
            f"no setting gives table {table.name} a value for {', '.join(unknown)}",
            hint="make a PgVectorStore with the scope's values",
        )
    return PgVectorStore(
        create_engine(settings),
        table,
        {name: scopes[name] for name in table.scope},
        dimension=settings.vector_dimension,
        model=settings.embedding_model,
        text_field=settings.text_field,
        owns_engine=True,
    )


def open_pinecone_store(settings: Settings) -> VectorStore:
    """The store on ``PINECONE_INDEX_NAME``."""
    # An application on another backend need not have the package.
    from amprenta_vectors.sources.pinecone_client import open_index
    from amprenta_vectors.stores.pinecone import PineconeStore

    return PineconeStore(open_index(settings), settings.pinecone_namespace, settings.text_field)


BACKENDS: dict[str, Callable[[Settings], VectorStore]] = {
    "pinecone": open_pinecone_store,
    "pgvector": open_pgvector_store,
}
"""What ``VECTOR_BACKEND`` may be."""
