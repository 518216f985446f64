"""One run shared by 1, 2 and 4 processes of this machine, over gRPC and over REST.

python benchmarks/processes.py [--rows 40000] [--dimension 1536] [--latency 20] [--repeats 3]
"""

from __future__ import annotations

import subprocess
import sys
from subprocess import DEVNULL, PIPE

import click
from tools import (
    BATCH,
    Figure,
    Stage,
    check,
    load_seconds,
    open_stage,
    print_machine,
    set_latency,
    to_environment,
    to_ids,
    to_vectors,
)


@click.command()
@click.option("--rows", default=40_000, show_default=True)
@click.option("--dimension", default=1536, show_default=True)
@click.option("--latency", default=20.0, show_default=True, help="Milliseconds.")
@click.option("--workers", default=4, show_default=True, help="In each process.")
@click.option("--repeats", default=3, show_default=True)
def main(rows: int, dimension: int, latency: float, workers: int, repeats: int) -> None:
    """Print the rate of each number of processes."""
    print_machine()
    click.echo(f"{rows:,} rows × {dimension} dimensions, {workers} workers a process, source at {latency:g} ms")
    with open_stage() as stage:
        compare(stage, rows, dimension, latency, workers, repeats)


def compare(stage: Stage, rows: int, dimension: int, latency: float, workers: int, repeats: int) -> None:
    """Measure each transport; REST gets a quarter of the rows."""
    for transport, count in (("grpc", rows), ("rest", rows // 4)):
        ids = to_ids(count)
        with stage.emulator(ids, to_vectors(count, dimension)) as environment:
            set_latency(environment, latency)
            variables = {**environment, "PINECONE_TRANSPORT": transport}
            for processes in (1, 2, 4):
                rates = [_rate(stage, variables, ids, dimension, workers, processes) for _ in range(repeats)]
                click.echo(Figure(f"{processes} processes over {transport}", "vectors/s", rates))


def _rate(
    stage: Stage, environment: dict[str, str], ids: list[str], dimension: int, workers: int, processes: int
) -> float:
    url = stage.new_database(ids, dimension)
    command = [sys.executable, "-m", "amprenta_vectors", "backfill", "--resume", "--no-verify"]
    command += ["--batch-size", str(BATCH), "--workers", str(workers)]
    variables = to_environment(url, environment)
    running = [
        subprocess.Popen(command, env=variables, cwd=stage.folder, stdout=DEVNULL, stderr=PIPE, text=True)
        for _ in range(processes)
    ]
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise click.ClickException(f"a backfill failed: {errors}")
    check(url, len(ids))
    return len(ids) / load_seconds(url)


if __name__ == "__main__":
    main()
