"""Reads on a standby (``READ_DATABASE_URL``), and on the primary while the standby lags, is away or was promoted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import (
    DimensionMismatch,
    FilterUnsupported,
    NotUpgraded,
    SchemaMismatch,
    TimedOut,
    TransientError,
)
from amprenta_vectors.pg.errors import for_a_log, is_transient
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.given import possible_keys
from amprenta_vectors.stores.pgvector.joining import Joinable
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.search_plan import SearchPlan
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter, Hit, Record

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Seconds between two looks at how far the standby is."""
AWAY_SECONDS = 10.0
"""Seconds before a server that did not answer is asked again."""

Answer = TypeVar("Answer")

_REPLAYED = sa.text("SELECT pg_is_in_recovery(), pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint")
_WRITTEN = sa.text("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
_MAY_ASK = sa.text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
_IDENTITY = sa.text("SELECT system_identifier, current_database() FROM pg_control_system()")


class ReplicaWatch:
    """Tells whether a standby may be read from: it has replayed what the primary wrote up to ``max_lag_seconds`` ago.

    What the primary has written is noted at each look with the time, so that no clock of another machine is asked, and
    a primary that rests makes nothing old. A standby that has not been seen to be as far is not read from. While the
    primary does not answer, the standby is read from however far it is; one that was promoted only then.

    The engines are for the watch alone, a connection each: a look waits for no query.
    """

    def __init__(self, primary: sa.Engine, standby: sa.Engine, max_lag_seconds: float) -> None:
        self._primary = primary
        # A connection that has read on a standby would begin the next transaction as one that may write.
        self._standby = standby.execution_options(postgresql_readonly=True)
        self._max_lag = max_lag_seconds
        self._looking = threading.Lock()
        self._next = 0.0
        self._written: deque[tuple[float, int]] = deque()
        self._why_not: str | None = "it was never looked at"
        self._late = False
        self._identified = False

    def is_fit(self) -> bool:
        """Return whether the next read may go to the standby; look, if the last look is a second ago."""
        if time.monotonic() >= self._next and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        return self._why_not is None

    @property
    def why_not(self) -> str | None:
        """Return why the standby was not fit at the last look; None if it was."""
        return self._why_not

    @property
    def late(self) -> bool:
        """Return whether the last look found a standby that is behind, which passes; nothing else passes by waiting."""
        return self._late

    def failed(self, error: Exception) -> None:
        """Record that a read of the standby failed: it is left alone for a while."""
        self._conclude(for_a_log(error), AWAY_SECONDS)

    def close(self) -> None:
        """Close the connections that are looked by."""
        self._primary.dispose()
        self._standby.dispose()

    def _look(self) -> None:
        written, theirs = None, None
        try:
            with self._primary.connect() as connection:
                written = connection.execute(_WRITTEN).scalar_one()
                theirs = self._identity(connection)
        except DBAPIError as error:
            if not is_transient(error):
                # As where it is a standby itself.
                self._conclude(f"the primary cannot be asked: {for_a_log(error)}", AWAY_SECONDS)
                return
        now = time.monotonic()
        try:
            # After the primary: a standby that keeps up has what was just noted.
            with self._standby.connect() as connection:
                standby, replayed = connection.execute(_REPLAYED).one()
                identity = self._identity(connection)
        except DBAPIError as error:
            self._conclude(f"it does not answer: {for_a_log(error)}", AWAY_SECONDS)
            return
        if written is None:
            self._conclude(None, AWAY_SECONDS)
            return
        self._written.append((now, written))
        if None not in (identity, theirs) and identity != theirs:
            self._conclude("READ_DATABASE_URL leads to another database, no standby of this one")
            return
        self._identified = True
        if not standby:
            self._conclude("it is no standby: it was promoted, or is the primary")
            return
        self._conclude(self._why_late(now, replayed), late=True)

    def _why_late(self, now: float, replayed: int) -> str | None:
        while len(self._written) > 1 and self._written[1][1] <= replayed:
            self._written.popleft()
        at, place = self._written[0]
        if place <= replayed and now - at <= self._max_lag:
            return None
        # What is older than that tells nothing any more.
        while len(self._written) > 1 and now - self._written[1][0] > self._max_lag:
            self._written.popleft()
        return f"it was not seen to have what the primary wrote {self._max_lag:g} s ago"

    def _identity(self, connection: Connection) -> tuple[Any, ...] | None:
        """Return what tells cluster and database; None once the two were found to be the same, or by such a role."""
        if self._identified or not connection.execute(_MAY_ASK).scalar_one():
            return None
        return tuple(connection.execute(_IDENTITY).one())

    def _conclude(self, why_not: str | None, seconds: float | None = None, *, late: bool = False) -> None:
        if why_not != self._why_not:
            log.warning("queries go to the %s%s", "primary: " if why_not else "standby", why_not or "")
        self._why_not = why_not
        self._late = late and why_not is not None
        self._next = time.monotonic() + (CHECK_SECONDS if seconds is None else seconds)


def open_watch(settings: Settings, create: Callable[..., sa.Engine]) -> ReplicaWatch:
    """Open the watch on the two servers that the settings name, on engines that ``create`` makes."""
    primary, standby = (create(reads=reads, pool_size=1, max_overflow=0) for reads in (False, True))
    return ReplicaWatch(primary, standby, settings.read_max_lag_seconds)


class ReplicatedStore(PgVectorStore):
    """A `PgVectorStore` that reads by ``standby``, a store on the same table and scope, as long as ``watch`` lets it.

    What is written goes to the primary, and is found by a read as soon as the standby has it; with ``connection``,
    `fetch` sees it at once.
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        options: StoreOptions,
        *,
        standby: PgVectorStore,
        watch: ReplicaWatch,
        owns_engine: bool = False,
    ) -> None:
        super().__init__(engine, table, scope, options, owns_engine=owns_engine)
        self._standby = standby
        # Which model is searched is asked of the primary, so that a switch is in force whatever the standby has.
        standby.models = self.models
        self._watch = watch

    def query(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the ``top_k`` nearest rows that match ``filter``, as `PgVectorStore.query` does."""
        return self._read(lambda read: read.query(vector, top_k=top_k, filter=filter, exact=exact, model=model))

    def search(
        self,
        text: str,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> list[Hit]:
        """Return the rows nearest to a text, as `PgVectorStore.search` does."""
        return self._read(lambda read: read.search(text, top_k=top_k, filter=filter, exact=exact, model=model))

    def explain(
        self,
        vector: ArrayLike,
        *,
        top_k: int = 10,
        filter: Filter | None = None,
        exact: bool = False,
        model: str | None = None,
    ) -> SearchPlan:
        """Explain which way `query` goes with the same arguments."""
        return self._read(lambda read: read.explain(vector, top_k=top_k, filter=filter, exact=exact, model=model))

    def scores(self, vector: ArrayLike, keys: Sequence[str], *, model: str | None = None) -> dict[str, float]:
        """Return the exact score of each of ``keys`` that has a row."""
        asked = possible_keys(keys)
        return self._read(lambda read: read.scores(vector, asked, model=model))

    def sample(self, rows: int, *, seed: int = 0, model: str | None = None) -> NDArray[np.float32]:
        """Return at most ``rows`` stored vectors, the same for the same seed and rows."""
        return self._read(lambda read: read.sample(rows, seed=seed, model=model))

    def sample_keys(self, rows: int, *, seed: int = 0, model: str | None = None) -> list[str]:
        """Return the keys of at most ``rows`` rows that have a vector, the same for the same seed and rows."""
        return self._read(lambda read: read.sample_keys(rows, seed=seed, model=model))

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the scope to query with."""
        return self._read(lambda read: read.stored_vector())

    def fetch(
        self, keys: Sequence[str], *, connection: Joinable | None = None, model: str | None = None
    ) -> dict[str, Record]:
        """Return the rows of ``keys`` by key; with ``connection``, in the caller's transaction."""
        if connection is not None:
            return super().fetch(keys, connection=connection, model=model)
        asked = possible_keys(keys)
        return self._read(lambda read: read.fetch(asked, model=model))

    def count(self, *, model: str | None = None) -> int:
        """Return how many rows have a vector."""
        return self._read(lambda read: read.count(model=model))

    def close(self) -> None:
        """Close both engines' connections, if they are the store's own."""
        self._watch.close()
        self._standby.close()
        super().close()

    def _read(self, call: Callable[[PgVectorStore], Answer]) -> Answer:
        if self._watch.is_fit():
            try:
                return call(self._standby)
            except (TimedOut, DimensionMismatch, FilterUnsupported):
                # So would the primary's answer be.
                raise
            except (TransientError, NotUpgraded, SchemaMismatch) as error:
                self._watch.failed(error)
        return call(super())  # type: ignore[arg-type]
