"""vec2pg from PyPI, in a virtual environment of its own, on the same emulator and server as the backfill.

    python benchmarks/vec2pg.py [--rows 5000] [--repeats 3] [--latencies 0,20]

vec2pg drops and makes its table at each start, without key, dimension or index, and its client is of 2024: it opens an
index by an older form of description, which a small server here answers in the emulator's name. Everything else it asks
of the emulator itself. Its rate is that of its copying: rows by the time from its table's making to its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
from tools import (
    INDEX,
    Figure,
    Stage,
    open_stage,
    print_budget,
    print_machine,
    query,
    set_latency,
    to_ids,
    to_vectors,
)

GOAL = 30.0
VERSION = "2024.6.0"


@click.command()
@click.option("--rows", default=5000, show_default=True, help="For vec2pg.")
@click.option("--backfill-rows", default=20_000, show_default=True, help="For the backfill.")
@click.option("--dimension", default=1536, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--latencies", default="0,20", show_default=True, help="Milliseconds, separated by commas.")
def main(rows: int, backfill_rows: int, dimension: int, repeats: int, workers: int, latencies: str) -> None:
    """Print both rates."""
    print_machine()
    with open_stage() as stage:
        compare(stage, rows, backfill_rows, dimension, repeats, workers, latencies.split(","))


def compare(
    stage: Stage, rows: int, backfill_rows: int, dimension: int, repeats: int, workers: int, latencies: list[str]
) -> None:
    """Measure both, the backfill with more rows, so that its run is about as long."""
    python = install(stage.folder / "vec2pg")
    theirs: dict[str, list[float]] = {latency: [] for latency in latencies}
    ours: dict[str, list[float]] = {latency: [] for latency in latencies}
    ids, vectors = to_ids(max(rows, backfill_rows)), to_vectors(max(rows, backfill_rows), dimension)
    with stage.emulator(ids[:rows], vectors[:rows]) as environment:
        for latency in latencies * repeats:
            set_latency(environment, float(latency))
            theirs[latency].append(rows / copy(stage, python, environment, dimension, rows))
    with stage.emulator(ids[:backfill_rows], vectors[:backfill_rows]) as environment:
        for latency in latencies * repeats:
            set_latency(environment, float(latency))
            url = stage.new_database(ids[:backfill_rows], dimension)
            load = stage.backfill(url, environment, backfill_rows, "--workers", str(workers))
            ours[latency].append(load.rate)
    for latency in latencies:
        one = Figure(f"vec2pg {VERSION}, source at {latency} ms", "vectors/s", theirs[latency])
        other = Figure(f"backfill over grpc, source at {latency} ms", "vectors/s", ours[latency])
        click.echo(f"{one}\n{other}")
        print_budget("  × vec2pg", other.median / one.median, GOAL)


def install(folder: Path) -> Path:
    """Make a virtual environment with vec2pg; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"vec2pg=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"vec2pg cannot be installed: {done.stderr}")
    return python


def copy(stage: Stage, python: Path, environment: dict[str, str], dimension: int, rows: int) -> float:
    """Return the seconds that vec2pg takes to copy the emulator's vectors into an empty database."""
    url = stage.new_database([], dimension)
    with describing(environment["PINECONE_CONTROLLER_HOST"], dimension) as controller:
        command = [python, "-m", "vec2pg.cli", "pinecone", "migrate", INDEX, environment["PINECONE_API_KEY"], url]
        with subprocess.Popen(
            command,
            env={**os.environ, "PINECONE_CONTROLLER_HOST": controller},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while process.poll() is None and query(url, f"SELECT to_regclass('vec2pg.{INDEX}')") == (None,):
                time.sleep(0.005)
            began = time.perf_counter()
            _, errors = process.communicate()
            seconds = time.perf_counter() - began
    if process.returncode or query(url, f"SELECT count(*) FROM vec2pg.{INDEX}") != (rows,):
        raise click.ClickException(f"vec2pg failed: {errors}")
    return seconds


@contextmanager
def describing(host: str, dimension: int) -> Iterator[str]:
    """Serve the index's description as Pinecone gave it in 2024; yield the server's URL."""
    description = {
        "name": INDEX,
        "dimension": dimension,
        "metric": "cosine",
        "host": host,
        "spec": {"serverless": {"cloud": "aws", "region": "us-east-1"}},
        "status": {"ready": True, "state": "Ready"},
    }

    class Description(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(description).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Description) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
