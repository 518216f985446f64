"""``benchmark``: the source and PostgreSQL on the same queries."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option
from amprenta_vectors.cli.printer import say
from amprenta_vectors.stores.top_k import MAX_TOP_K

if TYPE_CHECKING:
    from amprenta_vectors.stores.comparison import ComparisonReport


@click.command()
@click.option("--queries", type=click.IntRange(min=1), default=100, show_default=True, help="How many queries to ask.")
@click.option("--top-k", type=click.IntRange(1, MAX_TOP_K), default=10, show_default=True, help="Hits per query.")
@click.option(
    "--use-db-vectors",
    is_flag=True,
    help="Query with stored vectors as they are, not each moved a little.",
)
@click.option("--namespace", help="Compare in this namespace.  [env var: PINECONE_NAMESPACE]")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Which vectors are sampled, and how they are moved."
)
@json_option()
def benchmark(queries: int, top_k: int, use_db_vectors: bool, namespace: str | None, seed: int, as_json: bool) -> None:
    """Compare the source (AMPRENTA_SOURCE) with PostgreSQL: the same hits, the nearest ones, and how fast.

    Asks both for the nearest rows of the same vectors, one at a time. Recall is measured against an exact search in
    PostgreSQL, by distance, so that equally near rows count as found.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.stores.comparison import compare_stores, perturbed
    from amprenta_vectors.stores.factory import open_pgvector_store, open_source_store

    settings = Settings.load(namespace=namespace)
    with ExitStack() as stack:
        pgvector = stack.enter_context(closing(open_pgvector_store(settings)))
        source = stack.enter_context(closing(open_source_store(settings)))
        vectors = pgvector.sample(queries, seed=seed)
        if not use_db_vectors:
            vectors = perturbed(vectors, seed=seed)
        report = compare_stores({source.name: source, "pgvector": pgvector}, pgvector, vectors, top_k=top_k)
    if as_json:
        for line in json.dumps(asdict(report), indent=2).splitlines():
            say(line)
    else:
        _print(report)


def _print(report: ComparisonReport) -> None:
    from amprenta_vectors.cli.table_text import print_table
    from amprenta_vectors.stores.comparison import StoreReport

    head = ["store", f"recall@{report.top_k}", "p50 ms", "p95 ms", "p99 ms", "queries/s", "hits"]
    say(f"{report.queries} queries, overlap@{report.top_k} {_to_cell(report.overlap)}")
    say()
    rows = [[_to_cell(getattr(store, field.name)) for field in fields(StoreReport)] for store in report.stores]
    print_table(head, rows, right=head[1:])


def _to_cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
