"""Documents embedded by several models: ``db``, ``ingestion_service``, ``retriever``, by the environment's settings."""

from __future__ import annotations

from amprenta_vectors.systems.models.database import Database
from amprenta_vectors.systems.models.ingestion import IngestionService
from amprenta_vectors.systems.models.retrieval import Retriever

__all__ = ["Database", "IngestionService", "Retriever", "db", "ingestion_service", "retriever"]

db = Database()
ingestion_service = IngestionService(db)
retriever = Retriever(db)
