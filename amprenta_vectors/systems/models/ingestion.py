"""Documents cut into chunks and embedded, and their embeddings by other models."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import JSONB

from amprenta_vectors.embedders.registered import open_registered
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.moves.models.migrating import migrate_model
from amprenta_vectors.moves.models.tables import open_model_table
from amprenta_vectors.schema.models import ModelColumn
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS
from amprenta_vectors.service.api import EmbeddingStatus
from amprenta_vectors.stores.protocol import Record
from amprenta_vectors.systems.models.database import Database, split

_PAGE = 500
"""Chunks that are embedded and written at a time."""


class IngestionService:
    """Takes documents in, and has them embedded by further models."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ingest_document(
        self,
        *,
        title: str,
        content: str,
        embedding_model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Cut a document into chunks, embed them, and keep all of it in one transaction; return the document's id.

        They are embedded by ``embedding_model``, by default the one that is searched, and by every model that is
        written. Raises `ConfigError` for a model that is not registered, and what its embedder raises; a further model
        that fails is counted, and a run makes it good.
        """
        db = self._db
        await db.initialize()
        model = await db.model(embedding_model)
        await db.check_rows(model)
        chunks = split(content, db.settings)
        documents, rows = db.tables.documents, db.tables.chunks
        document: dict[str, Any] = {"id": str(uuid.uuid4()), "title": title}
        for name, value in (("content", content), ("metadata", dict(metadata or {}))):
            if name in documents.c and (value or name == "content"):
                document[name] = value if name == "content" else sa.cast(sa.literal(value, JSONB), JSONB)
            elif value and name == "metadata":
                raise ConfigError("table documents has no column for metadata", hint="without metadata=")
        keys = [str(uuid.uuid4()) for _ in chunks]
        vectors = await self._embed(model, chunks)
        records = [Record(key, vector, text) for key, vector, text in zip(keys, vectors, chunks, strict=True)]
        prepared = await db.store.prepare(records, model=model.model.name)
        async with db.engine.begin() as connection:
            await connection.execute(sa.insert(documents).values(document))
            cut = [
                {"id": key, "document_id": document["id"], "chunk_index": number, "content": text}
                for number, (key, text) in enumerate(zip(keys, chunks, strict=True))
            ]
            await connection.execute(sa.insert(rows).values(cut))
            await db.store.upsert(prepared, connection=connection)
        return str(document["id"])

    async def update_document_embeddings(self, *, document_id: str, model_name: str | None = None) -> EmbeddingStatus:
        """Embed a document's chunks by a model, by default the one that is searched; return how many it has then.

        A chunk that is deleted meanwhile is left out. Raises `DocumentNotFound`, and as `ingest_document` does.
        """
        db = self._db
        await db.initialize()
        model = await db.model(model_name)
        await db.check_rows(model)
        texts = await self._chunks(document_id)
        keys = list(texts)
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            vectors = await self._embed(model, [texts[key] for key in page])
            await self._write(model, dict(zip(page, vectors, strict=True)), texts)
        [status] = await self.document_embeddings(document_id, model.model.name)
        return status

    async def migrate_to_new_model(self, *, source_model: str, target_model: str) -> EmbeddingStatus:
        """Embed the chunks of all documents by another model, as ``models migrate`` does; return how many it has then.

        A run in this process does it, which any other process may share and resume. ``source_model`` is the one that
        they are embedded by now. Raises `ConfigError` for a model that is not registered, `AmprentaError` if the run
        does not end.
        """
        await self._db.initialize()
        await self._db.model(source_model)
        await self._db.model(target_model)
        settings = self._db.settings.model_copy(update={"table": CHUNK_EMBEDDINGS.name})

        def migrate() -> None:
            table = open_model_table(settings)
            try:
                code = migrate_model(settings, table, table.named(target_model))
            finally:
                table.engine.dispose()
            if code not in (0, 3):
                raise AmprentaError(
                    f"the run to {target_model} did not end (exit code {code})",
                    hint=f"AMPRENTA_TABLE={CHUNK_EMBEDDINGS.name} amprenta-vectors models migrate --to {target_model}",
                )

        await asyncio.to_thread(migrate)
        [status] = await self.document_embeddings(None, target_model)
        return status

    async def document_embeddings(
        self, document_id: str | None, model_name: str | None = None
    ) -> list[EmbeddingStatus]:
        """Return how many chunks of a document, or of all, each model has embedded, or the one of a name.

        Raises `DocumentNotFound`.
        """
        db = self._db
        await db.initialize()
        of_document = None if document_id is None else await self._of_document(document_id)
        chunks, documents = db.tables.chunks, db.tables.documents
        models = [each for each in await db.models() if model_name in (None, each.model.name)]
        found = []
        for each in models:
            embeddings = sa.table(
                db.tables.embeddings.table,
                *map(sa.column, ("chunk_id", "model_id", each.column)),
                schema=db.tables.embeddings.schema,
            )
            own = embeddings.c.model_id == each.model.id
            joined = chunks.outerjoin(embeddings, sa.and_(embeddings.c.chunk_id == chunks.c.id, own))
            counts = sa.select(sa.func.count(), sa.func.count(embeddings.c[each.column])).select_from(joined)
            if of_document is not None:
                counts = counts.where(chunks.c.document_id.in_(sa.select(documents.c.id).where(of_document)))
            async with db.engine.connect() as connection:
                number, embedded = (await connection.execute(counts)).one()
            found.append(EmbeddingStatus(each.model.name, each.model.dimension, number, embedded))
        return found

    async def _chunks(self, document_id: str) -> dict[str, str]:
        """Return the text of each chunk that has one, in their order, by key."""
        of_document = await self._of_document(document_id)
        documents, chunks = self._db.tables.documents, self._db.tables.chunks
        texts = sa.select(sa.cast(chunks.c.id, sa.Text), chunks.c.content)
        texts = texts.join_from(chunks, documents, documents.c.id == chunks.c.document_id).where(of_document)
        async with self._db.engine.connect() as connection:
            rows = (await connection.execute(texts.order_by(chunks.c.chunk_index))).all()
        return {row[0]: row[1] for row in rows if row[1] and row[1].strip()}

    async def _of_document(self, document_id: str) -> sa.ColumnElement[bool]:
        """Return the condition that a row is the document's. Raises `DocumentNotFound`."""
        wanted = self._db.tables.document(document_id)
        if wanted is not None:
            async with self._db.engine.connect() as connection:
                found = sa.select(sa.literal(1)).select_from(self._db.tables.documents).where(wanted)
                if (await connection.execute(found)).first() is not None:
                    return wanted
        raise DocumentNotFound(f"there is no document {document_id!r}", hint="the id that ingest_document returned")

    async def _embed(self, model: ModelColumn, texts: Sequence[str]) -> NDArray[np.float32]:
        embedder = await asyncio.to_thread(partial(open_registered, model.model, self._db.settings))
        return await asyncio.to_thread(embedder.embed, list(texts))

    async def _write(
        self, model: ModelColumn, vectors: Mapping[str, NDArray[np.float32]], texts: Mapping[str, str]
    ) -> None:
        """Write the vectors of those chunks that are still there, and whose text is still the one that was embedded."""
        chunks, chosen = self._db.tables.chunks, self._db.tables.among_chunks(list(vectors))
        still = sa.select(sa.cast(chunks.c.id, sa.Text), chunks.c.content).where(chosen)
        still = still.order_by(chunks.c.id).with_for_update(key_share=True, read=True)
        async with self._db.engine.begin() as connection:
            there = {row[0]: row[1] for row in (await connection.execute(still)).all()}
            same = [name for name in vectors if there.get(name) == texts[name]]
            records = [Record(name, vectors[name]) for name in same]
            if records:
                await self._db.store.upsert(records, connection=connection, model=model.model.name)


class DocumentNotFound(ConfigError):
    """No document has that id."""
