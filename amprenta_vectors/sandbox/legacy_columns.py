"""An application whose embeddings lie in columns of its own table: as JSON, as text between commas, and as bytes."""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import read_corpus

OTHER_EVERY, BROKEN_EVERY, WITHOUT_EVERY = 50, 400, 30
"""One JSON value in so many is of another model, one is broken, and one row in so many has no embedding yet."""

_CREATE = """
    CREATE TABLE passages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        title text NOT NULL,
        body text NOT NULL,
        as_json jsonb,
        as_csv text,
        as_bytes bytea,
        views bigint NOT NULL DEFAULT 0
    )
"""


def to_row(number: int, title: str, body: str, vectors: list[NDArray[np.float32]]) -> dict[str, Any]:
    """Return a row as the application writes it: ``vectors`` are of 256, 128 and 64 dimensions."""
    large, middle, small = vectors
    row: dict[str, Any] = {"title": title, "body": body, "as_json": None, "as_csv": None, "as_bytes": None}
    if number % WITHOUT_EVERY == WITHOUT_EVERY - 1:
        return row
    kept = middle if number % OTHER_EVERY == OTHER_EVERY - 1 else large
    row["as_json"] = json.dumps([float(value) for value in kept])
    row["as_csv"] = ", ".join(repr(float(value)) for value in middle)
    row["as_bytes"] = small.astype("<f4").tobytes()
    if number % BROKEN_EVERY == BROKEN_EVERY - 1:
        row["as_json"] = json.dumps({"error": "rate limit"})
        row["as_csv"] = row["as_csv"][:500] + ", n/a"
        row["as_bytes"] = row["as_bytes"][:-3]
    return row


@click.command()
@click.option("--rows", "limit", type=click.IntRange(min=100), help="So many passages.  [default: all]")
def main(limit: int | None) -> None:
    """Make the table passages in DATABASE_URL, of real text with real embeddings of three models."""
    chunks = read_corpus(limit)
    texts = [chunk.text for chunk in chunks]
    vectors = [WordLlamaEmbedder(dimension).embed(texts) for dimension in (256, 128, 64)]
    engine = create_engine(Settings.load())
    insert = sa.text("""
        INSERT INTO passages (title, body, as_json, as_csv, as_bytes)
        VALUES (:title, :body, CAST(:as_json AS jsonb), :as_csv, :as_bytes)
    """)
    with engine.begin() as connection:
        connection.execute(sa.text(_CREATE))
        rows = [
            to_row(number, chunk.id, chunk.text, [each[number] for each in vectors])
            for number, chunk in enumerate(chunks)
        ]
        connection.execute(insert, rows)
    engine.dispose()
    click.echo(f"{len(chunks):,} passages: embeddings as JSON, as text between commas, and as bytes")


if __name__ == "__main__":
    main()
