"""Embeddings in a column of the same database: the backfill beside the same UPDATE by hand.

    python benchmarks/column.py [--rows 200000] [--dimension 256] [--repeats 3]

By hand is one statement a batch of as many rows, over ranges of the key, on as many connections, a transaction each
that does not wait for the disk, as the backfill's do not. Neither writes a hash. Both are measured after a checkpoint,
on a table of its own, and take turns at being first. WAL, the server's largest process and the engine's own peak stand
beside the rates.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click
import psutil
import psycopg2
from tools import BATCH, Stage, execute, load_seconds, open_stage, print_budget, print_machine, query

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import upgrade

LEAST = 0.9
FORMS = {
    "real[]": ("real[]", "old::vector({dimension})"),
    "jsonb": ("jsonb", "old::text::vector({dimension})"),
    "text": ("text", "old::vector({dimension})"),
}
DECLARED = """
[tables.articles]
table = "articles"
key = "id"
dimension = {dimension}
source = "column"
old = {{ column = "old" }}
"""


def new_table(stage: Stage, form: str, rows: int, dimension: int) -> str:
    """Make a database with ``rows`` old values; return its URL."""
    execute(stage.server.url(), "DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
    stage.server.create_database("benchmark")
    url = stage.server.url("benchmark")
    upgrade(Settings.load(database_url=url), revision="core_0001")
    type_, _ = FORMS[form]
    numbers = f"(SELECT array_agg((random() - 0.5)::real) FROM generate_series(1, {dimension}) WHERE id IS NOT NULL)"
    value = {"real[]": numbers, "jsonb": f"to_jsonb({numbers})", "text": f"to_jsonb({numbers})::text"}[form]
    execute(url, f"CREATE TABLE articles (id bigint PRIMARY KEY, old {type_}, embedding vector({dimension}))")
    execute(url, f"INSERT INTO articles SELECT id, {value} FROM generate_series(1, {rows}) id")
    execute(url, "VACUUM ANALYZE articles")
    execute(url, "CHECKPOINT")
    return url


def by_hand(url: str, form: str, rows: int, dimension: int, connections: int) -> float:
    """Return the seconds of the same batches by hand."""
    starts = iter(range(1, rows + 1, BATCH))
    lock = threading.Lock()
    cast = FORMS[form][1].format(dimension=dimension)

    def work() -> None:
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            connection.commit()
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                cursor.execute(
                    f"UPDATE articles SET embedding = {cast} WHERE id >= %s AND id < %s AND embedding IS NULL",
                    (start, start + BATCH),
                )
                connection.commit()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def by_engine(stage: Stage, url: str, dimension: int, connections: int) -> tuple[float, float]:
    """Return the seconds of the backfill's load, and the peak of its process in MB."""
    config = stage.folder / "amprenta.toml"
    config.write_text(DECLARED.format(dimension=dimension))
    environment = {"AMPRENTA_CONFIG": str(config), "AMPRENTA_TABLE": "articles", "AMPRENTA_BATCH_SECONDS": "off"}
    arguments = ["backfill", "--no-verify", "--json", "--batch-size", str(BATCH), "--workers", str(connections)]
    _, output = stage.run(url, environment, *arguments)
    return load_seconds(url), int(output.split()[-1]) / 1024


def wal_bytes(url: str) -> int:
    """Return how much WAL the server has written."""
    return int(query(url, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")[0])


def check(url: str, rows: int) -> None:
    """Raise ClickException if not every row has its embedding."""
    found = query(url, "SELECT count(embedding) FROM articles")
    if found != (rows,):
        raise click.ClickException(f"{found} rows were filled, expected {rows}")


def watch_server(folder: Path, stop: threading.Event, peak: list[int]) -> None:
    """Keep the largest private memory of a process of the server in ``peak``, in bytes."""
    postmaster = int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    while not stop.wait(0.1):
        for process in psutil.Process(postmaster).children():
            try:
                memory = process.memory_info()
                peak[0] = max(peak[0], memory.rss - memory.shared)
            except psutil.Error:
                continue


def measure_hand(stage: Stage, form: str, rows: int, dimension: int, connections: int) -> float:
    """Print what the batches by hand took on a new table; return their seconds."""
    url = new_table(stage, form, rows, dimension)
    before = wal_bytes(url)
    seconds = by_hand(url, form, rows, dimension, connections)
    wal = wal_bytes(url) - before
    check(url, rows)
    click.echo(f"{form:>8}, {rows:,} × {dimension}: by hand {rows / seconds:,.0f} rows/s, {wal / 1e6:,.0f} MB WAL")
    return seconds


def measure_engine(stage: Stage, form: str, rows: int, dimension: int, connections: int) -> float:
    """Print what the backfill took on a new table; return the seconds of its load."""
    url = new_table(stage, form, rows, dimension)
    before, stop, peak = wal_bytes(url), threading.Event(), [0]
    watcher = threading.Thread(target=watch_server, args=(stage.folder, stop, peak))
    watcher.start()
    seconds, peak_mb = by_engine(stage, url, dimension, connections)
    stop.set()
    watcher.join()
    wal = wal_bytes(url) - before
    check(url, rows)
    click.echo(
        f"{form:>8}, {rows:,} × {dimension}: backfill {rows / seconds:,.0f} rows/s, {wal / 1e6:,.0f} MB WAL, "
        f"{peak_mb:,.0f} MB of its own, {peak[0] / 1e6:,.0f} MB of the server's largest process"
    )
    return seconds


def compare(stage: Stage, forms: Sequence[str], rows: int, dimension: int, repeats: int, connections: int) -> None:
    """Print rate by hand and by the engine, turn by turn, and the median of the ratios."""
    for form in forms:
        ratios = []
        for turn in range(repeats):
            seconds = {}
            for measure in (measure_engine, measure_hand) if turn % 2 else (measure_hand, measure_engine):
                seconds[measure] = measure(stage, form, rows, dimension, connections)
            ratios.append(seconds[measure_hand] / seconds[measure_engine])
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print_budget(f"{form} × UPDATE by hand ({spread})", statistics.median(ratios), LEAST)


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--connections", default=2, show_default=True)
@click.option("--forms", default="real[],jsonb,text", show_default=True, help="Separated by commas.")
def main(rows: int, dimension: int, repeats: int, connections: int, forms: str) -> None:
    """Print the rates beside each other."""
    print_machine()
    with open_stage() as stage:
        compare(stage, forms.split(","), rows, dimension, repeats, connections)


if __name__ == "__main__":
    main()
