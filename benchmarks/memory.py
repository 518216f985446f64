"""Peak memory of a backfill's process at several numbers of rows, which must not differ.

python benchmarks/memory.py [--rows 10000,100000,1000000] [--dimension 256]
"""

from __future__ import annotations

import click
from tools import Stage, open_stage, print_budget, print_machine, to_ids, to_vectors

MOST_MB, MOST_APART = 300, 1.10


@click.command()
@click.option("--rows", default="10000,100000,1000000", show_default=True, help="Separated by commas.")
@click.option("--dimension", default=256, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--repeats", default=1, show_default=True)
def main(rows: str, dimension: int, workers: int, repeats: int) -> None:
    """Print the peaks, and how far they are apart."""
    print_machine()
    with open_stage() as stage:
        compare(stage, [int(part) for part in rows.split(",")], dimension, workers, repeats)


def compare(stage: Stage, sizes: list[int], dimension: int, workers: int, repeats: int = 1) -> None:
    """Measure one source after the other; the largest of each one's repeats counts."""
    peaks = []
    for rows in sizes:
        ids = to_ids(rows)
        with stage.emulator(ids, to_vectors(rows, dimension)) as environment:
            loads = [
                stage.backfill(stage.new_database(ids, dimension), environment, rows, "--workers", str(workers))
                for _ in range(repeats)
            ]
        peaks.append(max(load.peak_mb for load in loads))
        click.echo(f"{rows:>9,} rows × {dimension}: {peaks[-1]:6.0f} MB   ({loads[-1].rate:,.0f} vectors/s)")
    print_budget(f"peak memory at {dimension} dimensions", max(peaks), MOST_MB, "MB", at_most=True)
    print_budget("  largest by smallest", max(peaks) / min(peaks), MOST_APART, at_most=True)


if __name__ == "__main__":
    main()
