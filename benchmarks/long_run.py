"""A long run from its start to its end, index and verification included: its rate and memory by tenths.

python benchmarks/long_run.py [--rows 1000000] [--dimension 256] [--curve curve.json]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import psycopg2
from tools import (
    BATCH,
    Stage,
    check,
    open_stage,
    print_budget,
    print_machine,
    query,
    to_environment,
    to_ids,
    to_vectors,
)

GOAL = 0.9
SAMPLE_SECONDS = 0.5
INDEX = {"AMPRENTA_MAINTENANCE_WORK_MEM": "2GB"}
"""The memory that the graph of a million vectors of 256 dimensions needs; with less the build takes hours on disk."""


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--curve", type=click.Path(path_type=Path), help="Write rate and memory over time there, as JSON.")
@click.option("--index/--no-index", default=True, show_default=True, help="Build the deferred index afterwards.")
def main(rows: int, dimension: int, workers: int, curve: Path | None, index: bool) -> None:
    """Print each tenth, and how the last compares with the second."""
    print_machine()
    with open_stage() as stage:
        run(stage, rows, dimension, workers, curve, with_index=index)


def run(
    stage: Stage, rows: int, dimension: int, workers: int, curve: Path | None = None, *, with_index: bool = False
) -> None:
    """Measure once: a long run is its own repeat."""
    ids = to_ids(rows)
    with stage.emulator(ids, to_vectors(rows, dimension)) as environment:
        url = stage.new_database(ids, dimension, with_index=with_index)
        command = [sys.executable, "-m", "amprenta_vectors", "backfill", "--json"]
        command += ["--batch-size", str(BATCH), "--workers", str(workers)]
        log = stage.folder / "long_run.log"
        (before,) = query(url, "SELECT pg_current_wal_lsn()")
        began = time.time()
        with (
            log.open("w") as output,
            subprocess.Popen(
                command,
                env={**to_environment(url, environment), **INDEX},
                cwd=stage.folder,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            memory = _watch(process)
        ended = time.time()
        if process.returncode:
            raise click.ClickException(f"the backfill failed: {log.read_text()}")
        check(url, rows)
        space = query(
            url,
            "SELECT pg_table_size('rag_chunks'), pg_indexes_size('rag_chunks'), "
            f"pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')",
        )
    tenths = _tenths(url, rows)
    click.echo(f"{rows:,} rows × {dimension} dimensions, {workers} workers: {ended - began:.1f} s from start to end")
    for number, (end, rate) in enumerate(tenths, 1):
        resident = max((mb for at, mb in memory if at <= end), default=0.0)
        click.echo(f"  tenth {number:>2}: {rate:>9,.0f} vectors/s   peak memory so far {resident:5.0f} MB")
    click.echo(
        f"  from start to end: {rows / (ended - began):,.0f} vectors/s, peak {max(mb for _, mb in memory):.0f} MB"
    )
    table, indexes, wal = (float(part) / rows for part in space)
    click.echo(f"  bytes a vector: table {table:,.0f}, its indexes {indexes:,.0f}, WAL in all {wal:,.0f}")
    print_budget("last tenth by second tenth", tenths[-1][1] / tenths[1][1], GOAL)
    if curve is not None:
        points = {
            "tenths": [[end - began, rate] for end, rate in tenths],
            "memory": [[t - began, m] for t, m in memory],
        }
        curve.write_text(json.dumps(points))


def _watch(process: subprocess.Popen[bytes]) -> list[tuple[float, float]]:
    """Return the resident memory of a process in MB, twice a second until it ends."""
    memory = []
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        if found:
            memory.append((time.time(), int(found[1]) / 1024))
        time.sleep(SAMPLE_SECONDS)
    return memory


def _tenths(url: str, rows: int) -> list[tuple[float, float]]:
    """Return when each tenth of the keys was done, in seconds since 1970, and its rate."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM min(started_at))::float8 FROM migration_progress")
        (began,) = cursor.fetchone() or (0.0,)
        cursor.execute(
            "SELECT extract(epoch FROM finished_at)::float8, keys_done FROM migration_progress ORDER BY finished_at"
        )
        ends, keys = np.array(cursor.fetchall(), dtype=float).T
    done = np.concatenate([[0.0], np.cumsum(keys)])
    marks = np.interp(np.linspace(0, rows, 11), done, np.concatenate([[began], ends]))
    return [(float(end), rows / 10 / float(end - start)) for start, end in pairwise(marks)]


if __name__ == "__main__":
    main()
