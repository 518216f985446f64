"""A load whose HNSW index is deferred and built afterwards, beside one with the index in place."""

from __future__ import annotations

import click
from tools import Stage, execute, open_stage, print_budget, print_machine, query, to_ids, to_vectors

GOAL = 4.0


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@click.option("--dimension", default=384, show_default=True)
@click.option("--workers", default=4, show_default=True)
def main(rows: int, dimension: int, workers: int) -> None:
    """Print both loads' times."""
    print_machine()
    with open_stage() as stage:
        compare(stage, rows, dimension, workers)


def compare(stage: Stage, rows: int, dimension: int, workers: int) -> None:
    """Measure each load once: the one with the index in place takes long enough."""
    ids, vectors = to_ids(rows), to_vectors(rows, dimension)
    with stage.emulator(ids, vectors) as environment:
        url = stage.new_database(ids, dimension, with_index=True)
        load = stage.backfill(url, environment, rows, "--workers", str(workers))
        whole = query(
            url,
            "SELECT extract(epoch FROM (SELECT max(built_at) FROM migration_index) - min(started_at)) "
            "FROM migration_progress",
        )
        deferred = float(whole[0])
        url = stage.new_database(ids, dimension, with_index=True)
        first = str(vectors[0].tolist())
        execute(url, "UPDATE rag_chunks SET embedding = %s WHERE chunk_id = %s", (first, ids[0]))
        in_place = stage.backfill(url, environment, rows, "--workers", str(workers)).seconds
    click.echo(f"{rows:,} rows × {dimension}: load {load.seconds:.1f} s, then its index, together {deferred:.1f} s")
    click.echo(f"{rows:,} rows × {dimension}: with the index in place {in_place:.1f} s")
    print_budget("backfill + deferred index, times faster", in_place / deferred, GOAL)


if __name__ == "__main__":
    main()
