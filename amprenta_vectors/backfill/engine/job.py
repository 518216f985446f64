"""What a backfill is to do: one source into one scope of one table, and how hard to work at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backfill.engine.keys_from import KeysFrom, is_retry, side_of
from amprenta_vectors.backfill.engine.retry import LONGEST_WAIT_SECONDS
from amprenta_vectors.backfill.progress.runs import RunSpec
from amprenta_vectors.config import SourceLimits
from amprenta_vectors.schema.keymaps import KeyMap, check_invertible
from amprenta_vectors.schema.vector_table import VectorTable


@dataclass(frozen=True)
class Job:
    """One source into one scope of one table, and how hard to work at it. ``table`` must come from the catalogue."""

    table: VectorTable
    scope: Mapping[str, str]
    source: Source
    key_map: KeyMap
    keys_from: KeysFrom
    model: str | None
    batch_size: int
    workers: int
    lease_seconds: float
    retry_seconds: float
    batch_seconds: float | None = None
    limit: int | None = None
    defer_index: bool = False
    drain_seconds: float = 10.0
    poll_seconds: float = 0.5
    """How often a thread that has nothing to do looks for work, for orders and for its end. A pause is seen after this
    at the latest; with the grace for a write, nothing begins later than a second and a half after the order."""
    longest_wait_seconds: float = LONGEST_WAIT_SECONDS
    """The bound of the random wait before a step that failed is tried again."""
    figures_seconds: float = 0.5
    """How often the figures are shown; whether too many rows are bad is asked half as often."""
    expected_keys: int | None = None
    source_limits: SourceLimits = field(default_factory=SourceLimits)
    limits: Mapping[str, float] = field(default_factory=dict)
    """Ordered of the run when this process comes to work at it."""
    max_bad_share: float = 1.0
    retry_reason: str | None = None
    given_keys: Sequence[str] = ()
    """The source keys of a run that begins with ``keys_from`` given; it keeps them itself afterwards."""
    replace: bool = False
    """Whether a value that is there is replaced, where the source's is another one."""
    delete: bool = False
    """Of a run that reconciles, whether rows that the source no longer has are deleted, and not only listed."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` where the table's rows do not tell the source keys that the job is to be made of."""
        if self.keys_from == "table":
            check_invertible(self.key_map)

    @property
    def inserts(self) -> bool:
        """Whether rows that are not there are inserted."""
        return side_of(self.keys_from) == "source" and self.key_map.makes_keys

    @property
    def records_inserts(self) -> bool:
        """Whether the rows that a run inserts are recorded, so that it can be rolled back: those of legacy stores."""
        return self.inserts and self.source.description.kind == "simple"

    @property
    def most_quarantined(self) -> float:
        """The share of keys that may be quarantined; all of those that were quarantined before."""
        return 1.0 if is_retry(self.keys_from) else self.max_bad_share

    @property
    def spec(self) -> RunSpec:
        """The job as a run records it; the fingerprint has no count, batch size or number of workers in it."""
        described = self.source.description
        identity = {
            "source": [described.kind, described.identity],
            "target": self.table.target,
            "scope": dict(self.scope),
            "dimension": self.table.dimension,
            "distance": described.distance,
            "model": self.model,
            "key_map": self.key_map.name,
            **({} if self.table.sparse is None else {"sparse": self.table.sparse}),
        }
        return RunSpec(
            vector_table=self.table.name,
            target=self.table.target,
            scope=self.scope,
            source_kind=described.kind,
            source=described.identity,
            keys_from=self.keys_from,
            key_map=self.key_map.name,
            model=self.model,
            dimension=self.table.dimension,
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            row_limit=self.limit,
            replaces=self.replace,
        )
