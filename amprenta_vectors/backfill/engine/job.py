"""The job of a backfill: one source into one slice, and how hard to work at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.protocol import LocalSource, Source
from amprenta_vectors.backfill.engine.backoff import LONGEST_WAIT_SECONDS
from amprenta_vectors.backfill.engine.keys import Keys
from amprenta_vectors.backfill.progress.keys_from import KeysFrom, side_of
from amprenta_vectors.backfill.progress.runs import Run, RunSpec
from amprenta_vectors.config import SourceLimits
from amprenta_vectors.schema.slice import Slice

if TYPE_CHECKING:
    from collections.abc import Callable

    from amprenta_vectors.backfill.engine.context import RunContext
    from amprenta_vectors.backfill.progress.seen import Gone
    from amprenta_vectors.backfill.writing.casting import CastSink
    from amprenta_vectors.backfill.writing.sink import Writer


class Kind(Protocol):
    """The kind of a run: where its keys come from, and what writes its rows."""

    @property
    def keys_from(self) -> KeysFrom:
        """The name of the listing of keys, as the run's row records it and as resuming the run needs it."""
        ...

    @property
    def replaces(self) -> bool:
        """Whether an existing value is replaced if the source's differs."""
        ...

    @property
    def most_quarantined(self) -> float:
        """The share of keys, 0 to 1, that may be quarantined however little the settings allow."""
        ...

    def open_keys(self, context: RunContext) -> Keys:
        """Return the listing of the run's keys."""
        ...

    def open_writer(self, context: RunContext) -> Writer | CastSink:
        """Return the writer of a batch's rows."""
        ...

    def plan_known(self, connection: Connection, job: Job, run: Run) -> bool:
        """Store all batches of a run whose keys are known as it starts; return whether they were known."""
        ...

    def finds_nothing(self, connection: Connection, job: Job, ended: Run) -> bool:
        """Return whether a run like ``ended``, started after it, would find nothing to do."""
        ...

    def expected_keys(self, connection: Connection, job: Job) -> int | None:
        """Return how many keys a run will have, as far as that is known before they are listed."""
        ...

    def conclude(self, context: RunContext, until_free: Callable[[], None]) -> Gone | None:
        """Do what is left once every batch is done. Raises `Stopped` if that may not go on."""
        ...


@dataclass(frozen=True)
class Job:
    """One source into one slice, and how hard to work at it."""

    slice: Slice
    source: Source
    kind: Kind
    model: str | None
    batch_size: int
    workers: int
    lease_seconds: float
    retry_seconds: float
    batch_seconds: float | None = None
    limit: int | None = None
    defer_index: bool = False
    keep_deferred: bool = False
    """Whether the index that a load deferred stays so: more runs into the column are to come."""
    drain_seconds: float = 10.0
    poll_seconds: float = 0.5
    """How often an idle thread looks for work, for orders and for its end. A pause is seen after this at the latest;
    with the grace for a write, nothing begins later than a second and a half after the order."""
    longest_wait_seconds: float = LONGEST_WAIT_SECONDS
    """The bound of the random wait before a step that failed is tried again."""
    figures_seconds: float = 0.5
    """How often the figures are shown; whether too many rows are quarantined is checked half as often."""
    expected_keys: int | None = None
    source_limits: SourceLimits = field(default_factory=SourceLimits)
    limits: Mapping[str, float] = field(default_factory=dict)
    """The limits that this process orders of the run when it joins."""
    max_bad_share: float = 1.0

    @property
    def inserts(self) -> bool:
        """Whether rows that are absent from the table are inserted."""
        of_source = side_of(self.kind.keys_from) == "source" and self.slice.key_map.makes_keys
        return of_source or self.slice.table.texts is not None

    @property
    def wanted(self) -> list[sa.ColumnElement[bool]]:
        """The conditions that a row has a record at the source, as far as the database knows."""
        return [self.source.has_value(self.slice)] if isinstance(self.source, LocalSource) else []

    @property
    def records_inserts(self) -> bool:
        """Whether the rows that the run inserts are recorded, so that it can be rolled back: for legacy stores only."""
        return self.inserts and self.source.description.kind == "simple"

    @property
    def builds_index(self) -> bool:
        """Whether the last run into the column builds the index; a run of some keys alone is followed by others."""
        return not (self.keep_deferred or self.limit is not None)

    @property
    def most_quarantined(self) -> float:
        """The share of keys, 0 to 1, that may be quarantined."""
        return max(self.max_bad_share, self.kind.most_quarantined)

    @property
    def spec(self) -> RunSpec:
        """The job as a run records it; the fingerprint has no count, batch size or number of workers in it."""
        described, table = self.source.description, self.slice.table
        identity = {
            "source": [described.kind, described.identity],
            "target": table.target,
            "scope": dict(self.slice.scope),
            "dimension": table.dimension,
            "distance": described.distance,
            "model": self.model,
            "key_map": self.slice.key_map.name,
            **({} if table.sparse is None else {"sparse": table.sparse}),
        }
        return RunSpec(
            vector_table=table.name,
            target=table.target,
            scope=self.slice.scope,
            source_kind=described.kind,
            source=described.identity,
            keys_from=self.kind.keys_from,
            key_map=self.slice.key_map.name,
            model=self.model,
            dimension=table.dimension,
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            row_limit=self.limit,
            replaces=self.kind.replaces,
            namespace=described.namespace,
        )
