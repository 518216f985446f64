"""``vector_outbox``: the writes that the store beside PostgreSQL still has to receive, kept until it has them.

An intent commits with the row it belongs to. A process that finds it pending claims its key, writes the key's latest
intent to the other store and clears it; a claim is a lease on the database's clock, so a process that dies holds
nothing up. A deletion leaves a tombstone for a while, so that no backfill brings the row back from what it fetched
before.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.stores.protocol import Record

CLAIM_SECONDS = 300.0
"""Seconds that a claim lasts: longer than several requests to the other store, of 30 s each, with their retries."""
TOMBSTONE_HOURS = 24
"""Hours that a tombstone is kept: a batch is written minutes after its fetch, so none undoes yesterday's deletion."""
VISIBLE_SECONDS = 60.0
"""Pinecone is eventually consistent: a record may still be read for a while after its deletion was acknowledged."""
BUCKETS = 64
INTENDED_AT_ONCE = 1000
"""Records in one statement, as many as the store writes."""
_LOCKS = 723056118
"""The class of the advisory locks that order a deletion and a write of one key; any number would do."""

Operation = Literal["upsert", "delete"]


@dataclass(frozen=True)
class Intent:
    """The latest intent of a key; ``id`` is its sequence, ``record`` is None for a deletion.

    ``claim`` identifies the claim that holds it, and differs from every other claim, of the same process too.
    """

    id: int
    key: str
    operation: Operation
    record: Record | None
    claim: str


@dataclass(frozen=True)
class OutboxStatus:
    """The pending writes: keys, age of the oldest in seconds, and the last errors with how many keys each concerns."""

    pending: int
    failing: int
    oldest_seconds: float | None
    errors: tuple[tuple[str, int], ...]


class Outbox:
    """The intents of one vector table and scope. Several processes may share it."""

    def __init__(
        self, engine: Engine, target: str, scope: Mapping[str, str], *, claim_seconds: float = CLAIM_SECONDS
    ) -> None:
        self.claim_seconds = claim_seconds
        self._engine = engine
        self._of = {"target": target, "scope": json.dumps(dict(scope))}

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Open a transaction of the outbox's own. Raises database errors as `TransientError` or `AmprentaError`."""
        with errors_as_ours(), self._engine.begin() as connection:
            yield connection

    def lock(self, connection: Connection, keys: Sequence[str], operation: Operation) -> None:
        """Keep deletions and writes of ``keys`` apart until the transaction ends. Call it before the rows are touched.

        The row itself orders the writes of one key, but a deletion may find no row to lock. A backfill that inserts
        holds the same locks as a write does. Raises `ConfigError` in a transaction that would not see what it waited
        for.
        """
        lock = _LOCK_EXCLUSIVELY if operation == "delete" else _LOCK_TOGETHER
        level = connection.execute(lock, {"target": self._of["target"], "keys": list(keys)}).scalars().first()
        if level not in (None, "read committed"):
            raise ConfigError(
                f"a write to both stores needs a transaction at READ COMMITTED; this one is at {level.upper()}",
                hint='connection.execution_options(isolation_level="READ COMMITTED")',
            )

    def intend(self, connection: Connection, records: Sequence[Record]) -> None:
        """Record rows that were written. Call it after they are touched: then ids are in the order of the rows."""
        for start in range(0, len(records), INTENDED_AT_ONCE):
            part = records[start : start + INTENDED_AT_ONCE]
            columns = {
                "keys": [record.key for record in part],
                "vectors": [np.asarray(record.vector, dtype="<f4").tobytes().hex() for record in part],
                "texts": [record.text for record in part],
                "metadata": [json.dumps(dict(record.metadata), ensure_ascii=False) for record in part],
            }
            connection.execute(_INTEND, {**self._of, **columns, "operation": "upsert"})

    def intend_deletion(self, connection: Connection, keys: Sequence[str]) -> None:
        """Record rows that were deleted. Call it after they are touched: then ids are in the order of the rows."""
        nothing = dict.fromkeys(("vectors", "texts", "metadata"), [None] * len(keys))
        connection.execute(_INTEND, {**self._of, **nothing, "keys": list(keys), "operation": "delete"})

    def deleted_since(self, connection: Connection, keys: Sequence[str], moment: datetime) -> set[str]:
        """Return those of ``keys`` whose deletion a read of the other store after ``moment`` may not have seen.

        Call it under `lock`, in the transaction that writes what was read: then no deletion can come in between.
        """
        values = {**self._of, "keys": list(keys), "moment": moment, "lag": VISIBLE_SECONDS}
        return set(connection.execute(_DELETED, values).scalars())

    def newer_than(self, connection: Connection, keys: Sequence[str], moment: datetime) -> set[str]:
        """Return those of ``keys`` written or deleted here, which the other store may not have shown at ``moment``.

        Call it once the rows are locked, in the transaction that changes them.
        """
        values = {**self._of, "keys": list(keys), "moment": moment, "lag": VISIBLE_SECONDS}
        return set(connection.execute(_NEWER, values).scalars())

    def claim(self, most: int, *, keys: Sequence[str] | None = None, at_once: bool = False) -> list[Intent]:
        """Claim keys that have something pending: those of ``keys``, or the oldest, from ``most`` intents at most.

        Returns the latest intent of each, in order. Keys that another claim holds are left out and, unless ``at_once``,
        keys that failed and rest before the next try.
        """
        claim = secrets.token_hex(8)
        values = {**self._of, "claim": claim, "lease": self.claim_seconds, "most": most, "at_once": at_once}
        with self.transaction() as connection:
            # One process claims at a time, so that none claims an older intent of a key than another does.
            connection.execute(_LOCK_CLAIMS, self._of)
            rows = connection.execute(_CLAIM, {**values, "keys": None if keys is None else list(keys)}).all()
        latest = {row.key: row for row in sorted(rows, key=lambda row: row.id)}
        return sorted((_intent(row, claim) for row in latest.values()), key=lambda intent: intent.id)

    def clear(self, intents: Sequence[Intent]) -> list[str]:
        """Clear intents, all of one claim, that the other store has. Return the keys for which that is uncertain.

        Their claim ran out and another process claimed them: which of the two wrote last cannot be known.
        """
        values = {"claim": intents[0].claim, "intents": _keys_and_ids(intents)}
        with self.transaction() as connection:
            kept = set(connection.execute(_OWNED, values).scalars())
            owned = {**self._of, "intents": _keys_and_ids([intent for intent in intents if intent.key in kept])}
            connection.execute(_DROP_UPSERTS, owned)
            connection.execute(_KEEP_TOMBSTONES, owned)
            connection.execute(_FORGET_TOMBSTONES, {**self._of, "hours": TOMBSTONE_HOURS})
        return [intent.key for intent in intents if intent.key not in kept]

    def fail(self, intents: Sequence[Intent], error: str, *, under_way: bool = False) -> None:
        """Record that the other store did not take these, all of one claim: they stay pending, and rest before a retry.

        The rest doubles up to 5 minutes. If the request may still be ``under_way``, its claim is kept until it runs
        out, so that no later value is written before it.
        """
        values = {"claim": intents[0].claim, "keys": [intent.key for intent in intents], "error": error[:500]}
        with self.transaction() as connection:
            connection.execute(_FAIL, {**self._of, **values, "under_way": under_way})

    def give_back(self, intents: Sequence[Intent]) -> None:
        """Release intents, all of one claim, that no write was started for: any process may claim them now."""
        if not intents:
            return
        values = {"claim": intents[0].claim, "keys": [intent.key for intent in intents]}
        with self.transaction() as connection:
            connection.execute(_GIVE_BACK, {**self._of, **values})

    def status(self) -> OutboxStatus:
        """Return what is pending now, in all scopes of the table."""
        with self.transaction() as connection:
            found = count_pending(connection, self._of["target"])
            errors = connection.execute(_ERRORS, self._of).all()
        return replace(found, errors=tuple((error.last_error, error.keys) for error in errors))

    def pending_scopes(self) -> list[dict[str, str]]:
        """Return the scopes of the table in which something is pending."""
        with self.transaction() as connection:
            return list(connection.execute(_SCOPES, self._of).scalars())


def count_pending(connection: Connection, target: str) -> OutboxStatus:
    """Return what is pending for a vector table, in all its scopes, without the errors."""
    row = connection.execute(_PENDING, {"target": target}).one()
    return OutboxStatus(row.pending, row.failing, row.oldest, ())


@contextmanager
def errors_as_ours() -> Iterator[None]:
    """Raise database errors as `TransientError` or `AmprentaError`."""
    try:
        yield
    except DBAPIError as error:
        raise to_error(error, "writing to vector_outbox and its table") from error


def _intent(row: Any, claim: str) -> Intent:
    record = None
    if row.operation == "upsert":
        record = Record(row.key, np.frombuffer(row.vector, dtype="<f4"), row.text, row.metadata or {})
    return Intent(row.id, row.key, row.operation, record, claim)


def _keys_and_ids(intents: Sequence[Intent]) -> str:
    return json.dumps({intent.key: intent.id for intent in intents})


def _locks(function: Any) -> sa.Select[Any]:
    """Select a lock on the bucket of each of ``:keys``, always in one order, and the transaction's isolation level."""
    keys = sa.func.unnest(sa.cast(sa.bindparam("keys"), ARRAY(sa.Text))).column_valued("key")
    bucket = sa.func.abs(sa.func.hashtext(sa.bindparam("target", type_=sa.Text) + keys) % BUCKETS)
    buckets = sa.select(bucket.label("bucket")).distinct().order_by("bucket").subquery()
    return sa.select(sa.func.current_setting("transaction_isolation"), function(_LOCKS, buckets.c.bucket))


_LOCK_TOGETHER = _locks(sa.func.pg_advisory_xact_lock_shared)
_LOCK_EXCLUSIVELY = _locks(sa.func.pg_advisory_xact_lock)

_LOCK_CLAIMS = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:target || :scope, 723056118))")

_INTEND = sa.text("""
    INSERT INTO vector_outbox (target, scope, key, operation, vector, text, metadata)
    SELECT :target, CAST(:scope AS jsonb), key, :operation, decode(vector, 'hex'), text, CAST(metadata AS jsonb)
    FROM unnest(
        CAST(:keys AS text[]), CAST(:vectors AS text[]), CAST(:texts AS text[]), CAST(:metadata AS text[])
    ) WITH ORDINALITY AS given(key, vector, text, metadata, place)
    ORDER BY place
""")

_CLAIM = sa.text("""
    WITH oldest AS (
        SELECT DISTINCT key FROM (
            SELECT o.key FROM vector_outbox o
            WHERE o.target = :target AND o.scope = CAST(:scope AS jsonb) AND o.cleared_at IS NULL
              AND (CAST(:keys AS text[]) IS NULL OR o.key = ANY(CAST(:keys AS text[])))
              AND NOT EXISTS (
                SELECT 1 FROM vector_outbox c
                WHERE c.target = o.target AND c.scope = o.scope AND c.key = o.key AND c.cleared_at IS NULL
                  AND c.claimed_until > clock_timestamp() AND (c.claimed_by IS NOT NULL OR NOT :at_once)
              )
            ORDER BY o.id LIMIT :most
        ) AS pending
    )
    UPDATE vector_outbox o
    SET claimed_by = :claim, claimed_until = clock_timestamp() + make_interval(secs => :lease)
    FROM oldest
    WHERE o.target = :target AND o.scope = CAST(:scope AS jsonb) AND o.key = oldest.key AND o.cleared_at IS NULL
    RETURNING o.id, o.key, o.operation, o.vector, o.text, o.metadata
""")

_OWNED = sa.text("""
    SELECT o.key FROM jsonb_each_text(CAST(:intents AS jsonb)) AS given(key, id)
    JOIN vector_outbox o ON o.id = CAST(given.id AS bigint)
    WHERE o.claimed_by = :claim AND o.cleared_at IS NULL
    FOR UPDATE OF o
""")

_DROP_UPSERTS = sa.text("""
    DELETE FROM vector_outbox o USING jsonb_each_text(CAST(:intents AS jsonb)) AS given(key, id)
    WHERE o.target = :target AND o.scope = CAST(:scope AS jsonb) AND o.key = given.key
      AND o.id <= CAST(given.id AS bigint) AND o.operation = 'upsert'
""")

_KEEP_TOMBSTONES = sa.text("""
    UPDATE vector_outbox o
    SET cleared_at = clock_timestamp(), claimed_by = NULL, claimed_until = NULL, last_error = NULL
    FROM jsonb_each_text(CAST(:intents AS jsonb)) AS given(key, id)
    WHERE o.target = :target AND o.scope = CAST(:scope AS jsonb) AND o.key = given.key
      AND o.id <= CAST(given.id AS bigint) AND o.cleared_at IS NULL
""")

_FORGET_TOMBSTONES = sa.text("""
    DELETE FROM vector_outbox
    WHERE target = :target AND scope = CAST(:scope AS jsonb)
      AND cleared_at < clock_timestamp() - make_interval(hours => :hours)
""")

_FAIL = sa.text("""
    UPDATE vector_outbox
    SET attempts = attempts + 1, last_error = :error,
        claimed_by = CASE WHEN :under_way THEN claimed_by END,
        claimed_until = CASE WHEN :under_way THEN claimed_until
            ELSE clock_timestamp() + make_interval(secs => least(300, power(2, least(attempts, 9)))) END
    WHERE target = :target AND scope = CAST(:scope AS jsonb) AND key = ANY(CAST(:keys AS text[]))
      AND cleared_at IS NULL AND claimed_by = :claim
""")

_GIVE_BACK = sa.text("""
    UPDATE vector_outbox SET claimed_by = NULL, claimed_until = NULL
    WHERE target = :target AND scope = CAST(:scope AS jsonb) AND key = ANY(CAST(:keys AS text[]))
      AND cleared_at IS NULL AND claimed_by = :claim
""")

_DELETED = sa.text("""
    SELECT DISTINCT key FROM vector_outbox
    WHERE target = :target AND scope @> CAST(:scope AS jsonb) AND key = ANY(CAST(:keys AS text[]))
      AND operation = 'delete' AND (cleared_at IS NULL OR cleared_at > :moment - make_interval(secs => :lag))
""")

_NEWER = sa.text("""
    SELECT DISTINCT key FROM vector_outbox
    WHERE target = :target AND scope @> CAST(:scope AS jsonb) AND key = ANY(CAST(:keys AS text[]))
      AND (cleared_at IS NULL OR cleared_at > :moment - make_interval(secs => :lag))
""")

_PENDING = sa.text("""
    SELECT count(DISTINCT (scope, key)) AS pending, count(DISTINCT (scope, key)) FILTER (WHERE attempts > 0) AS failing,
           extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest
    FROM vector_outbox WHERE target = :target AND cleared_at IS NULL
""")

_ERRORS = sa.text("""
    SELECT last_error, count(DISTINCT (scope, key)) AS keys FROM vector_outbox
    WHERE target = :target AND cleared_at IS NULL AND last_error IS NOT NULL
    GROUP BY last_error ORDER BY keys DESC, last_error LIMIT 5
""")

_SCOPES = sa.text("""
    SELECT DISTINCT scope FROM vector_outbox WHERE target = :target AND cleared_at IS NULL ORDER BY scope
""")
