"""``amprenta-vectors products``: a catalogue's move from ChromaDB, and how much of it can be found."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import BATCHES_IN_HAND, json_option, log_options, open_database, stop_on_signal
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.top_k import MAX_TOP_K

if TYPE_CHECKING:
    from amprenta_vectors.backfill.engine.starting import Mode
    from amprenta_vectors.cli.display import Display

BATCH_SIZE = 50
"""Products that are embedded by one model at once: few enough that a kill loses little of its work."""


@click.group()
def products() -> None:
    """Move a product catalogue from ChromaDB to pgvector, and show how much of it has an embedding."""


@products.command()
@click.option("--dry-run", is_flag=True, help="Look at both ends and say what would be done; change nothing.")
@click.option("--batch-size", type=int, help="Products a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 50]")
@click.option("--workers", type=int, help="Threads that fetch and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--force", is_flag=True, help="Embed every product anew, whether it has an embedding or not.")
@click.option("--product-id", "ids", multiple=True, metavar="UUID", help="Embed this product anew; repeatable.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every vector afterwards.")
@click.option("--resume", is_flag=True, help="Resume what was begun, or start.")
@click.option("--restart", is_flag=True, help="Begin anew what was begun and not finished.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Folder for the reports of the runs.  [env var: AMPRENTA_REPORT; default: reports]",
)
@log_options
@click.pass_context
def migrate(
    ctx: click.Context,
    dry_run: bool,
    batch_size: int | None,
    workers: int | None,
    force: bool,
    ids: tuple[str, ...],
    verify: bool,
    resume: bool,
    restart: bool,
    report: Path | None,
    log_format: str | None,
) -> None:
    """Fill products.embedding from ChromaDB, and embed the products that are not there.

    These are ordinary runs: status, pause, resume, limits, errors and report work on them with AMPRENTA_TABLE=products.
    Name, brand, category and description are embedded by AMPRENTA_EMBEDDER (default: ollama, with the model
    OLLAMA_API_MODEL_EMBEDDING), which must be the model that made ChromaDB's vectors.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.cli.products_text import StepDisplay, print_step
    from amprenta_vectors.systems.products.migration import Migration, Wanted
    from amprenta_vectors.systems.products.search import product_settings

    if resume and restart:
        raise ConfigError("--resume and --restart contradict each other", hint="give one of them")
    if force and ids:
        raise ConfigError("--force and --product-id contradict each other", hint="--force embeds every product")
    settings = product_settings(
        source="chroma", batch_size=batch_size, workers=workers, report=report, log_format=log_format
    )
    if "batch_size" not in settings.model_fields_set:
        settings = settings.model_copy(update={"batch_size": BATCH_SIZE})
    mode: Mode = "join" if resume else "restart" if restart else "new"
    wanted = Wanted(force=force, ids=ids, mode=mode, verify=verify)
    if settings.log_format == "json":
        display: Display = open_display(settings.log_format, print_step)
    else:
        display = StepDisplay(settings.batch_size)
    with closing(display) as show, stop_on_signal(waits_for=BATCHES_IN_HAND) as stop:
        ctx.exit(Migration(settings, wanted, stop, show).run(dry_run=dry_run))


@products.command()
@click.argument("text")
@click.option("--limit", type=click.IntRange(1, MAX_TOP_K), default=10, show_default=True, help="Find so many.")
@click.option("--category", multiple=True, help="Of this category; of several any will do.")
@click.option("--brand", multiple=True, help="Of this brand; of several any will do.")
@click.option("--min-price", type=float, help="At this price or above.")
@click.option("--max-price", type=float, help="At this price or below.")
@click.option("--min-stock", type=int, help="So many in stock or more.")
def search(
    text: str,
    limit: int,
    category: tuple[str, ...],
    brand: tuple[str, ...],
    min_price: float | None,
    max_price: float | None,
    min_stock: int | None,
) -> None:
    """Find active products by a text, as an application's ProductSearch does, to try filters and strategies out."""
    from amprenta_vectors.systems.products.search import ProductSearch

    with closing(ProductSearch.open()) as products:
        found = products.search(
            text,
            limit,
            category=category or None,
            brand=brand or None,
            min_price=min_price,
            max_price=max_price,
            min_stock=min_stock,
        )
        for product in found:
            row = product.row
            beside = f"{row.get('brand') or ''}, {row.get('category') or ''}, {row.get('price')}"
            say(f"  {product.score:.4f}  {product.id}  {row['name']} ({beside})")
        say(f"from {products.store.name}: {len(found)} product(s)")


@products.command("coverage")
@click.option(
    "--limit", type=click.IntRange(min=0), default=10, show_default=True, help="List so many of those without."
)
@json_option()
def show_coverage(limit: int, as_json: bool) -> None:
    """Show how many active products have an embedding, and which have none and so are never found."""
    from amprenta_vectors.moves.ends import open_table
    from amprenta_vectors.systems.products.rows import coverage, without_embedding
    from amprenta_vectors.systems.products.search import product_settings

    settings = product_settings()
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        table = open_table(settings, connection)
        counts = coverage(connection, table)
        missing = without_embedding(connection, table, limit)
    if as_json:
        figures = {"total_products": counts.products, "with_embeddings": counts.embedded}
        figures |= {"missing_embeddings": counts.missing}
        share = {"coverage_percent": round(100 * counts.share, 2)}
        say(json.dumps({**figures, **share, "missing": [asdict(product) for product in missing]}))
        return
    say(
        f"{counts.products:,} active products: {counts.embedded:,} with an embedding, {counts.missing:,} without "
        f"({100 * counts.share:.1f} %)"
    )
    for product in missing:
        say(f"  {product.id}  {product.name or ''}")
    if counts.missing > len(missing):
        say(f"  … {counts.missing - len(missing):,} more; --limit N lists them")
    if counts.missing:
        say("embed them with: amprenta-vectors products migrate")
