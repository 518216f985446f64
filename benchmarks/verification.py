"""Full verification beside the backfill of the same vectors: both commands from their start to their end.

python benchmarks/verification.py [--rows 100000] [--dimension 1536] [--repeats 3]
"""

from __future__ import annotations

import click
from tools import Figure, Stage, open_stage, print_budget, print_machine, to_ids, to_vectors

GOAL = 1.0


@click.command()
@click.option("--rows", default=100_000, show_default=True)
@click.option("--dimension", default=1536, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(rows: int, dimension: int, workers: int, repeats: int) -> None:
    """Print both rates."""
    print_machine()
    with open_stage() as stage:
        compare(stage, rows, dimension, workers, repeats)


def compare(stage: Stage, rows: int, dimension: int, workers: int, repeats: int) -> None:
    """Fill the table and verify it, in each repeat."""
    ids = to_ids(rows)
    filled, verified = [], []
    with stage.emulator(ids, to_vectors(rows, dimension)) as environment:
        for _ in range(repeats):
            url = stage.new_database(ids, dimension)
            load = stage.backfill(url, environment, rows, "--workers", str(workers))
            filled.append(rows / load.command_seconds)
            verified.append(rows / stage.run(url, environment, "verify", "--workers", str(workers))[0])
    click.echo(f"{rows:,} rows × {dimension} dimensions, {workers} workers")
    backfill = Figure("backfill, from start to end", "vectors/s", filled)
    verification = Figure("full verification, from start to end", "vectors/s", verified)
    click.echo(f"{backfill}\n{verification}")
    print_budget("  verification × backfill", verification.median / backfill.median, GOAL)


if __name__ == "__main__":
    main()
