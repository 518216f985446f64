"""``migration_text``: the texts of a run that a service embeds, who embeds each, and the vectors that were paid for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.states import UNFINISHED

PAGE = 10_000


def take(
    connection: Connection, run_id: int, owner: str, digests: Collection[bytes], lease_seconds: float
) -> tuple[set[bytes], dict[bytes, bytes]]:
    """Take the texts that nobody holds or whose lease has run out; return these, and the vectors of those embedded."""
    values = {"run_id": run_id, "owner": owner, "digests": sorted(digests), "lease": lease_seconds}
    # In one order, so that two processes that meet the same texts do not wait for each other.
    taken = connection.execute(
        sa.text("""
            INSERT INTO migration_text AS held (run_id, digest, owner, lease_expires_at)
            SELECT :run_id, digest, :owner, clock_timestamp() + make_interval(secs => :lease)
            FROM unnest(CAST(:digests AS bytea[])) WITH ORDINALITY AS given(digest, place) ORDER BY place
            ON CONFLICT (run_id, digest) DO UPDATE
            SET owner = excluded.owner, lease_expires_at = excluded.lease_expires_at
            WHERE held.vector IS NULL AND held.lease_expires_at < clock_timestamp()
            RETURNING digest
        """),
        values,
    )
    ours = {bytes(digest) for digest in taken.scalars()}
    found = connection.execute(
        sa.text("""
            SELECT digest, vector FROM migration_text
            WHERE run_id = :run_id AND digest = ANY(CAST(:digests AS bytea[])) AND vector IS NOT NULL
        """),
        values,
    )
    return ours, {bytes(row.digest): bytes(row.vector) for row in found}


def publish(connection: Connection, run_id: int, vectors: Mapping[bytes, bytes]) -> None:
    """Keep the vectors of texts; one that is there stays, so that every row with a text gets the same."""
    connection.execute(
        sa.text("""
            INSERT INTO migration_text AS held (run_id, digest, vector)
            SELECT :run_id, given.digest, given.vector
            FROM unnest(CAST(:digests AS bytea[]), CAST(:vectors AS bytea[])) AS given(digest, vector)
            ORDER BY given.digest
            ON CONFLICT (run_id, digest) DO UPDATE
            SET vector = excluded.vector, owner = NULL, lease_expires_at = NULL WHERE held.vector IS NULL
        """),
        {"run_id": run_id, "digests": list(vectors.keys()), "vectors": list(vectors.values())},
    )


def give_back(connection: Connection, run_id: int, owner: str, digests: Collection[bytes]) -> None:
    """Let others take the texts that ``owner`` holds."""
    connection.execute(
        sa.text("""
            DELETE FROM migration_text
            WHERE run_id = :run_id AND owner = :owner AND digest = ANY(CAST(:digests AS bytea[])) AND vector IS NULL
        """),
        {"run_id": run_id, "owner": owner, "digests": sorted(digests)},
    )


def renew(connection: Connection, run_id: int, owner: str, lease_seconds: float) -> None:
    """Renew the leases of the texts that ``owner`` holds; one that is locked is being embedded or given back now."""
    connection.execute(
        sa.text("""
            UPDATE migration_text SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE (run_id, digest) IN (
                SELECT run_id, digest FROM migration_text
                WHERE run_id = :run_id AND owner = :owner AND vector IS NULL FOR UPDATE SKIP LOCKED
            )
        """),
        {"run_id": run_id, "owner": owner, "lease": lease_seconds},
    )


def forget_ended(connection: Connection) -> bool:
    """Delete a page of what runs that have ended keep; return whether there may be more."""
    deleted = connection.execute(
        sa.text("""
            DELETE FROM migration_text WHERE (run_id, digest) IN (
                SELECT t.run_id, t.digest FROM migration_text t JOIN migration_run r ON r.id = t.run_id
                WHERE r.state <> ALL(:unfinished) LIMIT :page
            )
        """),
        {"unfinished": list(UNFINISHED), "page": PAGE},
    )
    return deleted.rowcount == PAGE
