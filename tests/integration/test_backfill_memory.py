"""Memory does not grow with the number of rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
import sqlalchemy as sa
from backfill_tools import ROOT, environment, execute, to_ids, to_vectors

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

DIMENSION = 512
FEW, MANY = 2_000, 20_000


MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Run from a small process: the peak of a child is never below what its parent had when it was started."""

WITH_A_PLOT = """
import runpy, sys
from amprenta_vectors.plots import draw
draw("", lambda axes: None)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A report has a plot from the second second on: without this, the larger run alone would have what draws it."""


def peak_bytes(variables: Mapping[str, str], *arguments: str) -> int:
    """The largest resident size of ``scripts/backfill.py`` from its start to its end."""
    command = [sys.executable, "-c", WITH_A_PLOT, str(ROOT / "scripts" / "backfill.py"), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        env=dict(variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # getrusage(2) counts in kilobytes, but on macOS in bytes.
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture
def wide(database_url: str) -> Iterator[sa.Engine]:
    settings = Settings.load(database_url=database_url, vector_dimension=DIMENSION)
    upgrade(settings)
    # Without it the test would mostly build an index.
    engine = create_engine(settings)
    execute(engine, "DROP INDEX idx_rag_chunks_embedding")
    yield engine
    engine.dispose()


@pytest.mark.parametrize("transport", ["grpc", pytest.param("rest", marks=pytest.mark.torture)])
def test_peak_memory_is_about_the_same_for_ten_times_the_rows(
    wide: sa.Engine,
    database_url: str,
    emulator: Callable[..., PineconeEmulator],
    postgres_server: EmbeddedPostgres,
    transport: str,
) -> None:
    pinecone = emulator(dimension=DIMENSION)
    many = MANY if transport == "grpc" else MANY // 4
    ids, vectors = to_ids(many), to_vectors(many, DIMENSION)
    pinecone.load("few", ids[:FEW], vectors[:FEW])
    pinecone.load("many", ids, vectors)
    variables = environment(
        database_url, pinecone, PINECONE_TRANSPORT=transport, AMPRENTA_BATCH_SIZE="100", AMPRENTA_WORKERS="2"
    )
    peaks = {
        namespace: peak_bytes(variables, "--keys-from", "source", "--resume", "--namespace", namespace)
        for namespace in ("few", "many")
    }
    # All the vectors together would be several times that; each run also verified them.
    assert peaks["many"] - peaks["few"] < 0.5 * vectors.nbytes, peaks
    assert peaks["many"] < 1.25 * peaks["few"], peaks
    assert execute(wide, "SELECT count(embedding) FROM rag_chunks") == [(FEW + many,)]
