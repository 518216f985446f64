"""Every row of the budget that concerns the backfill, one after the other.

    python benchmarks/budget.py [--short]

About a quarter of an hour; `--short` shows within two minutes that all of it runs, and its figures mean little.
"""

from __future__ import annotations

import backfill
import click
import index
import long_run
import memory
import vec2pg
import verification
from tools import open_stage, print_machine


@click.command()
@click.option("--short", is_flag=True, help="Few rows, one repeat.")
def main(short: bool) -> None:
    """Print every row of the budget."""
    print_machine()
    many = 1 if short else 50
    repeats = 1 if short else 5
    with open_stage() as stage:
        _title("rate at 1536 dimensions")
        backfill.compare(stage, 4000 if short else 20_000, 1536, repeats, 4, ["0", "20"], ["grpc", "rest"])
        _title("vec2pg")
        vec2pg.compare(stage, 500 if short else 5000, 4000 if short else 20_000, 1536, min(repeats, 3), 4, ["0", "20"])
        _title("deferred index")
        index.compare(stage, 2000 if short else 20_000, 384, 4)
        _title("verification")
        verification.compare(stage, 4000 if short else 100_000, 1536, 4, min(repeats, 3))
        _title("memory")
        memory.compare(stage, [200 * many, 2000 * many, 20_000 * many], 256, 4)
        memory.compare(stage, [200 * many, 2000 * many], 1536, 4)
        _title("a long run, index and verification included")
        long_run.run(stage, 20_000 * many, 256, 4, with_index=True)


def _title(text: str) -> None:
    click.echo(f"\n{text}")


if __name__ == "__main__":
    main()
