"""The backfill's rate at 1536 dimensions beside bare COPY + UPDATE of the same bytes, on as many connections.

    python benchmarks/backfill.py [--rows 20000] [--repeats 3] [--workers 4] [--latencies 0,20]

The source is the sandbox's Pinecone emulator in a process of its own; it, PostgreSQL and the backfill share this
machine's cores. The bare load and the backfill take turns, so that both meet the same machine.
"""

from __future__ import annotations

from functools import partial

import click
from tools import Figure, Stage, open_stage, print_budget, print_machine, set_latency, to_ids, to_vectors

GOAL = 0.8


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@click.option("--dimension", default=1536, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--latencies", default="0,20", show_default=True, help="Milliseconds, separated by commas.")
@click.option("--transports", default="grpc,rest", show_default=True)
def main(rows: int, dimension: int, repeats: int, workers: int, latencies: str, transports: str) -> None:
    """Print the rate of the backfill, and of the bare load."""
    print_machine()
    click.echo(f"{rows:,} rows × {dimension} dimensions, batches of 1000, {workers} workers or connections\n")
    with open_stage() as stage:
        compare(stage, rows, dimension, repeats, workers, latencies.split(","), transports.split(","))


def compare(
    stage: Stage, rows: int, dimension: int, repeats: int, workers: int, latencies: list[str], transports: list[str]
) -> None:
    """Measure every combination of transport and latency, `repeats` times each."""
    ids, vectors = to_ids(rows), to_vectors(rows, dimension)
    bare = partial(stage.bare, ids, vectors, workers)
    # The first to touch the server's shared memory pays for it.
    bare()
    ways = [(transport, latency) for latency in latencies for transport in transports]
    rates: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    bares: list[float] = []
    with stage.emulator(ids, vectors) as environment:
        for _ in range(repeats):
            bares.append(bare())
            for transport, latency in ways:
                set_latency(environment, float(latency))
                url = stage.new_database(ids, dimension)
                variables = {**environment, "PINECONE_TRANSPORT": transport, "AMPRENTA_BATCH_SECONDS": "off"}
                rates[transport, latency].append(stage.backfill(url, variables, rows, "--workers", str(workers)).rate)
    reference = Figure("bare COPY + UPDATE", "vectors/s", bares)
    click.echo(reference)
    for (transport, latency), values in rates.items():
        figure = Figure(f"backfill over {transport}, source at {latency} ms", "vectors/s", values)
        click.echo(figure)
        print_budget("  × bare COPY + UPDATE", figure.median / reference.median, GOAL)


if __name__ == "__main__":
    main()
