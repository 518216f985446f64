"""The whole journey of a product catalogue from ChromaDB on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import click
import sqlalchemy as sa

from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox.stage import Stage, keys_of

SECTION = "products"
QUESTION = "compress and decompress files"
FILTERS = "--category class --category function --max-price 60 --min-stock 1"
KILL_AT = 0.3
"""The share of the products that is written when the move is killed."""
QUARANTINED = 3
"""The exit code of a run that has named what it could not place: ChromaDB has products that are no more."""
BATCH_SIZE = 20


class ProductsDemo(Stage):
    """Make the old system, migrate it with a kill, switch the strategy, ask both sides, and go back."""

    def _acts(self) -> list[Callable[[], None]]:
        return [self._old_system, self._expand, self._migrate_with_a_kill, self._switch, self._go_back_and_forth]

    @property
    def _migrate(self) -> str:
        return self._script("migrate_chroma_to_pgvector.py", "amprenta-vectors products migrate")

    def _old_system(self) -> None:
        self._title("A shop as it is today: products in PostgreSQL, their embeddings in ChromaDB")
        self._start_sandbox(" --rows 1")
        folder = self._folder.resolve() / "chroma"
        products = f" --products {self._rows}" if self._rows else ""
        self._do(f"python -m amprenta_vectors.sandbox.legacy_products --folder {shlex.quote(str(folder))}{products}")
        self._export(CHROMA_PATH=str(folder), AMPRENTA_EMBEDDER="wordllama")
        # The sandbox's model gives lower cosines than the one that the thresholds of products are made for.
        self._export(PGVECTOR_SIMILARITY_THRESHOLD="0.2", CHROMA_SIMILARITY_THRESHOLD="0.2")
        self._count = self._number("SELECT count(*) FROM products")
        self._note("source", f"{self._count:,} products, texts of Python's standard library, 256 dimensions")

    def _expand(self) -> None:
        self._title("1. Expand: the columns, indexes, trigger, functions and view of products")
        self._do(self._alembic("upgrade head", SECTION))
        self._do(f"{self._migrate} --dry-run")

    def _migrate_with_a_kill(self) -> None:
        self._title("2. Migrate, killed with SIGKILL partway, and resumed")
        self._export(AMPRENTA_TABLE="products")
        process = self._begin(f"{self._migrate} --batch-size {BATCH_SIZE} --workers 1")
        killed_at = self._kill_at(int(KILL_AT * self._count), process)
        self._note("killed", f"SIGKILL after {killed_at:,} of {self._count:,} products")
        self._do("amprenta-vectors status")
        _, output = self._do(f"{self._migrate} --resume", expect=QUARANTINED)
        self._do("amprenta-vectors products coverage")
        if self._number("SELECT count(*) FROM products WHERE embedding IS NULL") or "0 different" not in output:
            raise AmprentaError("the products were not all migrated and verified")
        embedded = self._number("SELECT count(embedding_text_hash) FROM products")
        self._note("resumed", f"every product has its embedding, {embedded:,} of them made from its text")

    def _switch(self) -> None:
        self._title("3. Switch the strategy: the same question to both sides, and to both at once")
        answers = {strategy: self._ask(strategy) for strategy in ("chroma_primary", "pgvector_primary", "hybrid")}
        filtered = {strategy: self._ask(strategy, f" {FILTERS}") for strategy in ("chroma_primary", "pgvector_primary")}
        for found in (answers, filtered):
            self._check_same(found["chroma_primary"], found["pgvector_primary"])
        self._note(
            "switched",
            f"{len(answers['hybrid'])} hits, and {len(filtered['pgvector_primary'])} with filters on category, price "
            "and stock; pgvector's answer is ChromaDB's but for products it never had",
        )

    def _ask(self, strategy: str, filters: str = "") -> list[str]:
        self._export(PRODUCT_SEARCH_STRATEGY=strategy)
        return keys_of(self._do(f"amprenta-vectors products search {shlex.quote(QUESTION)}{filters}")[1])

    def _check_same(self, chroma: list[str], pgvector: list[str]) -> None:
        """Raise `AmprentaError` unless pgvector's answer, less products that ChromaDB never had, begins ChromaDB's."""
        with self._engine.connect() as connection:
            absent = set(
                connection.scalars(sa.text("SELECT id::text FROM products WHERE embedding_text_hash IS NOT NULL"))
            )
        shared = [key for key in pgvector if key not in absent]
        if not shared or chroma[: len(shared)] != shared:
            raise AmprentaError("the two sides gave different products")

    def _go_back_and_forth(self) -> None:
        self._title("4. Go back to ChromaDB alone, and forth again with the embeddings still there")
        before = self._fingerprint()
        self._export(USE_PGVECTOR="false", PRODUCT_SEARCH_STRATEGY="chroma_primary")
        self._do(self._alembic("downgrade base", SECTION))
        self._do(f"amprenta-vectors products search {shlex.quote(QUESTION)} --limit 3")
        self._export(USE_PGVECTOR="true", PRODUCT_SEARCH_STRATEGY="pgvector_primary")
        self._do(self._alembic("upgrade head", SECTION))
        if self._fingerprint() != before:
            raise AmprentaError("the embeddings did not survive the downgrade")
        self._note("rolled back", "downgrade base, upgrade head: every embedding is what it was")
        click.echo()

    def _fingerprint(self) -> str:
        statement = "SELECT md5(string_agg(id::text || embedding::text, ',' ORDER BY id)) FROM products"
        with self._engine.connect() as connection:
            return str(connection.scalar(sa.text(statement)))
