"""Many small namespaces: the seconds that each costs beside its rows, for simple stores and for namespaces of an index.

    python benchmarks/small_namespaces.py [--count 1000] [--rows 5]

Both are moved by their own command, a process with its start and its verification included: as many users' stores of
``--rows`` documents each by `documents migrate`, and as many namespaces of a Pinecone index by
`backfill --all-namespaces`, which plans all its runs before the first begins. The seconds to the first batch are from
the command's start to the first claim of all, by the number of namespaces; those of Python's start are in them.
"""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import click
from tools import API_KEY, INDEX, UNLIMITED, Stage, execute, open_stage, print_budget, print_machine, query, to_vectors

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

DIMENSION = 64
GOAL_SECONDS = 0.06
"""1000 in a minute."""
GOAL_FIRST_BATCH_SECONDS = 0.05
TO_FIRST_BATCH = "SELECT extract(epoch FROM min(started_at))::float FROM migration_progress"


@click.command()
@click.option("--count", default=1000, show_default=True, help="Stores, and namespaces.")
@click.option("--rows", default=5, show_default=True, help="Documents, or vectors, in each.")
def main(count: int, rows: int) -> None:
    """Print every figure."""
    print_machine()
    with open_stage() as stage:
        stores(stage, count, rows)
        namespaces(stage, count, rows)


def stores(stage: Stage, count: int, rows: int) -> None:
    """Measure the move of many users' stores."""
    url = new_database(stage, "documents")
    root = stage.folder / "user_data"
    for number in range(count):
        make_store(root / f"user-{number:04d}" / "vector_store_personal_assistant", rows, number)
    environment = {"AMPRENTA_TABLE": "vector_documents", "SIMPLE_STORE_ROOT": str(root)}
    began = time.time()
    seconds, _ = stage.run(url, environment, "documents", "migrate", "--model", "benchmark")
    check(url, "vector_documents", count * rows)
    show(f"{count:,} simple stores", count, seconds, query(url, TO_FIRST_BATCH)[0] - began)
    made = len(list(stage.folder.glob("user_data_backup_*")))
    click.echo(f"backup folders: {made}")


def namespaces(stage: Stage, count: int, rows: int) -> None:
    """Measure the move of many namespaces."""
    url = new_database(stage, "alembic")
    emulator = PineconeEmulator(name=INDEX, dimension=DIMENSION, api_key=API_KEY)
    try:
        for number in range(count):
            ids = [f"chunk-{row}" for row in range(rows)]
            emulator.load(f"namespace-{number:04d}", ids, to_vectors(rows, DIMENSION))
        emulator.start()
        environment = {
            "PINECONE_API_KEY": API_KEY,
            "PINECONE_INDEX_NAME": INDEX,
            "PINECONE_CONTROLLER_HOST": emulator.host,
            **UNLIMITED,
        }
        command = ("backfill", "--all-namespaces", "--keys-from", "source", "--model", "benchmark")
        began = time.time()
        seconds, _ = stage.run(url, environment, *command)
    finally:
        emulator.stop()
    check(url, "rag_chunks", count * rows)
    show(f"{count:,} namespaces", count, seconds, query(url, TO_FIRST_BATCH)[0] - began)


def new_database(stage: Stage, section: str) -> str:
    """Make a database with the section in it; return its URL. An earlier one is dropped."""
    execute(stage.server.url(), "DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
    stage.server.create_database("benchmark")
    url = stage.server.url("benchmark")
    upgrade(Settings.load(database_url=url, vector_dimension=DIMENSION), section)
    return url


def make_store(folder: Path, rows: int, seed: int) -> None:
    """Write a store's two files."""
    folder.mkdir(parents=True)
    ids = [f"doc-{row}" for row in range(rows)]
    vectors = to_vectors(rows, DIMENSION)
    (folder / "vectors.pkl").write_bytes(pickle.dumps(dict(zip(ids, vectors.tolist(), strict=True))))
    documents = {i: {"text": f"text of {i} of {seed}", "metadata": {"store": seed}} for i in ids}
    (folder / "metadata.json").write_text(json.dumps(documents), encoding="utf-8")


def check(url: str, table: str, rows: int) -> None:
    """Raise ClickException if not every row was written."""
    found = query(url, f"SELECT count(embedding) FROM {table}")
    if found != (rows,):
        raise click.ClickException(f"{found} rows were written, expected {rows}")


def show(what: str, count: int, seconds: float, first_seconds: float) -> None:
    """Print what they took."""
    print_budget(what, seconds, GOAL_SECONDS * count, "s", at_most=True)
    print_budget("to the first batch, for each", first_seconds / count, GOAL_FIRST_BATCH_SECONDS, "s", at_most=True)


if __name__ == "__main__":
    main()
