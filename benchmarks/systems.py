"""Documents out of pickle files and products out of ChromaDB: moved, verified, and searched, as rag_chunks is.

    python benchmarks/systems.py [--documents 9000] [--queries 100]

Each is the system that its demo makes, with texts of Python's standard library embedded by WordLlama (256 dimensions),
moved by its own command and compared bit for bit by `amprenta-vectors verify`. Recall is that of `benchmarks/query.py`,
by the same code; a document's filters are flags in its metadata, a product's are bounds of its price.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import click
from query import SHARES, recall, to_queries
from tools import Stage, Vectors, execute, open_stage, print_machine, query

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.extras import require_extra
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.corpus import embed_corpus
from amprenta_vectors.sandbox.legacy_documents import STORES, make_legacy_documents
from amprenta_vectors.sandbox.legacy_products import make_catalogue, make_chroma, read_products
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.protocol import Filter

FLAGS = """
    UPDATE vector_documents SET metadata = metadata || jsonb_build_object(
        'half', random() < 0.5, 'twentieth', random() < 0.05, 'rare', random() < 0.005)
"""
PRICE = "SELECT percentile_cont(%s) WITHIN GROUP (ORDER BY price)::float FROM products"


@click.command()
@click.option("--documents", "count", default=9000, show_default=True)
@click.option("--queries", default=100, show_default=True)
def main(count: int, queries: int) -> None:
    """Print every figure."""
    print_machine()
    with open_stage() as stage:
        asked = to_queries(embed_corpus(stage.folder), queries)
        documents(stage, asked, count)
        products(stage, asked)


def documents(stage: Stage, asked: Vectors, count: int) -> None:
    """Measure every user's documents, and the searches of one user."""
    url = new_database(stage)
    upgrade(Settings.load(database_url=url, vector_dimension=256), "documents")
    key = require_extra("cryptography.fernet", "documents").Fernet.generate_key().decode()
    root = stage.folder / "user_data"
    made = make_legacy_documents(root, count, key)
    environment = {
        "AMPRENTA_TABLE": "vector_documents",
        "AMPRENTA_EMBEDDER": "wordllama",
        "SIMPLE_STORE_ROOT": str(root),
        "VECTOR_STORE_ENCRYPTION_KEY": key,
    }
    click.echo(f"\ndocuments: {sum(made.values()):,} in {len(made)} stores")
    move(stage, url, environment, "documents", "migrate")
    click.echo(said(stage.run(url, environment, "verify", "--all-namespaces")[1]))
    execute(url, FLAGS)
    execute(url, "VACUUM ANALYZE vector_documents")
    namespace = "/".join(STORES[0])
    search(url, "vector_documents", asked, {name: {name: True} for name in SHARES}, namespace)


def products(stage: Stage, asked: Vectors) -> None:
    """Measure the whole catalogue."""
    url = new_database(stage)
    catalogue = read_products()
    engine = create_engine(Settings.load(database_url=url))
    make_catalogue(engine, catalogue)
    engine.dispose()
    make_chroma(stage.folder / "chroma", catalogue)
    upgrade(Settings.load(database_url=url, vector_dimension=256), "products")
    environment = {
        "AMPRENTA_TABLE": "products",
        "AMPRENTA_EMBEDDER": "wordllama",
        "CHROMA_PATH": str(stage.folder / "chroma"),
    }
    click.echo(f"\nproducts: {len(catalogue):,}")
    # ChromaDB has five ids of products that are no more, and they are named.
    move(stage, url, environment, "products", "migrate", expect=3)
    execute(url, "VACUUM ANALYZE products")
    bounds = {name: query(url, PRICE.replace("%s", str(share)))[0] for name, share in SHARES.items()}
    search(url, "products", asked, {name: {"price": {"$lt": bound}} for name, bound in bounds.items()})


def new_database(stage: Stage) -> str:
    """Make an empty database; return its URL. An earlier one is dropped."""
    execute(stage.server.url(), "DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
    stage.server.create_database("benchmark")
    return stage.server.url("benchmark")


def move(stage: Stage, url: str, environment: dict[str, str], *command: str, expect: int = 0) -> None:
    """Run the system's own command, and print what it came to."""
    seconds, output = stage.run(url, environment, *command, expect=expect)
    click.echo(said(output))
    click.echo(f"moved in {seconds:.1f} s, the process and its verification included")


def said(output: str) -> str:
    """Return what the command printed, without the peak memory at its end."""
    return output.strip().rpartition("\n")[0]


def search(url: str, table: str, asked: Vectors, filters: Mapping[str, Filter], namespace: str = "") -> None:
    """Print recall, and how many answers are cut short."""
    settings = Settings.load(database_url=url, table=table, namespace=namespace)
    with closing(open_pgvector_store(settings)) as store:
        click.echo(f"{store.count():,} rows to search")
        recall(store, asked, filters)


if __name__ == "__main__":
    main()
