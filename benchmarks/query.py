"""A query through the store beside the same SQL on a bare cursor and other libraries, on real embeddings.

    python benchmarks/query.py [--queries 300] [--rounds 5] [--python PATH]

The rows are the texts of Python's standard library, the queries the first lines of its docstrings, all embedded by
WordLlama (256 dimensions). All are asked with the same `ef_search` on the same table, but for vecs, which takes only a
table of its own making: it gets a copy of the rows and an index with the same parameters. The others run in a virtual
environment of their own, made for the run; `--python` names one that is there.

Who is asked first changes from query to query, so that a slow moment and a cold page are everybody's.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
import psycopg2
from tools import Stage, Vectors, execute, open_stage, print_budget, print_machine

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import Corpus, embed_corpus
from amprenta_vectors.stores.composites.shadow import ShadowLog, ShadowStore
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.pgvector.search_settings import DEFAULT_EF_SEARCH
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, Record

OVERHEAD_GOAL, RECALL_GOAL, SHADOW_GOAL = 1.1, 0.99, 1.05
TOP_K = 10
TIE = 1e-6
SHARES = {"half": 0.5, "twentieth": 0.05, "rare": 0.005}
OTHERS = ("langchain-postgres==0.0.19", "vecs==0.4.5", "psycopg2-binary")
PACE_SECONDS = 0.01
"""The pause between queries in shadow mode: an application waits for its users, and the secondary needs time too."""

SETTINGS = "SET hnsw.iterative_scan = relaxed_order; SET hnsw.ef_search = %s"
BARE = (
    "SELECT * FROM (SELECT chunk_id AS key, embedding <=> %s::vector(256) AS distance, content, metadata "
    "FROM rag_chunks WHERE namespace = '' AND embedding IS NOT NULL ORDER BY distance LIMIT 40) AS near "
    "ORDER BY distance + 0.0 LIMIT 10"
)
"""The SQL of the store's query; its settings are made once for the session."""

COPY_FOR_VECS = """
    CREATE SCHEMA vecs;
    CREATE TABLE vecs.rows (id text PRIMARY KEY, vec vector(256) NOT NULL, metadata jsonb NOT NULL DEFAULT '{}');
    INSERT INTO vecs.rows SELECT chunk_id, embedding, metadata FROM rag_chunks;
    CREATE INDEX ix_vector_cosine_ops_hnsw_m16_efc64_rows ON vecs.rows USING hnsw (vec vector_cosine_ops);
"""

Ask = Callable[[int], Any]


@click.command()
@click.option("--queries", default=300, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="How often all queries are asked.")
@click.option("--python", type=click.Path(path_type=Path), help="A Python that has the other libraries.")
@click.option("--without-others", is_flag=True)
def main(queries: int, rounds: int, python: Path | None, without_others: bool) -> None:
    """Print every figure."""
    print_machine()
    with open_stage() as stage:
        corpus = embed_corpus(stage.folder)
        url = fill(stage, corpus)
        asked = to_queries(corpus, queries)
        settings = Settings.load(database_url=url, pool_size=32)
        store = open_pgvector_store(settings)
        click.echo(f"{len(corpus.ids):,} rows, {len(asked)} queries, top {TOP_K}, ef_search {DEFAULT_EF_SEARCH}")
        recall(store, asked, {name: {name: True} for name in SHARES})
        if without_others:
            latency(url, store, asked, rounds, {})
        else:
            with others(stage, url, asked, python or install(stage.folder / "others")) as libraries:
                latency(url, store, asked, rounds, libraries)
        throughput(url, store, asked)
        shadow(settings, store, asked, rounds)
        store.close()


def fill(stage: Stage, corpus: Corpus) -> str:
    """Make a database with the corpus and its index; each share of `SHARES` is a flag in the metadata."""
    url = stage.new_database([], 256)
    draws = np.random.default_rng(1).random(len(corpus.ids))
    store = open_pgvector_store(Settings.load(database_url=url))
    store.upsert(
        [
            Record(key, vector, text, {**metadata, **{name: bool(draw < share) for name, share in SHARES.items()}})
            for key, vector, text, metadata, draw in zip(
                corpus.ids, corpus.vectors, corpus.texts, corpus.metadata, draws, strict=True
            )
        ]
    )
    store.close()
    execute(url, "CREATE INDEX idx_rag_chunks_embedding ON rag_chunks USING hnsw (embedding vector_cosine_ops)")
    execute(url, "VACUUM ANALYZE rag_chunks")
    return url


def to_queries(corpus: Corpus, queries: int) -> Vectors:
    """Return first lines of docstrings, ``(queries, 256)``: what somebody who looks for the rest might type."""
    lines = {
        text.strip().splitlines()[0].strip(): None
        for text, metadata in zip(corpus.texts, corpus.metadata, strict=True)
        if metadata["kind"] == "docstring" and len(text) > 200
    }
    chosen = np.random.default_rng(2).permutation([line for line in lines if len(line) > 20])[:queries]
    return WordLlamaEmbedder().embed([str(line) for line in chosen])


def recall(store: PgVectorStore, asked: Vectors, filters: Mapping[str, Filter]) -> None:
    """Print recall against an exact search, by distance, without a filter and with each of ``filters``.

    A row as near as the tenth counts, whichever it is.
    """
    click.echo("\nfilter       rows matching   recall@10   short answers   vector index used")
    for name in (None, *filters):
        wanted = filters[name] if name else None
        found = short = expected = 0
        for vector in asked:
            exact = store.query(vector, top_k=TOP_K, filter=wanted, exact=True)
            hits = store.query(vector, top_k=TOP_K, filter=wanted)
            short += len(hits) < len(exact)
            expected += len(exact)
            found += sum(hit.score >= exact[-1].score - TIE for hit in hits)
        plan = store.explain(asked[0], top_k=TOP_K, filter=wanted)
        share = found / expected if expected else 1.0
        click.echo(
            f"{name or 'none':<12} {plan.rows_estimated:>13,}   {share:>9.4f}   {short:>13}   {plan.index or 'no'}"
        )
        print_budget(f"  recall@10, filter {name or 'none'}", share, RECALL_GOAL, "")


def latency(
    url: str, store: PgVectorStore, asked: Vectors, rounds: int, libraries: dict[str, Callable[[int], float]]
) -> None:
    """Print the milliseconds of one query at a time."""
    texts = [str(vector.tolist()) for vector in asked]
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(SETTINGS, (DEFAULT_EF_SEARCH,))

        def bare(number: int) -> list[Any]:
            cursor.execute(BARE, (texts[number],))
            return cursor.fetchall()

        ways = {"bare cursor": timed(bare), "store": timed(lambda number: store.query(asked[number], top_k=TOP_K))}
        taken = in_turn({**ways, **libraries}, len(asked), rounds)
    click.echo("\none query at a time        p50 ms    p95 ms    p50 × bare")
    base = float(np.percentile(taken["bare cursor"], 50))
    for name, values in taken.items():
        p50, p95 = np.percentile(values, [50, 95])
        click.echo(f"{name:<24} {p50:>8.2f}  {p95:>8.2f}  {p50 / base:>12.2f}")
    overhead = ratio(taken["store"], taken["bare cursor"], 50, rounds)
    print_budget("  store × bare, p50", overhead, OVERHEAD_GOAL, at_most=True)


def timed(ask: Ask) -> Callable[[int], float]:
    """Return a function that measures the milliseconds of a query."""

    def measure(number: int) -> float:
        began = time.perf_counter()
        ask(number)
        return (time.perf_counter() - began) * 1000

    return measure


def in_turn(ways: dict[str, Callable[[int], float]], queries: int, rounds: int) -> dict[str, list[float]]:
    """Return each way's milliseconds for each query, ``rounds`` times over; the first to be asked changes."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for name in names:
        ways[name](0)
    for turn in range(rounds):
        for number in range(queries):
            first = (number + turn) % len(names)
            for name in names[first:] + names[:first]:
                taken[name].append(ways[name](number))
    return taken


def ratio(values: Sequence[float], base: Sequence[float], percentile: int, rounds: int) -> float:
    """Return the median over the rounds of one percentile divided by the other."""
    pairs = zip(np.array_split(values, rounds), np.array_split(base, rounds), strict=True)
    return float(np.median([np.percentile(ours, percentile) / np.percentile(bare, percentile) for ours, bare in pairs]))


def throughput(url: str, store: PgVectorStore, asked: Vectors, seconds: float = 3.0) -> None:
    """Print the queries a second of several threads; a bare cursor for each beside the one store for all."""
    texts = [str(vector.tolist()) for vector in asked]

    @contextmanager
    def bare() -> Iterator[Ask]:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(SETTINGS, (DEFAULT_EF_SEARCH,))
            yield lambda number: (cursor.execute(BARE, (texts[number],)), cursor.fetchall())

    @contextmanager
    def ours() -> Iterator[Ask]:
        yield lambda number: store.query(asked[number], top_k=TOP_K)

    click.echo("\nqueries a second           bare     store")
    for threads in (1, 8, 32):
        rates = [rate(way, threads, len(asked), seconds) for way in (bare, ours)]
        click.echo(f"{threads:>2} threads          {rates[0]:>12,.0f} {rates[1]:>9,.0f}")


def rate(open_way: Callable[[], Any], threads: int, queries: int, seconds: float) -> float:
    """Return the queries a second of ``threads`` that start together and stop after ``seconds``."""
    counts = [0] * threads
    ready = threading.Barrier(threads + 1)
    over = threading.Event()

    def work(own: int) -> None:
        with open_way() as ask:
            ask(own % queries)
            ready.wait()
            for number in itertools.count(own):
                if over.is_set():
                    return
                ask(number % queries)
                counts[own] += 1

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    counted, taken = sum(counts), time.perf_counter() - began
    over.set()
    for thread in running:
        thread.join()
    return counted / taken


class Secondary:
    """A store beside the primary in shadow mode, and of no use."""

    distance: ClassVar[str] = "cosine"

    def __init__(self, name: str, answer: Callable[[], list[Hit]]) -> None:
        self.name = name
        self._answer = answer

    def query(self, vector: Any, *, top_k: int = 10, filter: Any = None) -> list[Hit]:
        """Answer as this secondary does."""
        return self._answer()

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def shadow(settings: Settings, store: PgVectorStore, asked: Vectors, rounds: int) -> None:
    """Print the primary's p95 with secondaries that fail it in every way, beside its own."""
    over = threading.Event()

    def hang() -> list[Hit]:
        over.wait()
        return []

    def fail() -> list[Hit]:
        raise ConnectionError

    bad = {"hangs": hang, "fails": fail, "answers garbage": lambda: [Hit("no such key", float("nan"))] * 3}
    stores = {
        name: ShadowStore(
            store,
            Secondary(name, answer),  # type: ignore[arg-type]
            ShadowLog(create_engine(settings, pool_size=2, max_overflow=0), "pgvector", name),
        )
        for name, answer in bad.items()
    }

    def paced(one: Any) -> Callable[[int], float]:
        measure = timed(lambda number: one.query(asked[number], top_k=TOP_K))

        def ask(number: int) -> float:
            time.sleep(PACE_SECONDS)
            return measure(number)

        return ask

    ways = {"alone": paced(store)} | {name: paced(one) for name, one in stores.items()}
    taken = in_turn(ways, len(asked), rounds)
    over.set()
    for one in stores.values():
        one.close()
    click.echo("\nthe primary when its shadow …   p50 ms    p95 ms")
    for name, values in taken.items():
        p50, p95 = np.percentile(values, [50, 95])
        click.echo(f"{name:<30} {p50:>7.2f}  {p95:>8.2f}")
    for name in bad:
        print_budget(f"  p95, {name}", ratio(taken[name], taken["alone"], 95, rounds), SHADOW_GOAL, at_most=True)


@contextmanager
def others(stage: Stage, url: str, asked: Vectors, python: Path) -> Iterator[dict[str, Callable[[int], float]]]:
    """Start the other libraries in their own process."""
    execute(url, COPY_FOR_VECS)
    execute(url, "VACUUM ANALYZE vecs.rows")
    queries = stage.folder / "queries.npy"
    np.save(queries, asked)
    script = Path(__file__).with_name("query_others.py")
    process = subprocess.Popen(
        [python, script, url, queries, str(DEFAULT_EF_SEARCH)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def measuring(library: str) -> Callable[[int], float]:
        def measure(number: int) -> float:
            stdin.write(f"{library} {number}\n")
            stdin.flush()
            milliseconds, found = stdout.readline().split()
            if int(found) != TOP_K:
                raise click.ClickException(f"{library} gave {found} hits")
            return float(milliseconds)

        return measure

    try:
        yield {"langchain-postgres": measuring("langchain"), "vecs (its copy)": measuring("vecs")}
    finally:
        stdin.close()
        process.wait()


def install(folder: Path) -> Path:
    """Make a virtual environment with `OTHERS`; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *OTHERS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"the other libraries cannot be installed: {done.stderr}")
    return python


if __name__ == "__main__":
    sys.exit(main())
