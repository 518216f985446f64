"""The vector tables that ship with the package, by name."""

from __future__ import annotations

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.vector_table import VectorTable

RAG_CHUNKS = VectorTable(
    name="rag_chunks",
    table="rag_chunks",
    key=("chunk_id",),
    scope=("namespace",),
    text="content",
    metadata="metadata",
    model="embedding_model",
    dimension=1536,
)

SHIPPED = {table.name: table for table in (RAG_CHUNKS,)}


def get_table(name: str) -> VectorTable:
    """The vector table called ``name``. Raises `ConfigError` listing those there are."""
    try:
        return SHIPPED[name]
    except KeyError:
        raise ConfigError(
            f"AMPRENTA_TABLE is {name!r}, which is no vector table", hint=f"one of: {', '.join(SHIPPED)}"
        ) from None
