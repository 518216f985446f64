"""The document system as it was before: a folder a user, with ``vectors.pkl`` and ``metadata.json`` in it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.extras import require_extra
from amprenta_vectors.sandbox.corpus import Chunk, read_corpus

STORES = (
    ("alice", "personal_assistant"),
    ("bob", "personal_assistant"),
    ("carol", "personal_assistant"),
    ("carol", "interview_prep"),
)
"""Bob's metadata is encrypted as a whole, Carol's first value by value; each store is of another shape."""
CHUNKS_PER_DOCUMENT = 8
"""The most chunks of the corpus that are read for a document."""
SHARED = 5
"""Documents that every user has, under the same ids."""


def make_legacy_documents(root: Path, count: int, key: str, embedder: Embedder | None = None) -> dict[str, int]:
    """Write ``count`` documents, or somewhat more, into stores below ``root``; returns how many each has.

    A document is a docstring of Python's standard library, its vector that of wordllama, of 256 dimensions.
    """
    chunks = [chunk for chunk in read_corpus(count * CHUNKS_PER_DOCUMENT) if chunk.metadata["kind"] == "docstring"]
    shared, others = chunks[:SHARED], chunks[SHARED:count]
    share = -(-len(others) // len(STORES))
    made: dict[str, int] = {}
    for place, (user, collection) in enumerate(STORES):
        own = [*shared, *others[place * share : (place + 1) * share]]
        folder = root / user / f"vector_store_{collection}"
        folder.mkdir(parents=True)
        _write(folder, own, (embedder or WordLlamaEmbedder()).embed([chunk.text for chunk in own]), place, key)
        made[f"{user}/{collection}"] = len(own)
    return made


def _write(folder: Path, chunks: Sequence[Chunk], vectors: Any, shape: int, key: str) -> None:
    fernet = require_extra("cryptography.fernet", "documents").Fernet(key)
    ids, texts, fields = zip(*((chunk.id, chunk.text, chunk.metadata) for chunk in chunks), strict=True)
    by_id = {i: {"text": t, "metadata": f} for i, t, f in zip(ids, texts, fields, strict=True)}
    listed = [{"id": i, "page_content": t, "metadata": f} for i, t, f in zip(ids, texts, fields, strict=True)]

    def hide(value: str) -> str:
        token: bytes = fernet.encrypt(value.encode())
        return token.decode()

    hidden = [{**entry, "metadata": hide(json.dumps(entry["metadata"]))} for entry in listed]
    pickled, documents = (
        (dict(zip(ids, vectors.tolist(), strict=True)), json.dumps(by_id)),
        (vectors.tolist(), hide(json.dumps(listed))),
        ({"ids": list(ids), "vectors": vectors}, json.dumps(hidden)),
        (vectors, json.dumps({"ids": ids, "texts": texts, "metadatas": fields})),
    )[shape]
    (folder / "vectors.pkl").write_bytes(pickle.dumps(pickled))
    (folder / "metadata.json").write_text(documents, encoding="utf-8")


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--documents", type=click.IntRange(min=20), default=2000, show_default=True, help="How many.")
def main(root: Path, documents: int) -> None:
    """Make the stores of several users below ROOT; VECTOR_STORE_ENCRYPTION_KEY encrypts some of them."""
    key = Settings.load().require("vector_store_encryption_key")
    for name, count in make_legacy_documents(root, documents, key).items():
        click.echo(f"  {name}: {count:,} documents")


if __name__ == "__main__":
    main()
