"""The tools of the benchmarks: a server, an emulator in a process of its own, the bare load, and a timed backfill.

Rates are those of the load: rows by the time from the first batch's claim to the last one's commit, on the database's
clock, without the start of Python, the index and the verification.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg2
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

BATCH = 1000
API_KEY = "benchmark-key"
INDEX = "benchmark"
MEASURING = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process that measures: Linux counts the size of the process that started another as that one's peak."""
SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
UNLIMITED = {"AMPRENTA_LIST_PER_SECOND": "off", "AMPRENTA_FETCH_PER_SECOND": "off"}
"""No limits: the emulator has none, and Pinecone's would be what is measured."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Figure:
    """The values that one repeated measurement gave."""

    name: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        """The median of all repeats."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        spread = f"({min(self.values):,.0f} to {max(self.values):,.0f})" if len(self.values) > 1 else ""
        return f"{self.name:<46} {self.median:>10,.0f} {self.unit:<10} {spread}"


@dataclass(frozen=True)
class Load:
    """One run of the backfill: seconds of its load, those of the whole command, and its process's peak memory in MB."""

    rows: int
    seconds: float
    command_seconds: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """The vectors written a second."""
        return self.rows / self.seconds


class Stage:
    """A folder, a PostgreSQL server in it, and databases and emulators made on it."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.server = server

    def new_database(self, ids: Sequence[str], dimension: int, *, with_index: bool = False) -> str:
        """Make a database at head whose rows wait for their embedding; return its URL. An earlier one is dropped."""
        execute(self.server.url(), "DROP DATABASE IF EXISTS benchmark WITH (FORCE)")
        self.server.create_database("benchmark")
        url = self.server.url("benchmark")
        upgrade(Settings.load(database_url=url, vector_dimension=dimension))
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            if not with_index:
                cursor.execute("DROP INDEX idx_rag_chunks_embedding")
            lines = io.StringIO("".join(f"{key}\tsome text\n" for key in ids))
            cursor.copy_expert("COPY rag_chunks (chunk_id, content) FROM STDIN", lines)
            cursor.execute("VACUUM ANALYZE rag_chunks")
            cursor.execute("CHECKPOINT")
        return url

    @contextmanager
    def emulator(self, ids: Sequence[str], vectors: Vectors) -> Iterator[dict[str, str]]:
        """Run an emulator with the vectors; yield the variables that point at it.

        Its answers are ready-made.
        """
        file = self.folder / "pinecone.db"
        loader = PineconeEmulator(file, name=INDEX, dimension=vectors.shape[1], api_key=API_KEY)
        loader.load("", list(ids), vectors)
        loader.stop()
        command = [sys.executable, "-m", "amprenta_vectors.sandbox.pinecone", "--file", str(file), "--api-key", API_KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                ready = json.loads(process.stdout.readline()) if process.stdout else {}
                yield {
                    "PINECONE_API_KEY": API_KEY,
                    "PINECONE_INDEX_NAME": INDEX,
                    "PINECONE_CONTROLLER_HOST": ready["host"],
                    "PINECONE_GRPC_HOST": ready["grpc_host"],
                    **UNLIMITED,
                }
            finally:
                process.terminate()
        file.unlink()

    def backfill(self, url: str, environment: dict[str, str], rows: int, *options: str) -> Load:
        """Run the command to its end, check that every row was filled, and return what it took."""
        arguments = ["backfill", "--no-verify", "--json", "--batch-size", str(BATCH), *options]
        command_seconds, output = self.run(url, environment, *arguments)
        check(url, rows)
        return Load(rows, load_seconds(url), command_seconds, int(output.split()[-1]) / 1024)

    def run(self, url: str, environment: dict[str, str], *arguments: str, expect: int = 0) -> tuple[float, str]:
        """Run a command of the package; return its seconds and its output, with its peak memory in kB as last word."""
        command = [sys.executable, "-c", MEASURING, sys.executable, "-m", "amprenta_vectors", *arguments]
        began = time.perf_counter()
        done = subprocess.run(
            command, env=to_environment(url, environment), cwd=self.folder, capture_output=True, text=True
        )
        if done.returncode != expect:
            raise click.ClickException(f"{arguments[0]} failed: {done.stderr}{done.stdout}")
        return time.perf_counter() - began, done.stdout

    def bare(
        self, ids: Sequence[str], vectors: Vectors, connections: int, begin: Callable[[], object] = lambda: None
    ) -> float:
        """Return the vectors a second of the same bytes by COPY into a temporary table and UPDATE.

        The bytes are ready-made before ``begin`` is called.
        """
        dimension = vectors.shape[1]
        url = self.new_database(ids, dimension)
        payloads = iter([to_payload(ids[i : i + BATCH], vectors[i : i + BATCH]) for i in range(0, len(ids), BATCH)])
        lock = threading.Lock()

        def work() -> None:
            with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
                while True:
                    with lock:
                        payload = next(payloads, None)
                    if payload is None:
                        return
                    cursor.execute(f"CREATE TEMP TABLE t (k text, v vector({dimension})) ON COMMIT DROP")
                    cursor.copy_expert("COPY t FROM STDIN (FORMAT binary)", io.BytesIO(payload))
                    cursor.execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
                    cursor.execute(
                        "UPDATE rag_chunks SET embedding = t.v FROM t WHERE namespace = '' AND chunk_id = t.k "
                        "AND embedding IS NULL"
                    )
                    connection.commit()

        threads = [threading.Thread(target=work) for _ in range(connections)]
        begin()
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        check(url, len(ids))
        return len(ids) / seconds


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Open a stage in a temporary folder; its server is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="amprenta-benchmark-") as name:
        server = EmbeddedPostgres(Path(name) / "postgres", SERVER)
        server.start()
        try:
            yield Stage(Path(name), server)
        finally:
            server.stop("immediate")


def to_ids(rows: int) -> list[str]:
    """Return the keys of the rows."""
    return [f"chunk-{number:08d}" for number in range(rows)]


def to_vectors(rows: int, dimension: int) -> Vectors:
    """Return random, finite vectors, ``(rows, dimension)``, the same each time."""
    return np.random.default_rng(7).standard_normal((rows, dimension), dtype=np.float32)


def to_payload(ids: Sequence[str], vectors: Vectors) -> bytes:
    """Return a key and a vector a row in PostgreSQL's binary COPY format."""
    dimension = vectors.shape[1]
    head = struct.pack(">ihh", 4 + 4 * dimension, dimension, 0)
    rows = [b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)]
    for key, vector in zip(ids, vectors.astype(">f4"), strict=True):
        rows.append(struct.pack(">hi", 2, len(key)) + key.encode() + head + vector.tobytes())
    return b"".join([*rows, struct.pack(">h", -1)])


def to_environment(url: str, environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a command."""
    return {**os.environ, **environment, "DATABASE_URL": url}


def set_latency(environment: dict[str, str], milliseconds: float) -> None:
    """Have every answer of the emulator begin that much later."""
    body = json.dumps({"*": {"latency": milliseconds / 1000}}).encode()
    url = f"{environment['PINECONE_CONTROLLER_HOST']}/_sandbox/faults"
    urllib.request.urlopen(urllib.request.Request(url, body, method="PUT")).close()


def query(url: str, statement: str) -> Any:
    """Return the first row of a statement."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


def load_seconds(url: str) -> float:
    """Return the seconds from the first batch's claim to the last one's commit."""
    (seconds,) = query(url, "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM migration_progress")
    return float(seconds)


def execute(url: str, statement: str, values: Sequence[object] = ()) -> None:
    """Run a statement; committed at once."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement, values)


def check(url: str, rows: int) -> None:
    """Raise ClickException if not every row has its embedding."""
    found = query(url, "SELECT count(embedding) FROM rag_chunks")
    if found != (rows,):
        raise click.ClickException(f"{found} rows were filled, expected {rows}")


def repeat(repeats: int, measure: Callable[[], float]) -> list[float]:
    """Return the figures of several measurements, one after the other."""
    return [measure() for _ in range(repeats)]


def print_machine() -> None:
    """Print where the figures are from."""
    click.echo(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


def print_budget(what: str, found: float, goal: float, unit: str = "×", *, at_most: bool = False) -> None:
    """Print a row of the budget: what was found against what it is to be."""
    met = found <= goal if at_most else found >= goal
    bound = f"{'at most' if at_most else 'at least'} {goal:g}"
    click.echo(f"{what:<46} {found:>10,.2f} {unit:<4} {bound}: {'met' if met else 'MISSED'}")
