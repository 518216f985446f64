"""Setting the models system up, step by step: where it stands, and the models that its guide names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from amprenta_vectors.config import Settings
from amprenta_vectors.db import check_connection, create_engine
from amprenta_vectors.ddl.script import heads_of
from amprenta_vectors.moves.models.adding import NewModel, add_model
from amprenta_vectors.moves.models.tables import open_model_table
from amprenta_vectors.pg.tables import table_of
from amprenta_vectors.schema.models import ModelColumn
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS
from amprenta_vectors.sections import SECTIONS
from amprenta_vectors.server import check_server, server_versions

SECTION = SECTIONS["models"]
TABLES = ("documents", "chunks", "chunk_embeddings", "embedding_models", "model_column")
GUIDES_MODELS = (
    NewModel("text-embedding-ada-002", "openai", dimension=1536, written=False),
    NewModel(
        "all-MiniLM-L6-v2",
        "sentence_transformers",
        {"model": "sentence-transformers/all-MiniLM-L6-v2"},
        dimension=384,
        written=False,
    ),
    NewModel(
        "all-mpnet-base-v2",
        "sentence_transformers",
        {"model": "sentence-transformers/all-mpnet-base-v2"},
        dimension=768,
        written=False,
    ),
    NewModel("text-embedding-3-large", "openai", dimension=3072, written=False),
)
"""The models that the guide names. The first that is registered for a table is searched and written; the others are
written once documents are moved to them."""


@dataclass(frozen=True)
class Standing:
    """Where a database stands: versions, the section's revision, the tables that are there, and the models."""

    server: int
    pgvector: str | None
    warnings: tuple[str, ...]
    revision: str | None
    tables: tuple[str, ...]
    models: tuple[ModelColumn, ...]


def standing_of(settings: Settings) -> Standing:
    """Look where the database stands; nothing is changed. Raises `AmprentaError` if it does not answer."""
    engine = create_engine(settings, migrations=True)
    try:
        check_connection(engine)
        with engine.connect() as connection:
            server, pgvector = server_versions(connection)
            heads = heads_of(connection, SECTION.version_table)
            tables = tuple(_present(connection))
            warnings = tuple(check_server(server, pgvector))
    finally:
        engine.dispose()
    models: tuple[ModelColumn, ...] = ()
    if set(TABLES) <= set(tables):
        opened = open_model_table(of_system(settings))
        opened.engine.dispose()
        models = opened.models
    return Standing(server, pgvector, warnings, heads[0] if heads else None, tables, models)


def set_up_models(settings: Settings) -> Iterator[ModelColumn]:
    """Register the guide's models, each with its column; yield what is registered of each. Repeating it is safe."""
    ours = of_system(settings)
    for new in GUIDES_MODELS:
        table = open_model_table(ours)
        try:
            there = next((each for each in table.models if each.model.name == new.name), None)
            yield there or add_model(ours, table, new)
        finally:
            table.engine.dispose()


def of_system(settings: Settings) -> Settings:
    """Return the settings for the system's table."""
    return settings.model_copy(update={"table": CHUNK_EMBEDDINGS.name, "vector_dimension": None})


def _present(connection: Connection) -> Iterator[str]:
    for name in TABLES:
        if table_of(connection, name) is not None:
            yield name
