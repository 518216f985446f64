"""A retrieval system with one model: documents in chunks, each with one embedding of 256 dimensions."""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import Chunk, read_corpus

_NAMESPACE = uuid.UUID("5a0c3f5e-6f1d-4a7b-9d55-0b6f6f0b7a51")
_LINES = 200
"""The most queries that are judged."""
_CREATE = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE documents (id uuid PRIMARY KEY, title text NOT NULL)",
    """
    CREATE TABLE chunks (
        id uuid PRIMARY KEY,
        document_id uuid NOT NULL REFERENCES documents ON DELETE CASCADE,
        chunk_index integer NOT NULL,
        content text NOT NULL
    )
    """,
    """
    CREATE TABLE chunk_embeddings (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        chunk_id uuid NOT NULL UNIQUE REFERENCES chunks ON DELETE CASCADE,
        embedding vector(256) NOT NULL
    )
    """,
    "CREATE INDEX chunk_embeddings_hnsw ON chunk_embeddings USING hnsw (embedding vector_cosine_ops)",
)


def key_of(name: str) -> str:
    """Return the id of a document or a chunk."""
    return str(uuid.uuid5(_NAMESPACE, name))


def judged_queries(chunks: list[Chunk]) -> list[dict[str, Any]]:
    """Return the first sentences of docstrings as queries: what is relevant is the source of that function."""
    sources: dict[str, list[str]] = defaultdict(list)
    for chunk in chunks:
        name, _, kind = chunk.id.rpartition("#")[0].rpartition("#")
        if kind == "source":
            sources[name].append(key_of(chunk.id))
    queries = []
    for chunk in chunks:
        name, _, kind = chunk.id.rpartition("#")[0].rpartition("#")
        sentence = re.split(r"(?<=[.!?])\s", " ".join(chunk.text.split()), maxsplit=1)[0]
        if kind == "docstring" and chunk.id.endswith("#0") and sources.get(name) and len(sentence.split()) > 5:
            queries.append({"query": sentence, "relevant": sources[name]})
    return queries[:: max(1, len(queries) // _LINES)][:_LINES]


@click.command()
@click.option("--rows", "limit", type=click.IntRange(min=100), help="So many chunks.  [default: all]")
@click.option("--judged", type=click.Path(path_type=Path), required=True, help="Where judged queries go.")
def main(limit: int | None, judged: Path) -> None:
    """Make documents, chunks and chunk_embeddings in DATABASE_URL, of real text with real embeddings."""
    # What has no words is nothing to embed.
    chunks = [chunk for chunk in read_corpus(limit) if re.search(r"\w", chunk.text)]
    vectors = WordLlamaEmbedder().embed([chunk.text for chunk in chunks])
    modules = dict.fromkeys(chunk.metadata["module"] for chunk in chunks)
    engine = create_engine(Settings.load())
    with engine.begin() as connection:
        for statement in _CREATE:
            connection.execute(sa.text(statement))
        documents = [{"id": key_of(module), "title": module} for module in modules]
        connection.execute(sa.text("INSERT INTO documents VALUES (:id, :title)"), documents)
        rows = [
            {
                "id": key_of(chunk.id),
                "document": key_of(chunk.metadata["module"]),
                "number": number,
                "text": chunk.text,
                "vector": str(vector.tolist()),
            }
            for number, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True))
        ]
        connection.execute(sa.text("INSERT INTO chunks VALUES (:id, :document, :number, :text)"), rows)
        embeddings = "INSERT INTO chunk_embeddings (chunk_id, embedding) VALUES (:id, CAST(:vector AS vector))"
        connection.execute(sa.text(embeddings), rows)
    engine.dispose()
    judged.write_text("\n".join(json.dumps(query) for query in judged_queries(chunks)) + "\n", encoding="utf-8")
    click.echo(f"{len(chunks):,} chunks of {len(modules):,} documents, each with one embedding of 256 dimensions")


if __name__ == "__main__":
    main()
