"""The queries of `compare` and `tune`: the options, and the queries that they name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amprenta_vectors.cli.options import NAMESPACE_HELP

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from amprenta_vectors.compare.queries import Query
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.vector_table import VectorTable

Command = TypeVar("Command", bound=Callable[..., Any])

QUERIES = 100


def query_options(command: Command) -> Command:
    """Add ``--queries``, ``--from``, ``--top-k``, ``--namespace`` and ``--seed``."""
    from amprenta_vectors.stores.top_k import MAX_TOP_K

    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Which stored vectors are sampled."),
        click.option("--namespace", help=NAMESPACE_HELP),
        click.option("--top-k", type=click.IntRange(1, MAX_TOP_K), default=10, show_default=True, help="Hits a query."),
        click.option(
            "--from",
            "origin",
            default="stored",
            show_default=True,
            metavar="FILE|shadow|stored",
            help='FILE: one JSON object a line, {"vector": [...], "filter": {...}}, the filter optional; or .npy, one '
            "row a query. shadow: the latest that VECTOR_MODE=shadow kept. stored: stored ones, each moved a little.",
        ),
        click.option(
            "--queries", type=click.IntRange(min=1), help=f"At most so many.  [default: all of FILE, else {QUERIES}]"
        ),
    ):
        command = option(command)
    return command


def read_queries(
    settings: Settings, engine: Engine, table: VectorTable, origin: str, queries: int | None, seed: int
) -> list[Query]:
    """Return the queries that ``--from`` names. Raises `ConfigError` if there is none.

    ``table`` is from the catalogue.
    """
    from amprenta_vectors.compare.queries import queries_of_file, recorded_queries, stored_queries
    from amprenta_vectors.stores.factory import open_pgvector_store

    if origin == "shadow":
        with engine.connect() as connection:
            return recorded_queries(connection, table, queries or QUERIES)
    if origin == "stored":
        with closing(open_pgvector_store(settings)) as store:
            return stored_queries(store, queries or QUERIES, seed)
    return queries_of_file(Path(origin), table, queries)


def for_measuring(settings: Settings) -> Settings:
    """Return the settings without similarity thresholds and query time-out: an exact search may take long."""
    from amprenta_vectors.config import Settings

    thresholds = [name for name in Settings.model_fields if name.endswith("_similarity_threshold")]
    return settings.model_copy(update=dict.fromkeys([*thresholds, "query_timeout_seconds"]))
