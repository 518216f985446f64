"""The versions of PostgreSQL and pgvector that a server must have."""

from __future__ import annotations

import sqlalchemy as sa

from amprenta_vectors.errors import ServerUnsuitable

MINIMUM_SERVER = 140000
MINIMUM_PGVECTOR = (0, 8, 0)
"""Every search sets ``hnsw.iterative_scan``, which came with 0.8.0."""
SOUND_PGVECTOR = (0, 8, 4)
"""0.8.2 mended an overflow in parallel index builds, 0.8.4 faults in vacuum (pgvector's CHANGELOG)."""
INSTALL_HINT = (
    "install pgvector for this server (Debian: apt-get install postgresql-NN-pgvector; Amazon RDS: PostgreSQL 15.2 or "
    "newer carries it; for local development: docker run -e POSTGRES_PASSWORD=… -p 127.0.0.1:5432:5432 --shm-size=1g "
    "pgvector/pgvector:pg18), then run the command again"
)


def parse_version(text: str) -> tuple[int, ...]:
    """Return ``"0.8.5"`` as ``(0, 8, 5)``."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def server_versions(connection: sa.Connection) -> tuple[int, str | None]:
    """Return ``server_version_num``, and pgvector's version: as installed, else as available, else None."""
    row = connection.execute(
        sa.text("""
            SELECT current_setting('server_version_num')::int AS server, coalesce(
                (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
                (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')
            ) AS pgvector
        """)
    ).one()
    return row.server, row.pgvector


def check_server(server_version: int, pgvector_version: str | None) -> list[str]:
    """Refuse a server that cannot work; return warnings about one that has known faults.

    ``server_version`` is ``server_version_num``; ``pgvector_version`` is None where the extension is not available.
    Raises `ServerUnsuitable`.
    """
    if server_version < MINIMUM_SERVER:
        raise ServerUnsuitable(
            f"PostgreSQL {server_version // 10000} is too old; expected {MINIMUM_SERVER // 10000} or newer",
            hint="upgrade the server (on Amazon RDS: modify the instance to PostgreSQL 15 or newer)",
        )
    if pgvector_version is None:
        raise ServerUnsuitable('extension "vector" is not available on this server', hint=INSTALL_HINT)
    version = parse_version(pgvector_version)
    if version < MINIMUM_PGVECTOR:
        raise ServerUnsuitable(
            f"pgvector {pgvector_version} is too old; expected {'.'.join(map(str, MINIMUM_PGVECTOR))} or newer",
            hint="install a newer pgvector, then ALTER EXTENSION vector UPDATE",
        )
    if version < SOUND_PGVECTOR:
        return [
            f"pgvector {pgvector_version} has known faults in parallel index builds or vacuum; "
            f"{'.'.join(map(str, SOUND_PGVECTOR))} or newer is advised"
        ]
    return []
