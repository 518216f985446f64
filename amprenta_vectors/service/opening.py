"""The models system that the service answers by."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.service.api import Aggregation, EmbeddingStatus, ModelInfo, ModelsService, Result, SearchAnswer
from amprenta_vectors.systems.models.database import Database
from amprenta_vectors.systems.models.ingestion import DocumentNotFound, IngestionService
from amprenta_vectors.systems.models.retrieval import Retriever


async def open_service(settings: Settings) -> ModelsService:
    """Return the models system by the settings. Raises `NotUpgraded` if its tables are not there."""
    db = Database(settings)
    await db.initialize()
    return SystemService(db)


class SystemService:
    """The services of the models system, as the routes ask them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ingestion = IngestionService(db)
        self._retriever = Retriever(db)

    async def models_for_search(self) -> Sequence[ModelInfo]:
        """Return the models that can be searched: those with vectors, and the one that is searched."""
        return await self._retriever.searchable_models()

    async def document_embeddings(self, document_id: str) -> Sequence[EmbeddingStatus] | None:
        """Return the state of a document's embeddings, one a model; None if there is no such document."""
        try:
            return await self._ingestion.document_embeddings(document_id)
        except DocumentNotFound:
            return None

    async def update_document_embeddings(self, document_id: str, model_name: str | None) -> EmbeddingStatus | None:
        """Embed a document's chunks by a model, or by the one that is searched; None if there is no such document."""
        try:
            return await self._ingestion.update_document_embeddings(document_id=document_id, model_name=model_name)
        except DocumentNotFound:
            return None

    async def search(self, query: str, model_name: str | None, top_k: int) -> SearchAnswer:
        """Return the chunks nearest to a text by a model, or by the one that is searched."""
        model = await self._db.model(model_name)
        found = await self._retriever.search(query=query, model_name=model.model.name, top_k=top_k)
        return SearchAnswer(model.model.name, found)

    async def search_multi_model(
        self, query: str, model_names: Sequence[str], aggregation: Aggregation, top_k: int
    ) -> Sequence[Result]:
        """Return the chunks nearest to a text by several models, joined as ``aggregation`` says."""
        return await self._retriever.search_multi_model(
            query=query, model_names=model_names, aggregation=aggregation, top_k=top_k
        )

    async def ping(self) -> None:
        """Raise an error unless the database answers."""
        async with self._db.engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._db.close()
