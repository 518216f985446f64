"""Every kind of vector index beside the others, on real embeddings: recall, size, time to build, latency.

    python benchmarks/storage.py [--rows 20500] [--queries 100] [--rounds 3]

A table for each kind, with the same rows: the texts of Python's standard library, embedded by WordLlama (256
dimensions). The queries are the first lines of its docstrings. For more dimensions than one index holds of a vector,
the embeddings of ten texts that follow each other (twenty, for 5120) make one vector, one beginning at each text; every
hundredth such vector is a query instead of a row.

Recall is by distance, of the vectors as they were embedded: a row as near as the tenth counts, whichever it is. The
store searches with its defaults. The last thing printed is the table of docs/indexes.md.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import psycopg2
from query import SHARES, TIE, TOP_K, to_queries
from tools import Stage, Vectors, execute, open_stage, print_machine, query, to_payload

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.ivfflat import suitable_lists
from amprenta_vectors.pg.types import IndexStorage, Storage, VectorType
from amprenta_vectors.sandbox.corpus import embed_corpus
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.factory import PING_AFTER_SECONDS
from amprenta_vectors.stores.pgvector.store import PgVectorStore

BUILD_MEMORY = "1GB"
AT_ONCE = 1000


@dataclass(frozen=True)
class Kind:
    """A column and its index; ``index`` is None for the finest that pgvector takes."""

    column: Storage
    method: str
    index: IndexStorage | None = None

    def __str__(self) -> str:
        return f"`{self.column}` | {self.method} of {self.index or self.column}"


@dataclass(frozen=True)
class Data:
    """Rows and queries of one dimension, and of each filter which rows pass."""

    rows: Vectors
    queries: Vectors
    flags: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """The figures of one kind: shares, MB, seconds and milliseconds."""

    recall: Sequence[float]
    short: int
    table_mb: float
    index_mb: float
    build_seconds: float
    p50_ms: float
    p95_ms: float

    def __str__(self) -> str:
        recall = " | ".join(f"{share:.3f}" for share in self.recall)
        sizes = f"{self.table_mb:,.0f} | {self.index_mb:,.1f} | {self.build_seconds:,.1f}"
        return f"{recall} | {sizes} | {self.p50_ms:.1f} | {self.p95_ms:.1f}"


KINDS: dict[int, Sequence[Kind]] = {
    1: (
        Kind("vector", "hnsw"),
        Kind("vector", "hnsw", "halfvec"),
        Kind("halfvec", "hnsw"),
        Kind("vector", "hnsw", "bit"),
        Kind("vector", "ivfflat"),
        Kind("vector", "ivfflat", "halfvec"),
    ),
    10: (Kind("vector", "hnsw", "halfvec"), Kind("halfvec", "hnsw"), Kind("vector", "hnsw", "bit")),
    20: (Kind("vector", "hnsw", "bit"),),
}
"""The kinds that are measured, by how many texts make a vector."""

HEAD = """
| dimensions | column | index | recall@10 | 50 % pass | 5 % | 0.5 % | table MB | index MB | build s | p50 ms | p95 ms |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


@click.command()
@click.option("--rows", default=20_500, show_default=True, help="At most as many as there are texts.")
@click.option("--queries", default=100, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="How often all queries are asked.")
def main(rows: int, queries: int, rounds: int) -> None:
    """Print every figure."""
    print_machine()
    lines = []
    with open_stage() as stage:
        corpus = embed_corpus(stage.folder)
        texts = corpus.vectors[:rows]
        for joined, kinds in KINDS.items():
            data = to_data(texts, joined, to_queries(corpus, queries))
            dimension = data.rows.shape[1]
            for number, kind in enumerate(kinds):
                url = fill(stage, kind, data)
                figures = measure(url, kind, data, rounds)
                lines.append(f"| {dimension:,} | {kind} | {figures} |")
                click.echo(f"{joined}/{number}: {len(data.rows):,} rows, {figures.short} short answers {lines[-1]}")
    click.echo("\n".join([HEAD, *lines]))


def to_data(texts: Vectors, joined: int, asked: Vectors) -> Data:
    """Return rows and queries of ``joined`` texts a vector; without joining, ``asked`` are the queries."""
    if joined == 1:
        rows, queries = texts, asked
    else:
        windows = np.concatenate([texts[first : len(texts) - joined + first + 1] for first in range(joined)], axis=1)
        held = np.arange(len(windows)) % 100 == 0
        rows, queries = windows[~held], windows[held][: len(asked)]
    draws = np.random.default_rng(1).random(len(rows))
    return Data(rows, queries, {name: draws < share for name, share in SHARES.items()})


def fill(stage: Stage, kind: Kind, data: Data) -> str:
    """Make a database with the rows in one table ``rows``, not yet indexed; return its URL. Any earlier one goes."""
    execute(stage.server.url(), "DROP DATABASE IF EXISTS storage WITH (FORCE)")
    stage.server.create_database("storage")
    url = stage.server.url("storage")
    execute(url, "CREATE EXTENSION vector")
    dimension = data.rows.shape[1]
    vector = f"vector({dimension})"
    column = f"{kind.column}({dimension})"
    execute(url, f"CREATE TABLE rows (id text PRIMARY KEY, metadata jsonb NOT NULL, embedding {column})")
    keys = [str(number) for number in range(len(data.rows))]
    flags = [{name: bool(passes[number]) for name, passes in data.flags.items()} for number in range(len(keys))]
    lines = io.StringIO("".join(f"{key}\t{json.dumps(flag)}\n" for key, flag in zip(keys, flags, strict=True)))
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE flags (k text, m jsonb); CREATE TEMP TABLE t (k text, v {vector})")
        cursor.copy_expert("COPY flags FROM STDIN", lines)
        for first in range(0, len(keys), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            cursor.copy_expert("COPY t FROM STDIN (FORMAT binary)", io.BytesIO(to_payload(keys[part], data.rows[part])))
        cursor.execute("INSERT INTO rows SELECT k, m, v FROM t JOIN flags USING (k)")
    execute(url, "CREATE INDEX rows_metadata ON rows USING gin (metadata jsonb_path_ops)")
    execute(url, "VACUUM ANALYZE rows")
    return url


def measure(url: str, kind: Kind, data: Data, rounds: int) -> Figures:
    """Build the index, ask all queries with each filter, then ``rounds`` times without for the time they take."""
    build_seconds = build(url, kind, data.rows)
    engine = create_engine(Settings.load(database_url=url), ping_after_seconds=PING_AFTER_SECONDS)
    table = VectorTable("rows", "rows", ("id",), data.rows.shape[1], metadata="metadata", storage=kind.column)
    with closing(PgVectorStore(engine, table, {}, owns_engine=True)) as store:
        plan = store.explain(data.queries[0], top_k=TOP_K)
        if plan.index != "ann":
            click.echo(f"warning: the index is not used: {plan.why}")
        found = [recall(store, data, name) for name in (None, *SHARES)]
        taken = [milliseconds(store, vector) for _ in range(rounds) for vector in data.queries]
    table_mb, index_mb = query(url, "SELECT pg_table_size('rows') / 1e6, pg_relation_size('ann') / 1e6")
    p50, p95 = np.percentile(taken, [50, 95])
    return Figures(
        [share for share, _ in found],
        sum(short for _, short in found),
        float(table_mb),
        float(index_mb),
        build_seconds,
        p50,
        p95,
    )


def build(url: str, kind: Kind, rows: Vectors) -> float:
    """Build the index; return the seconds that it takes."""
    key = index_key("embedding", VectorType(kind.column, rows.shape[1]), "cosine", kind.index)
    options = f" WITH (lists = {suitable_lists(len(rows))})" if kind.method == "ivfflat" else ""
    began = time.perf_counter()
    execute(
        url,
        f"SET maintenance_work_mem = '{BUILD_MEMORY}'; "
        f"CREATE INDEX ann ON rows USING {kind.method} ({key.typed}){options}",
    )
    seconds = time.perf_counter() - began
    execute(url, "VACUUM ANALYZE rows")
    return seconds


def recall(store: PgVectorStore, data: Data, name: str | None) -> tuple[float, int]:
    """Return the share found of what is nearest by numpy, and how many answers had too few hits."""
    passing = data.rows if name is None else data.rows[data.flags[name]]
    last = np.sort(cosines(passing, data.queries), axis=1)[:, -TOP_K]
    found = short = 0
    for vector, least in zip(data.queries, last, strict=True):
        hits = store.query(vector, top_k=TOP_K, filter={name: True} if name else None)
        short += len(hits) < TOP_K
        keys = [int(hit.key) for hit in hits]
        found += int((cosines(data.rows[keys], vector[None, :])[0] >= least - TIE).sum())
    return found / (TOP_K * len(data.queries)), short


def cosines(rows: Vectors, queries: Vectors) -> Any:
    """Return the cosines of ``(queries, rows)``, float64."""
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (queries, rows)]
    return units[0] @ units[1].T


def milliseconds(store: PgVectorStore, vector: Any) -> float:
    """Return the milliseconds of one query."""
    began = time.perf_counter()
    store.query(vector, top_k=TOP_K)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
