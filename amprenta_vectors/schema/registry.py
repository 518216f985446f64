"""The vector tables by name: those that ship with the package, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.models import MODEL_SCOPE, table_of_column
from amprenta_vectors.schema.text_table import TextTable
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable

CONFIG_FILE = "amprenta.toml"

RAG_CHUNKS = VectorTable(
    name="rag_chunks",
    table="rag_chunks",
    key=("chunk_id",),
    scope=("namespace",),
    text="content",
    metadata="metadata",
    model="embedding_model",
    hash="embedding_hash",
    text_hash="embedding_text_hash",
    dimension=1536,
)

VECTOR_DOCUMENTS = VectorTable(
    name="vector_documents",
    table="vector_documents",
    key=("id",),
    scope=("user_id", "collection_name"),
    text="text",
    metadata="metadata",
    hash="embedding_hash",
    text_hash="embedding_text_hash",
    dimension=768,
    key_rule=KeyRule("uuid5", uuid_namespace=UUID("3e2da8c0-567b-520d-a8f3-92fcfbdc89aa")),
    source="simple",
    rows="ours",
    section="documents",
)

PRODUCTS = VectorTable(
    name="products",
    table="products",
    key=("id",),
    model="embedding_model",
    hash="embedding_hash",
    text_hash="embedding_text_hash",
    dimension=768,
    key_rule=KeyRule("lookup", lookup="id", id_field="product_id"),
    source="chroma",
    text_columns=("name", "brand", "category", "description"),
    filter_columns={name: name for name in ("category", "brand", "price", "stock", "active")},
    stats_view="product_embedding_stats",
    section="products",
)

CHUNK_EMBEDDINGS = VectorTable(
    name="chunk_embeddings",
    table="chunk_embeddings",
    key=("chunk_id",),
    scope=(MODEL_SCOPE,),
    dimension=1536,
    texts=TextTable("chunks", ("content",)),
    source="rows",
    rows="ours",
    section="models",
)

SHIPPED = {table.name: table for table in (RAG_CHUNKS, VECTOR_DOCUMENTS, PRODUCTS, CHUNK_EMBEDDINGS)}


def get_table(name: str, config: Path | None = None) -> VectorTable:
    """Return the vector table called ``name``: shipped, or declared in ``config`` (as `read_config` finds it).

    ``NAME.COLUMN`` is the column of another model in the rows of that table.

    Raises `ConfigError` listing the tables there are.
    """
    tables = {**SHIPPED, **read_config(config)}
    if name in tables:
        return tables[name]
    own, _, column = name.rpartition(".")
    if own in tables and column:
        return table_of_column(tables[own], column)
    raise ConfigError(
        f"AMPRENTA_TABLE is {name!r}, which is no vector table",
        hint=f"one of: {', '.join(tables)}; or declare it as [tables.{name}] in {CONFIG_FILE}",
    )


def declared_tables(config: Path | None = None) -> Mapping[str, VectorTable]:
    """Return the tables that ``config`` declares, without those that ship with the package; see `read_config`."""
    return {name: table for name, table in read_config(config).items() if table.declared}


def read_config(config: Path | None = None) -> Mapping[str, VectorTable]:
    """Return the tables of ``config`` by name; without it, of ``amprenta.toml`` in the working directory, if it exists.

    A shipped table among them has the columns that the file gives it. Raises `ConfigError` naming file and field.
    """
    path = config or Path(CONFIG_FILE)
    if not path.exists():
        if config is None:
            return {}
        raise ConfigError(f"AMPRENTA_CONFIG is {str(config)!r}, which does not exist", hint="the path of a TOML file")
    # An application without tables of its own need not load the parser and its models.
    from amprenta_vectors.schema.declared import read_tables

    return read_tables(path, SHIPPED)
