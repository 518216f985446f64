"""The six steps of a catalogue's move from ChromaDB, each of them work of the engine."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.job import Job
from amprenta_vectors.backfill.keys import has_empty
from amprenta_vectors.backfill.keys_from import KeysFrom
from amprenta_vectors.backfill.progress import Run
from amprenta_vectors.backfill.run import Summary
from amprenta_vectors.backfill.starting import Mode
from amprenta_vectors.batch import Reason
from amprenta_vectors.cli.backfill import (
    CLEAN,
    INTERRUPTED,
    WORST_FIRST,
    conclude,
    conduct,
    open_ends,
    open_job,
    verify_command,
)
from amprenta_vectors.cli.options import key_map_for
from amprenta_vectors.cli.products_model import check_product_model
from amprenta_vectors.cli.products_state import State, count_products, look_at_both
from amprenta_vectors.cli.readiness import open_throttle
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.errors import ConfigError, NotUpgraded
from amprenta_vectors.integrations.product_rows import coverage, filled_by_id, spot_check
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Origin
from amprenta_vectors.sources.rows import RowsOrigin, open_rows_origin

SPOTS = 3
"""Products that are looked at and named in the end."""
RULE = "=" * 80


@dataclass(frozen=True)
class Wanted:
    """What a person asked for: to embed every product anew (``force``), or ``ids``; else to fill what is missing."""

    force: bool
    ids: tuple[str, ...]
    mode: Mode
    verify: bool


class Migration:
    """One command's worth of the move; `run` takes the steps in order."""

    _engine: Engine
    _table: VectorTable
    _chroma: Origin
    _rows: RowsOrigin | None = None
    _begun: Run | None = None
    _moves: bool

    def __init__(self, settings: Settings, wanted: Wanted, stop: threading.Event) -> None:
        self._settings = settings
        self._wanted = wanted
        self._stop = stop
        self._ids: list[str] = []
        self._gain = 0
        self._summaries: list[Summary] = []

    def run(self, *, dry_run: bool) -> int:
        """The exit code. Raises `ConfigError` for what was asked wrongly, and what stops a run; that can be resumed."""
        began = time.monotonic()
        self._preflight()
        before = self._analyse()
        planned = self._plan(before)
        if dry_run:
            self._say(f"  Would migrate {planned:,} products (DRY RUN)")
            return CLEAN
        self._say(f"\n[Step 4/6] Migrating {planned:,} products...")
        code = self._migrate(before)
        if code == INTERRUPTED:
            if not self._summaries[-1].interrupted:
                self._say("  go on with: amprenta-vectors products migrate --resume")
            return code
        self._look_back(before)
        self._summarise(before, time.monotonic() - began)
        return code

    def _preflight(self) -> None:
        self._say("[Step 1/6] Running pre-flight checks...")
        try:
            self._engine, self._table, self._chroma = open_ends(self._settings)
        except NotUpgraded as error:
            raise NotUpgraded(error.message, hint="alembic -n products upgrade head") from None
        self._say("  ✓ pgvector extension available")
        self._say(f"  ✓ ChromaDB collection {self._settings.chroma_collection!r} found")
        self._say("  ✓ Database connection successful")
        self._ids = self._known_ids()

    def _known_ids(self) -> list[str]:
        """The products asked for, as the table spells them."""
        type_name = self._table.column_types[self._table.key[0]]
        ids = []
        for given in dict.fromkeys(self._wanted.ids):
            spelled = canonical(given, type_name)
            if spelled is None:
                raise ConfigError(f"--product-id {given!r} is no {type_name}", hint="--product-id takes a products.id")
            ids.append(spelled)
        with self._engine.connect() as connection:
            known = filled_by_id(connection, self._table, ids)
        self._gain = sum(not filled for filled in known.values())
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise ConfigError(
                f"there is no product with the id {', '.join(unknown)}", hint="--product-id takes a products.id"
            )
        return ids

    def _analyse(self) -> State:
        self._say("\n[Step 2/6] Analyzing current state...")
        source = self._chroma.open(self._table, "", with_metadata=False)
        state = look_at_both(self._engine, self._table, source, key_map_for(self._engine, self._table, {}, "chroma"))
        self._say(f"  Total products in database: {state.products:,}")
        self._say(f"  Products with ChromaDB embeddings: {state.in_chroma:,}")
        self._say(f"  Products with pgvector embeddings: {state.embedded:,}")
        self._say(f"  Products missing pgvector embeddings: {state.missing:,}")
        if state.unmatched:
            more = f", … {state.unmatched - len(state.shown):,} more" if state.unmatched > len(state.shown) else ""
            self._say(f"  ChromaDB ids that are no product's: {', '.join(state.shown)}{more}")
        return state

    def _plan(self, before: State) -> int:
        """How many products are to be written."""
        self._say("\n[Step 3/6] Building migration plan...")
        to_move, to_embed = before.to_move, before.absent
        if not self._ids:
            self._gain = before.missing
        if self._wanted.force or self._ids:
            to_move, to_embed = 0, len(self._ids) or before.products
        self._say(f"  From ChromaDB: {to_move:,}; to embed: {to_embed:,}")
        with self._engine.connect() as connection:
            begun = progress.unfinished_run(connection, self._table.target, {})
        self._begun = None if self._wanted.mode == "restart" else begun
        # A run that was begun and not finished stands in the way of another, and is gone on with first.
        moving = begun is not None and begun.source_kind == "chroma"
        self._moves = (to_move > 0 or moving) and not self._embedding
        if to_embed or self._embedding:
            self._open_rows()
        return to_move + to_embed

    @property
    def _embedding(self) -> bool:
        """Whether a run that embeds has been begun and is to be gone on with."""
        return self._begun is not None and self._begun.source_kind == "rows"

    def _open_rows(self) -> None:
        rows = open_rows_origin(self._settings, self._table, self._engine)
        checked = check_product_model(
            self._settings,
            open_embedder(self._settings),
            self._chroma.open(self._table, "", with_metadata=True),
            key_map_for(self._engine, self._table, {}, "chroma"),
            rows.open(self._table, "", with_metadata=False),
        )
        found = (
            f"median cosine {checked.median:.4f} over {checked.texts} of ChromaDB's texts embedded again"
            if checked
            else "too few texts in ChromaDB to compare"
        )
        self._say(f"  Embedded by {rows.model}: {found}")
        self._rows = rows

    def _migrate(self, before: State) -> int:
        """The runs that are due: first what ChromaDB has, then what is to be embedded."""
        codes = [CLEAN]
        if self._moves:
            codes.append(self._work(self._chroma_job(before)))
        rows = self._rows_due() if codes[-1] != INTERRUPTED else None
        if rows is not None:
            codes.append(self._work(self._rows_job(rows)))
        return next(code for code in WORST_FIRST if code in codes)

    def _rows_due(self) -> RowsOrigin | None:
        """What products are embedded from, if any is to be: also one whose vector ChromaDB has and nobody can use."""
        if not (self._wanted.force or self._ids or self._embedding):
            with self._engine.connect() as connection:
                if not has_empty(connection, self._table, {}):
                    return None
        if self._rows is None:
            self._open_rows()
        return self._rows

    def _chroma_job(self, before: State) -> Job:
        # One that is gone on with keeps its model, though there may be products to embed by now, or none any more.
        begun = self._begun or self._rows
        model = self._settings.embedding_model or (begun.model if begun else None)
        keys_from: KeysFrom | None = None if self._begun else "source"
        job = open_job(self._settings, self._engine, self._table, self._chroma, "", self._wanted.mode, keys_from)
        # The ids that are no product's have been counted and named: they are no surprise.
        expected = before.unmatched / before.records if before.records else 0.0
        return replace(job, model=model, max_bad_share=min(1.0, job.max_bad_share + expected))

    def _rows_job(self, rows: RowsOrigin) -> Job:
        return open_job(
            self._settings,
            self._engine,
            self._table,
            rows,
            "",
            self._wanted.mode,
            None,
            given_keys=self._ids,
            replace=self._wanted.force or bool(self._ids),
        )

    def _work(self, job: Job) -> int:
        throttle = open_throttle(self._engine, self._settings, self._table, insert=False)
        summary = conduct(self._engine, self._settings, job, self._wanted.mode, throttle, self._stop)
        self._summaries.append(summary)
        return conclude(self._engine, self._settings, job, summary, self._stop, verify=self._wanted.verify)

    def _look_back(self, before: State) -> None:
        if not self._wanted.verify:
            return
        self._say("\n[Step 5/6] Verifying migration integrity...")
        with self._engine.connect() as connection:
            after = count_products(connection, self._table)
            spots = spot_check(connection, self._table, SPOTS)
        self._say(f"  Products with pgvector embeddings after migration: {after.embedded:,}")
        self._say(f"  Expected embeddings: {before.embedded + self._gain - self._errors():,}")
        self._say("  Running spot checks on random products...")
        for product, valid in spots:
            said = "✓" if valid else "✗"
            self._say(f"  {said} {product.name or product.id} has {'a valid' if valid else 'no valid'} embedding")

    def _summarise(self, before: State, seconds: float) -> None:
        with self._engine.connect() as connection:
            covered = coverage(connection, self._table)
        migrated = sum(summary.counts.written for summary in self._summaries)
        if self._settings.log_format == "json":
            figures = {"products": before.products, "migrated": migrated, "skipped": before.embedded}
            figures |= {"errors": self._errors(), "unmatched": before.unmatched}
            share = {"coverage_percent": round(100 * covered.share, 2), "seconds": round(seconds, 2)}
            click.echo(json.dumps({"event": "migrated", **figures, **share}))
            return
        lines = ["\n[Step 6/6] Report", "", "MIGRATION SUMMARY", RULE, f"Duration: {seconds:.2f} seconds", ""]
        lines += [f"Total products: {before.products:,}", f"Successfully migrated: {migrated:,}"]
        lines += [f"Skipped: {self._skipped(before):,}", f"Errors: {self._errors():,}", ""]
        lines += [f"Final pgvector coverage: {100 * covered.share:.1f}% of {covered.products:,} active products", ""]
        lines += [
            "Next Steps:",
            "1. Verify search quality with test queries",
            "2. Update environment variables:",
            "   USE_PGVECTOR=true",
            "   PRODUCT_SEARCH_STRATEGY=pgvector_primary",
            "3. Watch hits and similarity of the searches in the application's log",
            "4. Keep ChromaDB as fallback at first: pgvector_primary falls back on it",
        ]
        if self._rows is not None and (self._wanted.force or self._ids):
            # Against ChromaDB they would differ, in their last bits if in nothing else.
            described = self._rows.open(self._table, "", with_metadata=False).description
            lines.append(f"5. Compare what was embedded anew: {verify_command(self._settings, described)}")
        for line in lines:
            self._say(line)

    def _skipped(self, before: State) -> int:
        """Products that had an embedding and kept it."""
        return 0 if self._wanted.force else before.embedded - len(self._ids) if self._ids else before.embedded

    def _errors(self) -> int:
        """Products that were set aside. An id of Chroma that is no product's is none of them."""
        reasons = [reasons for summary in self._summaries for reasons in summary.errors.items()]
        return sum(rows for reason, rows in reasons if reason != Reason.NO_TARGET)

    def _say(self, line: str) -> None:
        if self._settings.log_format == "text":
            click.echo(line)
