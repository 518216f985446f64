"""Servers of a test's own: one that is stopped with the test, a standby of it, and a copy of what initdb made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amprenta_vectors.sandbox.postgres import EmbeddedPostgres


def copy_server(folder: Path, to: Path) -> Path:
    """Copy the folder of a server that does not run, owners and rights included; returns the new one."""
    subprocess.run(["cp", "-a", folder, to], check=True)
    return to


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
