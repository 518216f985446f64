"""Servers of a test's own: one that is stopped with the test, and a standby of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amprenta_vectors.sandbox.postgres import EmbeddedPostgres


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder, {"fsync": "off", **settings})
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")


def make_standby(primary: EmbeddedPostgres, folder: Path) -> None:
    """A copy of ``primary`` that will stream from it once it is started."""
    source = ["-h", str(primary.socket_folder), "-p", str(primary.port), "-U", "postgres"]
    primary._own(folder)
    # The server's own way of running a binary of its wheel, as the user it runs as.
    primary._run("pg_basebackup", *source, "-D", str(folder), "-R", "-X", "stream", "-c", "fast")
    for lock in folder.glob(".s.PGSQL.*.lock"):
        lock.unlink()
