"""How a source key finds its rows: one key map a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from amprenta_vectors.batch import Key, VectorBatch


class KeyMap(Protocol):
    """Turns the source key of every row of a batch into 0…n target keys."""

    @property
    def name(self) -> str:
        """What tells this rule from the others; part of a run's fingerprint."""
        ...

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """The batch with ``keys`` set; rows without a target key have moved to ``rejected``."""
        ...

    def to_source(self, key: Key) -> str:
        """The source key of a row, for runs whose keys come from the table."""
        ...


class Identity:
    """The target key is the source key."""

    name = "identity"

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Every row keeps its key."""
        return batch.take(range(len(batch)), [(key,) for key in batch.source_keys])

    def to_source(self, key: Key) -> str:
        """The key itself."""
        return key[0]


class Numbered:
    """The target key is the source key and the number of the row among those of that key, from 0, in fetched order."""

    name = "numbered"

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Number the rows of every source key."""
        return batch.take(range(len(batch)), _numbered(batch.source_keys))

    def to_source(self, key: Key) -> str:
        """The part before the number."""
        return key[0]


def _numbered(source_keys: Sequence[str]) -> list[Key]:
    seen: dict[str, int] = {}
    keys: list[Key] = []
    for key in source_keys:
        number = seen.get(key, 0)
        seen[key] = number + 1
        keys.append((key, str(number)))
    return keys
