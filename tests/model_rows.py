"""A table with two registered models, and the changes of the registry that tests make without the command line."""

from __future__ import annotations

import json
from functools import partial

import sqlalchemy as sa
from embedded_rows import LARGE, SMALL, embedder

from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.model_column import AddModelColumnOp, DropModelColumnOp
from amprenta_vectors.embedders.registered import open_registered
from amprenta_vectors.moves.models.adding import invoke_on
from amprenta_vectors.stores.pgvector.options import StoreOptions

WORDLLAMA = "wordllama"
OPTIONS = StoreOptions(open_model=partial(open_registered, settings=Settings.load(database_url="postgresql://")))
"""Those of a store that opens the embedders of registered models."""


def add_column(
    engine: sa.Engine, name: str, dimension: int, column: str, provider: str | None = WORDLLAMA, **parameters: str
) -> None:
    """Register a model of ``rag_chunks`` with its column, as a revision does."""
    operation = AddModelColumnOp(
        "rag_chunks", column, name, dimension, provider=provider, parameters=parameters, index=f"idx_{column}"
    )
    with engine.connect() as connection:
        invoke_on(connection, operation)


def add_two(engine: sa.Engine, provider: str | None = WORDLLAMA) -> None:
    """Register the model of the vectors that are there, and a smaller one, by ``provider``, whose column is empty."""
    add_column(engine, LARGE, 256, "embedding")
    add_column(engine, SMALL, 128, "embedding_128", provider)


def drop_small(engine: sa.Engine) -> None:
    """Retire the smaller model, without waiting for the processes that write it."""
    with engine.connect() as connection:
        invoke_on(connection, DropModelColumnOp("rag_chunks", "embedding_128", SMALL, index="idx_embedding_128"))


def fill_small(engine: sa.Engine) -> None:
    """Give every row that has none the smaller model's vector of its text."""
    with engine.begin() as connection:
        rows = connection.execute(sa.text("SELECT chunk_id, content FROM rag_chunks WHERE embedding_128 IS NULL")).all()
        vectors = embedder(128).embed([row.content for row in rows])
        update = sa.text("UPDATE rag_chunks SET embedding_128 = CAST(:vector AS vector) WHERE chunk_id = :key")
        values = [
            {"key": row.chunk_id, "vector": json.dumps(vector.tolist())}
            for row, vector in zip(rows, vectors, strict=True)
        ]
        connection.execute(update, values)


def switch(engine: sa.Engine, name: str) -> None:
    """Have queries search another model, without asking whether it is ready."""
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE model_column SET searched = false"))
        connection.execute(
            sa.text("""
                UPDATE model_column SET searched = true, switched_at = now()
                WHERE model_id = (SELECT id FROM embedding_models WHERE model_name = :name)
            """),
            {"name": name},
        )
