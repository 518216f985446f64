"""Checks of the server: its version, pgvector's, and whether it has room for the connections of a store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.doctor.finding import Finding, ServerCheck, Severity
from amprenta_vectors.sections import upgrade_command
from amprenta_vectors.server import check_server, parse_version, server_versions
from amprenta_vectors.stores.pgvector.replica import open_watch

PGVECTOR_FAULTS: tuple[tuple[str, Severity, str], ...] = (
    ("0.8.2", "serious", "a buffer overflow in parallel HNSW builds (CVE-2026-3172)"),
    ("0.8.3", "serious", "HNSW indexes that a vacuum may corrupt"),
    ("0.8.4", "advice", "vacuums and inserts that may fail with 'hnsw graph not repaired'"),
    ("0.8.7", "advice", "a buffer overflow in IVFFlat builds"),
)
"""The version that mended a fault, how bad the fault was, and what it was (pgvector's CHANGELOG)."""

_EXTENSION = sa.text("""
    SELECT e.extversion AS installed, a.default_version AS available
    FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname WHERE e.extname = 'vector'
""")

_CONNECTIONS = sa.text("""
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
""")


def versions(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Check PostgreSQL and pgvector. Raises `ServerUnsuitable` for one that is too old, or absent."""
    server, pgvector = server_versions(connection)
    check_server(server, pgvector)
    yield from server_faults(server)
    yield from _pgvector_faults(connection)


def server_faults(version: int) -> Iterator[Finding]:
    """Report the faults that a PostgreSQL of that ``server_version_num`` has with indexes."""
    # https://www.postgresql.org/docs/14/release-14-4.html
    if 140000 <= version < 140004:
        yield Finding(
            "serious",
            f"PostgreSQL 14.{version % 100} may leave rows out of indexes that are built CONCURRENTLY",
            "upgrade to PostgreSQL 14.4 or newer, then: amprenta-vectors index rebuild",
        )


def _pgvector_faults(connection: Connection) -> Iterator[Finding]:
    extension = connection.execute(_EXTENSION).first()
    if extension is None:
        yield Finding("serious", "extension vector is not in this database", upgrade_command(connection))
        return
    installed = parse_version(extension.installed)
    faults = [fault for fault in PGVECTOR_FAULTS if installed < parse_version(fault[0])]
    newer = extension.available is not None and installed < parse_version(extension.available)
    update = "ALTER EXTENSION vector UPDATE"
    if faults:
        # Worst first, as they are listed.
        known = "; ".join(f"{what}, mended in {mended}" for mended, _, what in faults)
        enough = newer and parse_version(extension.available) >= parse_version(faults[-1][0])
        mend = update if enough else f"install pgvector {faults[-1][0]} or newer on the server, then: {update}"
        yield Finding(faults[0][1], f"pgvector {extension.installed} has {known}", mend)
    elif newer:
        yield Finding(
            "advice", f"pgvector {extension.installed} is in use, the server has {extension.available}", update
        )


def connections(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Check that one process's pool alone does not ask for more connections than the server takes."""
    most: int = connection.execute(_CONNECTIONS).scalar_one()
    if settings.pool_size > most:
        yield Finding(
            "serious",
            f"AMPRENTA_POOL_SIZE is {settings.pool_size} for each process; the server takes {most} connections in all",
            f"export AMPRENTA_POOL_SIZE={max(1, most // 10)}",
        )


def read_replica(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Report a standby that queries do not go to although they should."""
    if settings.read_database_url is None:
        return
    with closing(open_watch(settings, partial(create_engine, settings))) as watch:
        end = time.monotonic() + settings.read_max_lag_seconds
        while not watch.is_fit() and watch.late and time.monotonic() < end:
            time.sleep(0.1)
    if watch.why_not is not None:
        yield Finding(
            "serious",
            f"queries go to the primary and not to READ_DATABASE_URL: {watch.why_not}",
            "docs/read-replica.md says what is asked of a standby; or unset READ_DATABASE_URL",
        )


CHECKS: tuple[ServerCheck, ...] = (versions, connections, read_replica)
