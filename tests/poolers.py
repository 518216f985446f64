"""PgBouncer in its usual mode, transaction pooling; where it is not installed, a pooler of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import sqlalchemy as sa
from transaction_pooler import alternating

from amprenta_vectors.sandbox.postgres import command_as

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def pooled(database_url: str, pool_size: int = 20) -> Iterator[str]:
    """The URL by which the database of ``database_url``, on a Unix socket, is reached through a pooler."""
    if PGBOUNCER is None:
        with alternating(database_url, pool_size) as url:
            yield url
        return
    server = sa.engine.make_url(database_url)
    folder_of_socket = Path(str(server.query["host"]))
    # PgBouncer refuses to run as root; the server's own user may enter the folder of its socket.
    owner = pwd.getpwuid(folder_of_socket.stat().st_uid)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="amprenta-test-") as folder:
        Path(folder).chmod(0o755)
        ini = Path(folder, "pgbouncer.ini")
        ini.write_text(
            f"[databases]\n* = host={folder_of_socket} port={server.query['port']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = transaction\ndefault_pool_size = {pool_size}\n"
        )
        command = [PGBOUNCER, str(ini)]
        process = subprocess.Popen(
            command_as(owner, command) if os.geteuid() == 0 else command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"postgresql://postgres@127.0.0.1:{port}/{server.database}"
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    psycopg2.connect(url, connect_timeout=3).close()
                    break
                except psycopg2.OperationalError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
