"""The product system as it was before: a catalogue in PostgreSQL, and a ChromaDB that searches it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.extras import require_extra
from amprenta_vectors.sandbox.corpus import read_corpus

COLLECTION = "products_all_products"
ABSENT_EVERY, INACTIVE_EVERY = 12, 20
"""One product in so many was never put into Chroma; one in so many is sold no more."""
DELETED = 5
"""Products that Chroma still has and the catalogue does not."""
CHUNKS_PER_PRODUCT = 20
"""The most chunks of the corpus that are read for a product; from 50 products on, twelve are needed at most."""

_IDS = uuid.UUID("8a6e0804-2bd0-4672-b79d-d97027f9071a")

_CREATE = """
    CREATE TABLE products (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        brand text,
        category text,
        description text,
        price numeric(12,2) NOT NULL,
        stock integer NOT NULL DEFAULT 0,
        active boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
"""


@dataclass(frozen=True)
class Product:
    """One row of the catalogue; its text is a real one, a docstring of Python's standard library."""

    id: uuid.UUID
    name: str
    brand: str
    category: str
    description: str
    price: Decimal
    stock: int
    active: bool

    @property
    def text(self) -> str:
        """The text that the old system embedded."""
        return "\n".join((self.name, self.brand, self.category, self.description))

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that the old system stored beside the vector, and filtered by."""
        return {
            "name": self.name,
            "brand": self.brand,
            "category": self.category,
            "price": float(self.price),
            "stock": self.stock,
        }


def read_products(limit: int | None = None) -> list[Product]:
    """Return ``limit`` products at most, or all, more than 3,000: modules, classes and functions with a docstring.

    The same Python gives the same products; a package is their brand, what they are their category.
    """
    chunks = read_corpus(None if limit is None else limit * CHUNKS_PER_PRODUCT)
    described = (
        chunk for chunk in chunks if chunk.id.endswith("#docstring#0") and chunk.metadata["tags"][0] != "method"
    )
    return [
        Product(
            id=uuid.uuid5(_IDS, chunk.id),
            name=chunk.id.removesuffix("#docstring#0").replace("#", "."),
            brand=chunk.metadata["package"],
            category=chunk.metadata["tags"][0],
            description=chunk.text,
            price=Decimal(chunk.metadata["length"] * 7 + number % 100) / 100,
            stock=chunk.metadata["line"] % 40,
            active=number % INACTIVE_EVERY != 0,
        )
        for number, chunk in enumerate(islice(described, limit))
    ]


def make_catalogue(engine: Engine, products: Sequence[Product]) -> None:
    """Make the old application's table, with ``products`` in it."""
    rows = [asdict(product) for product in products]
    with engine.begin() as connection:
        connection.execute(sa.text(_CREATE))
        names: list[sa.ColumnClause[Any]] = [sa.column(name) for name in rows[0]]
        connection.execute(sa.insert(sa.table("products", *names)), rows)


def make_chroma(folder: Path, products: Sequence[Product], *, collection: str = COLLECTION) -> int:
    """Make an embedded ChromaDB in ``folder`` of most ``products``, and `DELETED` more; return how many it has."""
    kept = [product for number, product in enumerate(products) if number % ABSENT_EVERY != 0]
    ids = [str(product.id) for product in kept]
    documents = [product.text for product in kept]
    metadata = [product.metadata for product in kept]
    for number in range(DELETED):
        ids.append(str(uuid.uuid5(_IDS, f"deleted {number}")) if number else "sku-0042")
        documents.append(f"A product that was taken out of the catalogue, number {number}")
        metadata.append({"name": f"deleted {number}", "price": 1.0, "stock": 0})
    vectors = WordLlamaEmbedder().embed(documents)
    _fill(folder, collection, ids, vectors, documents, metadata)
    return len(ids)


def _fill(
    folder: Path,
    collection: str,
    ids: Sequence[str],
    vectors: np.ndarray[Any, Any],
    documents: Sequence[str],
    metadata: Sequence[dict[str, Any]],
) -> None:
    chromadb = require_extra("chromadb", "chroma")
    client = chromadb.PersistentClient(path=str(folder), settings=chromadb.config.Settings(anonymized_telemetry=False))
    made = client.create_collection(collection, metadata={"hnsw:space": "cosine"}, embedding_function=None)
    at_once = client.get_max_batch_size()
    for start in range(0, len(ids), at_once):
        part = slice(start, start + at_once)
        made.add(
            ids=list(ids[part]),
            embeddings=vectors[part],
            documents=list(documents[part]),
            metadatas=list(metadata[part]),
        )


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Where ChromaDB is to lie.")
@click.option("--products", "limit", type=click.IntRange(min=50), help="So many products.  [default: all]")
def main(folder: Path, limit: int | None) -> None:
    """Make the old product system: a table products in DATABASE_URL, and a ChromaDB in a folder."""
    products = read_products(limit)
    engine = create_engine(Settings.load())
    make_catalogue(engine, products)
    in_chroma = make_chroma(folder, products)
    inactive = sum(not product.active for product in products)
    click.echo(f"{len(products):,} products in PostgreSQL, {inactive:,} of them inactive")
    click.echo(f"{in_chroma:,} vectors in ChromaDB, collection {COLLECTION}, {DELETED} of products that are no more")
    engine.dispose()


if __name__ == "__main__":
    main()
