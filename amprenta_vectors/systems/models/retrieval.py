"""Search of the documents by one model, or by several whose ranks are fused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import get_args

import sqlalchemy as sa

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.service.api import Aggregation, ModelInfo
from amprenta_vectors.stores.protocol import Filter
from amprenta_vectors.systems.models.answers import SearchResult
from amprenta_vectors.systems.models.database import Database

RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion: a hit of rank r scores 1 / (60 + r) in each list that has it.

Source: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods, SIGIR 2009. Scores of two models do not compare; their ranks do.
"""
DEEPER = 4
"""How many times ``top_k`` each model is asked for, so that a chunk that several find has its rank in each."""


class Retriever:
    """Searches the chunks of the documents."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def search(
        self, *, query: str, model_name: str | None = None, top_k: int = 5, filter: Filter | None = None
    ) -> list[SearchResult]:
        """Return the chunks nearest to a query by a model, by default the one that is searched now.

        Raises `ConfigError` for a model that is not registered, and what its embedder raises.
        """
        await self._db.initialize()
        model = await self._db.model(model_name)
        name = model.model.name
        hits = await self._db.store.search(query, top_k=top_k, model=name, filter=filter)
        return await self._results([(hit.key, hit.score, (name,)) for hit in hits])

    async def search_multi_model(
        self, *, query: str, model_names: Sequence[str], aggregation: Aggregation = "union", top_k: int = 5
    ) -> list[SearchResult]:
        """Return the chunks that several models find nearest, by reciprocal rank fusion.

        ``union`` takes what any of them finds, ``intersection`` what each of them finds. Raises as `search` does.
        """
        if aggregation not in get_args(Aggregation):
            raise ConfigError(f"aggregation is {aggregation!r}", hint=f"one of: {', '.join(get_args(Aggregation))}")
        names = list(dict.fromkeys(model_names))
        if not names:
            raise ConfigError("no model is named to search by", hint='model_names=["…", "…"]')
        await self._db.initialize()
        models = [await self._db.model(name) for name in names]
        lists = await asyncio.gather(
            *(self._db.store.search(query, top_k=top_k * DEEPER, model=each.model.name) for each in models)
        )
        ranked = {name: [hit.key for hit in hits] for name, hits in zip(names, lists, strict=True)}
        return await self._results(fuse(ranked, aggregation)[:top_k])

    async def searchable_models(self) -> list[ModelInfo]:
        """Return the models with at least one vector, and the one that is searched, each with how many it has."""
        await self._db.initialize()
        found = []
        for each in await self._db.models():
            embedded = await self._db.store.count(model=each.model.name)
            model = each.model
            found.append(ModelInfo(model.name, model.dimension, model.provider, each.searched, embedded))
        return [each for each in found if each.embedded or each.searched]

    async def _results(self, found: Sequence[tuple[str, float, tuple[str, ...]]]) -> list[SearchResult]:
        """Return the chunks that are still there, in the order of the hits."""
        documents, chunks = self._db.tables.documents, self._db.tables.chunks
        key = sa.cast(chunks.c.id, sa.Text)
        metadata = documents.c.metadata if "metadata" in documents.c else sa.null()
        wanted = sa.select(
            key.label("chunk_id"),
            sa.cast(documents.c.id, sa.Text).label("document_id"),
            documents.c.title,
            chunks.c.content,
            metadata.label("metadata"),
        ).join_from(chunks, documents, documents.c.id == chunks.c.document_id)
        if not found:
            return []
        chosen = self._db.tables.among_chunks([name for name, *_ in found])
        async with self._db.engine.connect() as connection:
            rows = (await connection.execute(wanted.where(chosen))).all()
        by_key = {row.chunk_id: row for row in rows}
        return [
            SearchResult(
                chunk_id=name,
                document_id=row.document_id,
                title=row.title,
                text=row.content,
                score=score,
                models=models,
                metadata=row.metadata if isinstance(row.metadata, Mapping) else {},
            )
            for name, score, models in found
            if (row := by_key.get(name)) is not None
        ]


def fuse(ranked: Mapping[str, Sequence[str]], aggregation: Aggregation) -> list[tuple[str, float, tuple[str, ...]]]:
    """Return the keys of ranked lists, by the name of each, with their fused score and the lists that have them."""
    scores: dict[str, float] = {}
    found_by: dict[str, list[str]] = {}
    for name, keys in ranked.items():
        for rank, key in enumerate(keys, 1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (RANK_CONSTANT + rank)
            found_by.setdefault(key, []).append(name)
    wanted = [key for key in scores if aggregation == "union" or len(found_by[key]) == len(ranked)]
    wanted.sort(key=lambda key: (-scores[key], key))
    return [(key, scores[key], tuple(found_by[key])) for key in wanted]
