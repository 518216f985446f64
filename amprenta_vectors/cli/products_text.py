"""A catalogue's move in words, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from amprenta_vectors.backfill.engine.observer import BatchDone, MoveEvent, RunAdvanced
from amprenta_vectors.backfill.progress.batches import Outcome
from amprenta_vectors.cli.display import LineDisplay
from amprenta_vectors.cli.move_text import MoveText
from amprenta_vectors.cli.printer import say
from amprenta_vectors.systems.products import events
from amprenta_vectors.systems.products.state import State

RULE = "=" * 80
_STEPS = {
    1: "[Step 1/6] Running pre-flight checks...",
    2: "[Step 2/6] Analyzing current state...",
    3: "[Step 3/6] Building migration plan...",
    4: "[Step 4/6] Migrating {} products...",
    5: "[Step 5/6] Verifying migration integrity...",
}


class StepDisplay(LineDisplay):
    """Prints each batch of this process and how far the catalogue is, in place of a bar."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(MoveText(self._step))
        self._batch_size = batch_size
        self._products = self._batches = self._done = self._written = self._errors = 0

    def __call__(self, event: MoveEvent) -> None:
        """Print one event."""
        match event:
            case BatchDone(_, _, outcome):
                self._batch(outcome)
            case RunAdvanced():
                pass
            case _:
                super().__call__(event)

    def _step(self, event: MoveEvent) -> None:
        if isinstance(event, events.StepBegun):
            self._products = event.products or self._products
        print_step(event)

    def _batch(self, outcome: Outcome) -> None:
        size = outcome.written + outcome.skipped + outcome.missing + outcome.quarantined
        self._batches += 1
        self._done += size
        self._written += outcome.written
        self._errors += outcome.missing + outcome.quarantined
        # What ChromaDB has and no product is counts too, so that there may be more of it than products.
        total = max(self._products, self._done)
        say(f"  Processing batch {self._batches}/{-(-total // self._batch_size)} ({size} products)...")
        share = 100 * self._done / total if total else 100.0
        progress = f"{self._done}/{total} ({share:.1f}%)"
        say(f"  Progress: {progress} - Migrated: {self._written}, Errors: {self._errors}")


def print_step(event: MoveEvent) -> None:
    """Print an event that only a catalogue's move has."""
    for line in _lines(event):
        say(line)


def _lines(event: MoveEvent) -> Iterator[str]:
    match event:
        case events.StepBegun(number, products):
            yield from ("", _STEPS[number].format(products)) if number > 1 else (_STEPS[number],)
        case events.EndsReady(collection):
            yield "  ✓ pgvector extension available"
            yield f"  ✓ ChromaDB collection {collection!r} found"
            yield "  ✓ Database connection successful"
        case events.Analysed(state):
            yield from _analysed(state)
        case events.Planned(to_move, to_embed):
            yield f"  From ChromaDB: {to_move:,}; to embed: {to_embed:,}"
        case events.EmbedderChecked(model, checked):
            found = "too few texts in ChromaDB to compare"
            if checked is not None:
                found = f"median cosine {checked.median:.4f} over {checked.texts} of ChromaDB's texts embedded again"
            yield f"  Embedded by {model}: {found}"
        case events.WouldMigrate(products):
            yield f"  Would migrate {products} products (DRY RUN)"
        case events.Interrupted():
            yield "  resume with: amprenta-vectors products migrate --resume"
        case events.LookedBack(embedded, expected, spots):
            yield f"  Products with pgvector embeddings after migration: {embedded}"
            yield f"  Expected embeddings: {expected}"
            yield "  Running spot checks on random products..."
            for name, valid in spots:
                yield f"  {'✓' if valid else '✗'} {name} has {'valid' if valid else 'no valid'} embedding"
        case events.Migrated():
            yield from _migrated(event)


def _analysed(state: State) -> Iterator[str]:
    yield f"  Total products in database: {state.products}"
    yield f"  Products with ChromaDB embeddings: {state.in_chroma}"
    yield f"  Products with pgvector embeddings: {state.embedded}"
    yield f"  Products missing pgvector embeddings: {state.missing}"
    if state.unmatched:
        more = f", … {state.unmatched - len(state.shown):,} more" if state.unmatched > len(state.shown) else ""
        yield f"  ChromaDB ids that are no product's: {', '.join(state.shown)}{more}"


def _migrated(ended: events.Migrated) -> Iterator[str]:
    yield from ("", "[Step 6/6] Report", "", "MIGRATION SUMMARY", RULE, f"Duration: {ended.seconds:.2f} seconds", "")
    yield from (f"Total products: {ended.products}", f"Successfully migrated: {ended.migrated}")
    yield from (f"Skipped: {ended.kept}", f"Errors: {ended.errors}", "")
    yield f"Final pgvector coverage: {100 * ended.coverage:.1f}%"
    yield f"Active products: {ended.active}"
    yield from (
        "",
        "Next Steps:",
        "1. Verify search quality with test queries",
        "2. Update environment variables:",
        "   USE_PGVECTOR=true",
        "   PRODUCT_SEARCH_STRATEGY=pgvector_primary",
        "3. Monitor LangSmith for search quality metrics",
        "4. Consider keeping ChromaDB as fallback initially",
    )
    if ended.compare_command is not None:
        yield f"5. Compare what was embedded anew: {ended.compare_command}"
