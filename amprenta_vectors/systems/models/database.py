"""The database of the models system: its tables, its models, and the store of its embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from amprenta_vectors.config import Settings
from amprenta_vectors.db import check_connection, create_async_engine, create_engine
from amprenta_vectors.errors import AmprentaError, ConfigError, NotUpgraded, UnknownModel
from amprenta_vectors.extras import require_extra
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.schema.catalogue import columns_of, located
from amprenta_vectors.schema.expressions import text_array
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn, may_read_models, models_of, searched_of
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS, get_table
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.factory import store_options
from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore

PING_AFTER_SECONDS = 0.5
TABLES = ("documents", "chunks")


@dataclass(frozen=True)
class Tables:
    """The tables as the database has them, each with its columns; those of an application may lack some.

    ``types`` are those of the ids of documents and chunks, by the name of the table.
    """

    documents: sa.TableClause
    chunks: sa.TableClause
    embeddings: VectorTable
    types: Mapping[str, str]

    def document(self, document_id: str) -> sa.ColumnElement[bool] | None:
        """Return the condition that a document has an id; None for what is no id."""
        spelled = canonical(document_id, self.types["documents"])
        if spelled is None:
            return None
        # Sent as text: asyncpg would take the parameter of a cast for a value of that type.
        return self.documents.c.id == sa.cast(sa.literal(spelled, sa.Text), NamedType(self.types["documents"]))

    def among_chunks(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a chunk has one of those ids."""
        return self.chunks.c.id == sa.func.any(sa.cast(text_array(keys), ARRAY(NamedType(self.types["chunks"]))))


class Database:
    """The connections of the models system, opened by `initialize` in the event loop that uses them."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._opened: tuple[Any, AsyncPgVectorStore, Tables] | None = None
        self._opening = asyncio.Lock()

    @property
    def settings(self) -> Settings:
        """The settings, by default those of the environment."""
        self._settings = self._settings or Settings.load()
        return self._settings

    async def initialize(self) -> None:
        """Connect, and look for the tables. A second call does nothing.

        Raises `NotUpgraded` if they are not there, and `ConfigError` where no connection can be made.
        """
        async with self._opening:
            if self._opened is not None:
                return
            engine = create_async_engine(self.settings, ping_after_seconds=PING_AFTER_SECONDS)
            try:
                async with engine.connect() as connection:
                    tables = await connection.run_sync(self._find)
            except BaseException as error:
                await engine.dispose()
                if isinstance(error, Exception) and not isinstance(error, AmprentaError):
                    # Each driver that awaits has errors of its own for a connection that cannot be made.
                    await asyncio.to_thread(self._check_connection)
                raise
            # Whose rows a query reads is its model's, which is not known yet.
            scope = {MODEL_SCOPE: ""}
            store = AsyncPgVectorStore(engine, tables.embeddings, scope, store_options(self.settings))
            self._opened = engine, store, tables

    def _check_connection(self) -> None:
        engine = create_engine(self.settings, pool_size=1)
        try:
            check_connection(engine)
        finally:
            engine.dispose()

    async def close(self) -> None:
        """Give the connections back; `initialize` opens them again."""
        async with self._opening:
            if self._opened is not None:
                engine, store, _ = self._opened
                self._opened = None
                await store.close()
                await engine.dispose()

    async def get_supported_dimensions(self) -> list[int]:
        """Return the dimensions of the registered models, each once, from small to large."""
        return sorted({each.model.dimension for each in await self.models()})

    async def models(self) -> tuple[ModelColumn, ...]:
        """Return the registered models, in the order in which they were registered."""
        async with self.engine.connect() as connection:
            found: tuple[ModelColumn, ...] = await connection.run_sync(models_of, self.tables.embeddings)
            return found

    async def model(self, name: str | None = None) -> ModelColumn:
        """Return the model of a name, by default the one that is searched. Raises `ConfigError` without one."""
        models = await self.models()
        found = (
            searched_of(models) if name is None else next((each for each in models if each.model.name == name), None)
        )
        if found is not None:
            return found
        listed = ", ".join(each.model.name for each in models) or "none"
        raise UnknownModel(
            f"{name!r} is no registered model; registered: {listed}" if name else "no model is registered",
            hint="python scripts/setup_migrations.py setup-models, or AMPRENTA_TABLE=chunk_embeddings amprenta-vectors "
            "models add NAME --provider …",
        )

    async def check_rows(self, model: ModelColumn) -> None:
        """Raise `SchemaMismatch` where a unique index on the chunk alone allows no rows of another model."""
        embeddings = self.tables.embeddings
        if model.column == embeddings.embedding:
            return

        def check(connection: Connection) -> None:
            ModelTable(connection.engine, embeddings, ()).check_rows(connection)

        async with self.engine.connect() as connection:
            await connection.run_sync(check)

    @property
    def engine(self) -> Any:
        """The asynchronous engine. Raises `ConfigError` before `initialize`."""
        return self._require()[0]

    @property
    def store(self) -> AsyncPgVectorStore:
        """The store of the embeddings: its keys are those of chunks."""
        return self._require()[1]

    @property
    def tables(self) -> Tables:
        """The tables."""
        return self._require()[2]

    def _require(self) -> tuple[Any, AsyncPgVectorStore, Tables]:
        if self._opened is None:
            raise ConfigError("the database is not open", hint="await db.initialize()")
        return self._opened

    def _find(self, connection: Connection) -> Tables:
        embeddings = located(connection, get_table(CHUNK_EMBEDDINGS.name, self.settings.config))
        if embeddings.texts is None or not may_read_models(connection):
            raise NotUpgraded("there is no registry of models", hint="alembic -n models upgrade head")
        found, types = {}, {}
        for name in (*TABLES, embeddings.table):
            columns = columns_of(connection, VectorTable(name, name, ("id",), 1, embeddings.schema))
            if not columns:
                raise NotUpgraded(f"table {name} does not exist", hint="alembic -n models upgrade head")
            found[name] = sa.table(name, *map(sa.column, columns), schema=embeddings.schema)
            types[name] = columns["id"].base
        return Tables(found["documents"], found["chunks"], embeddings, types)


def split(text: str, settings: Settings) -> list[str]:
    """Return the chunks of a text: at most 1000 characters or ``AMPRENTA_TEXT_CHARACTERS``, a tenth of that shared.

    Raises `ConfigError` for a text without words, `MissingExtra`.
    """
    splitters = require_extra("langchain_text_splitters", "chunks")
    size = settings.text_characters or CHUNK_CHARACTERS
    splitter: Any = splitters.RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=size // 10)
    chunks = [chunk for chunk in splitter.split_text(text) if any(map(str.isalnum, chunk))]
    if not chunks:
        raise ConfigError("the content has no words that could be embedded", hint="content= with some text")
    return chunks


CHUNK_CHARACTERS = 1000
"""Characters of a chunk: about 250 tokens of English, which every model of the guide's takes whole."""
