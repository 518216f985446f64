"""``amprenta-vectors sandbox``: everything the package needs, on this machine, with real data in it."""

from __future__ import annotations

import importlib
import shlex
from contextlib import closing
from pathlib import Path

import click

from amprenta_vectors.cli.printer import say
from amprenta_vectors.sandbox import DEFAULT_FOLDER

DEMOS = {
    "rag_chunks": "amprenta_vectors.sandbox.demo:Demo",
    "documents": "amprenta_vectors.sandbox.demo_documents:DocumentsDemo",
    "products": "amprenta_vectors.sandbox.demo_products:ProductsDemo",
    "column": "amprenta_vectors.sandbox.demo_column:ColumnDemo",
    "models": "amprenta_vectors.sandbox.demo_models:ModelsDemo",
}

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where the sandbox keeps its data.",
)


@click.group()
def sandbox() -> None:
    """Run PostgreSQL with pgvector and a Pinecone index on this machine, to try everything out."""


@sandbox.command()
@_folder
@click.option("--rows", type=click.IntRange(min=1), help="Load the index with so many vectors.  [default: all]")
def start(folder: Path, rows: int | None) -> None:
    """Start the sandbox, loading the index the first time."""
    from amprenta_vectors.sandbox import control

    loaded = control.start(folder, rows)
    command = "amprenta-vectors sandbox env"
    if folder != DEFAULT_FOLDER:
        command += f" --folder {shlex.quote(str(folder))}"
    say(f"The sandbox runs; its Pinecone index was loaded with {loaded:,} vectors.")
    say(f'Point this shell at it: eval "$({command})"')


@sandbox.command()
@_folder
@click.option("--remove", is_flag=True, help="Delete the folder with everything in it.")
def stop(folder: Path, remove: bool) -> None:
    """Stop the sandbox; what it holds stays for the next start."""
    from amprenta_vectors.sandbox import control

    control.stop(folder, remove=remove)


@sandbox.command()
@_folder
def env(folder: Path) -> None:
    """Print the variables that point a shell at the sandbox."""
    from amprenta_vectors.sandbox import control

    for name, value in control.env(folder).items():
        say(f"export {name}={shlex.quote(value)}")


@sandbox.command()
@click.argument("question")
@click.option("--top-k", type=click.IntRange(1, 100), default=5, show_default=True, help="How many hits.")
def ask(question: str, top_k: int) -> None:
    """Ask the store that VECTOR_BACKEND names a question in words."""
    # Imported here: start and stop do not need the model.
    from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
    from amprenta_vectors.stores.factory import get_vector_store

    store = get_vector_store()
    for hit in store.query(WordLlamaEmbedder().embed([question])[0], top_k=top_k):
        first_line = (hit.text or "").strip().partition("\n")[0]
        say(f"  {hit.score:.4f}  {hit.key}  {first_line[:70]}")
    store.close()


@sandbox.command()
@click.argument("text")
def add(text: str) -> None:
    """Write a text into the store, or the two stores, that the environment names."""
    from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
    from amprenta_vectors.stores.factory import get_vector_store
    from amprenta_vectors.stores.texts import TextStore

    embedder = WordLlamaEmbedder()
    with closing(get_vector_store()) as store:
        [key] = TextStore(store, embedder.embed, lambda query: embedder.embed([query])[0]).add([text])
    say(f"  written as {key} to {store.name}")


@sandbox.command()
@click.option(
    "--system",
    type=click.Choice(list(DEMOS)),
    default="rag_chunks",
    show_default=True,
    help="What is moved: chunks from Pinecone, documents from pickle files, products from Chroma, old columns; or "
    "another model of what is there.",
)
@click.option("--rows", type=click.IntRange(min=100), help="Use so many vectors.  [default: all there are]")
def demo(system: str, rows: int | None) -> None:
    """Go the whole journey on this machine: upgrade, backfill, kill, resume, verify, compare, switch, go back."""
    module, _, name = DEMOS[system].partition(":")
    getattr(importlib.import_module(module), name)(DEFAULT_FOLDER / "demo", rows).run()
