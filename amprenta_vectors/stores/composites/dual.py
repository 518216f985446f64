"""``VECTOR_MODE=dual``: every write reaches both stores, now or later, in order, whatever dies in between."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from numpy.typing import ArrayLike
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import (
    AmprentaError,
    CredentialsRefused,
    RowError,
    SourceNotFound,
    TimedOut,
    TransientError,
)
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.composites.breaker import Breaker
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.outbox import Intent, Outbox, errors_as_ours
from amprenta_vectors.stores.pgvector.records import one_of
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore

log = logging.getLogger(__name__)

CLAIMED_AT_ONCE = 500
WRITTEN_AT_ONCE = 100
BEGIN_WITHIN = 0.2
"""The share of a claim's time in which requests may start, so that the last of them ends before the claim."""
AWAY = (TransientError, CredentialsRefused, SourceNotFound)
"""Errors that concern the other store as a whole, and no single record."""
OPEN_SECONDS = 10.0
DRAIN_SECONDS = 1.0
"""Seconds between looks for what is pending: writes of an application's transaction, and writes that failed."""


class DualStore:
    """Reads from ``primary``, one of ``pgvector`` and ``other``; writes to both.

    A write and its intent commit in PostgreSQL together, in the caller's transaction where one is given; then the other
    store is written to, and the intent cleared. Writes that the other store did not get, because it was away, the
    process died or the caller's transaction was still open, are drained later by a thread of this store, or by
    ``amprenta-vectors outbox drain``. A write that the other store refuses for good is raised, and stays pending.
    """

    def __init__(self, pgvector: PgVectorStore, other: VectorStore, outbox: Outbox, *, primary: VectorStore) -> None:
        self._pgvector = pgvector
        self._other = other
        self._outbox = outbox
        self._primary = primary
        self.breaker = Breaker(open_seconds=OPEN_SECONDS)
        """Open while the other store is away: then no write waits for it, and the thread tries now and then."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_draining, name="outbox", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The primary's name, with ``writing to both``."""
        return f"{self._primary.name}, writing to both"

    @property
    def distance(self) -> Distance:
        """The primary's distance."""
        return self._primary.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the primary's answer."""
        return self._primary.query(vector, top_k=top_k, filter=filter)

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the primary's rows."""
        return self._primary.fetch(keys)

    def count(self) -> int:
        """Return the primary's count."""
        return self._primary.count()

    def upsert(self, records: Sequence[Record], *, connection: Connection | None = None) -> int:
        """Write rows in both stores, in PostgreSQL as `PgVectorStore.upsert` does; return how many.

        With ``connection`` it happens in the caller's transaction, and the other store follows after its commit.
        """
        latest = latest_records(records)
        keys = [record.key for record in latest]
        if connection is not None:
            with errors_as_ours():
                refused = self._upsert(connection, latest, keys)
            if refused:
                raise one_of(refused)
            return len(latest)
        with self._outbox.transaction() as own:
            refused = self._upsert(own, latest, keys)
        self._drain(keys)
        if refused:
            raise one_of(refused)
        return len(latest)

    def delete(self, keys: Sequence[str], *, connection: Connection | None = None) -> None:
        """Delete rows in both stores, in PostgreSQL as `PgVectorStore.delete` does.

        With ``connection`` it happens in the caller's transaction, and the other store follows after its commit.
        """
        unique = possible_keys(keys)
        if connection is not None:
            with errors_as_ours():
                self._delete(connection, unique)
            return
        with self._outbox.transaction() as own:
            self._delete(own, unique)
        self._drain(unique)

    def close(self) -> None:
        """Close both stores. What is still pending stays in the database, where others may drain it at once."""
        self._closing.set()
        self._thread.join(DRAIN_SECONDS * 2)
        self._pgvector.close()
        self._other.close()

    def _upsert(self, connection: Connection, records: Sequence[Record], keys: Sequence[str]) -> list[RowError]:
        """Return what PostgreSQL has no row for: the other store is not to have it either."""
        if not records:
            return []
        self._outbox.lock(connection, keys, "upsert")
        refused = self._pgvector.upsert_possible(records, connection=connection)
        without = {error.key for error in refused}
        self._outbox.intend(connection, [record for record in records if record.key not in without])
        return refused

    def _delete(self, connection: Connection, keys: Sequence[str]) -> None:
        if not keys:
            return
        self._outbox.lock(connection, keys, "delete")
        self._pgvector.delete(keys, connection=connection)
        self._outbox.intend_deletion(connection, keys)

    def _drain(self, keys: Sequence[str]) -> None:
        """Drain to the other store what was just committed. Raises what the store refuses for good."""
        for start in range(0, len(keys), CLAIMED_AT_ONCE):
            refusal = self._try_to_drain(keys[start : start + CLAIMED_AT_ONCE])
            if refusal is not None and not isinstance(refusal, TransientError):
                raise refusal

    def _keep_draining(self) -> None:
        while not self._closing.wait(DRAIN_SECONDS):
            self._try_to_drain(None)

    def _try_to_drain(self, keys: Sequence[str] | None) -> AmprentaError | None:
        """Drain if the breaker allows it; return the last refusal, None if there is none.

        Whatever else goes wrong, the intents are committed, and only their clearing is late.
        """
        if not self.breaker.allows():
            return None
        try:
            brought, refusal = drain(
                self._outbox,
                self._pgvector,
                self._other,
                keys=keys,
                at_once=keys is not None,
                closing=self._closing,
            )
        except Exception as error:
            log.warning("what %s is to get stays pending: %s", self._other.name, type(error).__name__)
            return None
        else:
            if isinstance(refusal, AWAY):
                if self.breaker.failed():
                    log.warning("%s is away; writes to it stay pending: %s", self._other.name, refusal.message)
            elif brought or refusal is not None:
                self.breaker.succeeded()
            return refusal
        finally:
            # If the other store was not asked, nothing is known of it: the next call tries.
            self.breaker.released()


def drain(
    outbox: Outbox,
    pgvector: PgVectorStore,
    other: VectorStore,
    *,
    keys: Sequence[str] | None = None,
    at_once: bool = False,
    closing: threading.Event | None = None,
) -> tuple[int, AmprentaError | None]:
    """Write what is pending to ``other``; return how many keys it got the latest of, and the last refusal.

    Once ``closing`` is set no more writes are started, and what was claimed for them is given back. Safe to repeat, and
    to run beside any other: in whatever order they come, the last write of each key is what stays.
    """
    brought, refusal, again = 0, None, False
    while intents := outbox.claim(CLAIMED_AT_ONCE, keys=keys, at_once=at_once and not again):
        # Writes not started by then are left to their claim, so that none is written after the claim has run out.
        deadline = time.monotonic() + outbox.claim_seconds * BEGIN_WITHIN
        waiting = list(_parts(intents))
        while waiting and not (closing and closing.is_set()):
            done, error = _bring(outbox, pgvector, other, waiting.pop(0))
            brought += done
            refusal = error or refusal
            if isinstance(error, AWAY) or time.monotonic() > deadline:
                break
        if closing and closing.is_set():
            outbox.give_back([intent for part in waiting for intent in part])
            break
        again = True
        if keys is not None or isinstance(refusal, AWAY):
            break
    return brought, refusal


def _parts(intents: Sequence[Intent]) -> Iterator[list[Intent]]:
    """Yield the intents in their order, in groups of one operation and about one request."""
    for _, group in groupby(intents, key=lambda intent: intent.operation):
        alike = list(group)
        for start in range(0, len(alike), WRITTEN_AT_ONCE):
            yield alike[start : start + WRITTEN_AT_ONCE]


def _bring(
    outbox: Outbox, pgvector: PgVectorStore, other: VectorStore, intents: list[Intent]
) -> tuple[int, AmprentaError | None]:
    """Write intents all at once; if one is refused for good, one by one, so that it does not hold up the others.

    Returns how many were written and cleared, and the last error.
    """
    try:
        _write(other, intents)
    except AWAY as error:
        outbox.fail(intents, error.message, under_way=isinstance(error, TimedOut))
        return 0, error
    except AmprentaError as error:
        if len(intents) == 1:
            outbox.fail(intents, error.message)
            return 0, error
        single = [_bring(outbox, pgvector, other, [intent]) for intent in intents]
        return sum(done for done, _ in single), next((error for _, error in reversed(single) if error), None)
    lost = outbox.clear(intents)
    if lost:
        _intend_again(outbox, pgvector, lost)
    return len(intents) - len(lost), None


def _write(other: VectorStore, intents: Sequence[Intent]) -> None:
    records = [intent.record for intent in intents if intent.record is not None]
    if records:
        other.upsert(records)
    else:
        other.delete([intent.key for intent in intents])


def _intend_again(outbox: Outbox, pgvector: PgVectorStore, keys: Sequence[str]) -> None:
    """Intend keys that another process wrote too, as PostgreSQL has them: which write came last cannot be known."""
    with outbox.transaction() as connection:
        outbox.lock(connection, keys, "delete")
        rows = pgvector.fetch(keys, connection=connection)
        if rows:
            outbox.intend(connection, list(rows.values()))
        gone = [key for key in keys if key not in rows]
        if gone:
            outbox.intend_deletion(connection, gone)
