"""Vectors a second at 1536 dimensions, and peak memory, beside bare COPY + UPDATE of the same bytes in the same run.

    python benchmarks/backfill.py [--rows 20000] [--repeats 3] [--memory/--no-memory]

The source is the sandbox's Pinecone emulator in a process of its own; it, PostgreSQL and the backfill share this
machine's cores. Every figure is the median of the repeats with its spread. The rate is that of the load: rows by the
time from the first batch's start to the last one's commit, without the start of Python, the index and the verification.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import numpy as np
import psycopg2
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

DIMENSION = 1536
BATCH = 1000
API_KEY = "benchmark-key"
MEASURING = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Linux counts the size of the process that started another as that one's peak; this one is small."""
SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--latencies", default="0,20", show_default=True, help="Milliseconds, separated by commas.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory at 10 and 100 thousand rows.")
def main(rows: int, repeats: int, workers: int, latencies: str, memory: bool) -> None:
    """Print the load's rate and the process's peak memory."""
    click.echo(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    click.echo(f"{rows:,} rows × {DIMENSION} dimensions, batches of {BATCH}, {workers} workers or connections\n")
    with tempfile.TemporaryDirectory(prefix="amprenta-benchmark-") as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "postgres", SERVER)
        server.start()
        try:
            _rates(folder, server, rows, repeats, workers, [int(part) for part in latencies.split(",")])
            if memory:
                _memory(folder, server, workers)
        finally:
            server.stop("immediate")


def _rates(folder: Path, server: EmbeddedPostgres, rows: int, repeats: int, workers: int, latencies: list[int]) -> None:
    vectors = np.random.default_rng(7).standard_normal((rows, DIMENSION), dtype=np.float32)
    ids = _ids(rows)
    bare = _repeat(repeats, lambda: _bare_rate(server, ids, vectors, workers))
    _print("bare COPY + UPDATE", bare, bare)
    with _emulator(folder, ids, vectors) as environment:
        for latency in latencies:
            _set_latency(environment, latency / 1000)
            for transport in ("grpc", "rest"):
                rates = _repeat(repeats, lambda: _backfill(server, ids, environment, transport, workers)[0])  # noqa: B023
                _print(f"backfill over {transport}, {latency} ms", rates, bare)


def _memory(folder: Path, server: EmbeddedPostgres, workers: int) -> None:
    click.echo()
    for rows in (10_000, 100_000):
        vectors = np.random.default_rng(7).standard_normal((rows, DIMENSION), dtype=np.float32)
        with _emulator(folder, _ids(rows), vectors) as environment:
            del vectors
            rate, peak = _backfill(server, _ids(rows), environment, "grpc", workers)
        click.echo(f"peak memory at {rows:>7,} rows: {peak / 1024:6.0f} MB   ({rate:,.0f} vectors/s)")


def _ids(rows: int) -> list[str]:
    return [f"chunk-{number:08d}" for number in range(rows)]


def _bare_rate(server: EmbeddedPostgres, ids: list[str], vectors: NDArray[np.float32], connections: int) -> float:
    """The same bytes by COPY into a temporary table and UPDATE, ready-made, on as many connections."""
    url = _new_database(server, ids)
    payloads = iter([_payload(ids[i : i + BATCH], vectors[i : i + BATCH]) for i in range(0, len(ids), BATCH)])
    lock = threading.Lock()

    def work() -> None:
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            while True:
                with lock:
                    payload = next(payloads, None)
                if payload is None:
                    return
                cursor.execute(f"CREATE TEMP TABLE t (k text, v vector({DIMENSION})) ON COMMIT DROP")
                cursor.copy_expert("COPY t FROM STDIN (FORMAT binary)", io.BytesIO(payload))
                cursor.execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
                cursor.execute(
                    "UPDATE rag_chunks SET embedding = t.v FROM t WHERE namespace = '' AND chunk_id = t.k "
                    "AND embedding IS NULL"
                )
                connection.commit()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    _check(url, len(ids))
    return len(ids) / seconds


def _payload(ids: list[str], vectors: NDArray[np.float32]) -> bytes:
    head = struct.pack(">ihh", 4 + 4 * DIMENSION, DIMENSION, 0)
    rows = [b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)]
    for key, vector in zip(ids, vectors.astype(">f4"), strict=True):
        rows.append(struct.pack(">hi", 2, len(key)) + key.encode() + head + vector.tobytes())
    return b"".join([*rows, struct.pack(">h", -1)])


def _backfill(
    server: EmbeddedPostgres, ids: list[str], environment: dict[str, str], transport: str, workers: int
) -> tuple[float, int]:
    """Rows a second of the load, and the peak resident memory of the process in kB."""
    url = _new_database(server, ids)
    command = [sys.executable, "-c", MEASURING, sys.executable, "-m", "amprenta_vectors"]
    command += ["backfill", "--no-verify", "--log-format", "json"]
    command += ["--workers", str(workers), "--batch-size", str(BATCH)]
    variables = {**os.environ, **environment, "DATABASE_URL": url, "PINECONE_TRANSPORT": transport}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"the backfill failed: {done.stderr}")
    _check(url, len(ids))
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM migration_progress")
        (seconds,) = cursor.fetchone() or (0,)
    return len(ids) / float(seconds), int(done.stdout.split()[-1])


def _new_database(server: EmbeddedPostgres, ids: list[str]) -> str:
    """A database at head whose rows wait for their embedding, without an ANN index."""
    with closing(psycopg2.connect(server.url())) as connection:
        connection.autocommit = True
        connection.cursor().execute("DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
    server.create_database("benchmark")
    url = server.url("benchmark")
    upgrade(Settings.load(database_url=url, vector_dimension=DIMENSION))
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("DROP INDEX idx_rag_chunks_embedding")
        lines = io.StringIO("".join(f"{key}\tsome text\n" for key in ids))
        cursor.copy_expert("COPY rag_chunks (chunk_id, content) FROM STDIN", lines)
        cursor.execute("VACUUM ANALYZE rag_chunks")
        cursor.execute("CHECKPOINT")
    return url


def _check(url: str, rows: int) -> None:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(embedding) FROM rag_chunks")
        found = cursor.fetchone()
    if found != (rows,):
        raise click.ClickException(f"{found} rows were filled, expected {rows}")


@contextmanager
def _emulator(folder: Path, ids: list[str], vectors: NDArray[np.float32]) -> Iterator[dict[str, str]]:
    """An emulator process with the vectors, and the variables that point at it. Its answers are encoded beforehand."""
    file = folder / f"pinecone-{len(ids)}.db"
    loader = PineconeEmulator(file, name="benchmark", dimension=DIMENSION, api_key=API_KEY)
    loader.load("", ids, vectors)
    loader.stop()
    command = [sys.executable, "-m", "amprenta_vectors.sandbox.pinecone", "--file", str(file), "--api-key", API_KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = json.loads(process.stdout.readline()) if process.stdout else {}
            yield {
                "PINECONE_API_KEY": API_KEY,
                "PINECONE_INDEX_NAME": "benchmark",
                "PINECONE_CONTROLLER_HOST": ready["host"],
                "PINECONE_GRPC_HOST": ready["grpc_host"],
            }
        finally:
            process.terminate()
    file.unlink()


def _set_latency(environment: dict[str, str], seconds: float) -> None:
    body = json.dumps({"*": {"latency": seconds}}).encode()
    url = f"{environment['PINECONE_CONTROLLER_HOST']}/_sandbox/faults"
    urllib.request.urlopen(urllib.request.Request(url, body, method="PUT")).close()


def _repeat(repeats: int, measure: Callable[[], float]) -> list[float]:
    return [measure() for _ in range(repeats)]


def _print(name: str, rates: list[float], bare: list[float]) -> None:
    median = statistics.median(rates)
    ratio = median / statistics.median(bare)
    click.echo(f"{name:<28} {median:>9,.0f} vectors/s   ({min(rates):,.0f} to {max(rates):,.0f})   {ratio:.2f} × bare")


if __name__ == "__main__":
    main()
