"""Rows of ``rag_chunks`` with real texts, embedded by wordllama, and the models that tests change between."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Sequence
from functools import cache

import sqlalchemy as sa

from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder

LARGE, SMALL = "wordllama-l2-supercat", "wordllama-l2-supercat-128"
"""The models by the names that the embedder has for them; a vector of the first has 256 values, of the second 128."""
TEXTS = [
    " ".join(paragraph.split())
    for topic in sorted(pydoc_data.topics.topics)
    for paragraph in pydoc_data.topics.topics[topic].split("\n\n")
    if len(paragraph.split()) > 20
][:200]
"""Paragraphs of the language reference, which come with Python."""


@cache
def embedder(dimension: int) -> WordLlamaEmbedder:
    """The embedder of so many dimensions, opened once."""
    return WordLlamaEmbedder(dimension)


def embed_rows(engine: sa.Engine, texts: Sequence[str], namespace: str = "") -> None:
    """Insert texts with their vectors of 256 values, as an application has them."""
    vectors = embedder(256).embed(texts)
    insert = sa.text("""
        INSERT INTO rag_chunks (namespace, chunk_id, content, embedding)
        VALUES (:namespace, :key, :text, CAST(:vector AS vector))
    """)
    rows = [
        {"namespace": namespace, "key": f"k{number}", "text": text, "vector": str(vector.tolist())}
        for number, (text, vector) in enumerate(zip(texts, vectors, strict=True))
    ]
    with engine.begin() as connection:
        connection.execute(insert, rows)
