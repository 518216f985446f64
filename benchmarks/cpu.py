"""Processor time a vector, by process: the backfill's own, PostgreSQL's and the emulator's; and the bare load's.

    python benchmarks/cpu.py [--rows 40000] [--dimension 1536] [--latency 0] [--repeats 3]

Unlike rates these figures hardly depend on what else a machine does. What a start costs is taken out by a second, short
run: the figure is the difference between both by the difference of their rows.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

import click
import psutil
from tools import Figure, Stage, open_stage, print_machine, set_latency, to_ids, to_vectors

FEW = 4000


@click.command()
@click.option("--rows", default=40_000, show_default=True)
@click.option("--dimension", default=1536, show_default=True)
@click.option("--latency", default=0.0, show_default=True, help="Milliseconds.")
@click.option("--workers", default=4, show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(rows: int, dimension: int, latency: float, workers: int, repeats: int) -> None:
    """Print microseconds a vector."""
    print_machine()
    with open_stage() as stage:
        compare(stage, rows, dimension, latency, workers, repeats)


def compare(stage: Stage, rows: int, dimension: int, latency: float, workers: int, repeats: int) -> None:
    """Measure the backfill, then the bare load."""
    ids, vectors = to_ids(rows), to_vectors(rows, dimension)

    def backfill(count: int) -> None:
        # Rows of the table decide what is fetched.
        url = stage.new_database(ids[:count], dimension)
        before.append(_spent(stage))
        stage.backfill(url, environment, count, "--workers", str(workers))

    def bare(count: int) -> None:
        stage.bare(ids[:count], vectors[:count], workers, begin=lambda: before.append(_spent(stage)))

    before: list[dict[str, float]] = []
    with stage.emulator(ids, vectors) as environment:
        set_latency(environment, latency)
        _print("backfill", _measure(stage, backfill, before, rows, repeats))
        _print("bare", _measure(stage, bare, before, rows, repeats))


def _measure(
    stage: Stage, run: Callable[[int], None], before: list[dict[str, float]], rows: int, repeats: int
) -> dict[str, list[float]]:
    """Return the microseconds a vector, by process, of each repeat."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        spent = []
        for count in (FEW, rows):
            run(count)
            after = _spent(stage)
            spent.append({name: after[name] - before[-1][name] for name in after})
        for name in spent[0]:
            found.setdefault(name, []).append((spent[1][name] - spent[0][name]) / (rows - FEW) * 1e6)
    return found


def _spent(stage: Stage) -> dict[str, float]:
    """Return the seconds so far of PostgreSQL's processes, the emulator's, and this one with the commands it ran."""
    postmaster = int((stage.server.folder / "postmaster.pid").read_text().split()[0])
    emulators = [child for child in psutil.Process().children() if _is_emulator(child)]
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "PostgreSQL": _with_children(psutil.Process(postmaster)),
        "emulator": sum(map(_with_children, emulators)),
        "client": own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime,
    }


def _is_emulator(process: psutil.Process) -> bool:
    return "amprenta_vectors.sandbox.pinecone" in process.cmdline()


def _with_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            # Its time is its parent's by now; a little of it is missed.
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return float(seconds)


def _print(what: str, found: dict[str, list[float]]) -> None:
    for name, values in found.items():
        click.echo(Figure(f"{what}: {name}", "µs/vector", values))


if __name__ == "__main__":
    main()
