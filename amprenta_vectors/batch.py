"""The columnar vector batch, the only thing that flows from a source to a table, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.errors import RowError

Key = tuple[str, ...]
"""One target key: a value for each key column, as text; PostgreSQL casts it to the column's type."""

Vectors = NDArray[np.float32]


class Reason(StrEnum):
    """Why a row was set aside."""

    MISSING = "missing_at_source"
    DIMENSION = "wrong_dimension"
    NOT_FINITE = "not_finite"
    ZERO = "zero_under_cosine"
    SPARSE_ONLY = "sparse_without_dense"
    SPARSE_DROPPED = "sparse_without_column"
    NUL = "nul_character"
    NO_TARGET = "no_target_key"
    REFUSED = "write_refused"


@dataclass(frozen=True, eq=False)
class VectorBatch:
    """Rows read from a source, one column each, all of length ``n``.

    ``vectors`` is ``(n, dimension)`` float32, C-contiguous. ``source_keys`` may repeat: one source key can give several
    rows. ``keys`` is None until a key map has been applied. ``texts`` and ``metadata`` are None where the source has
    none. ``rejected`` holds what the source gave but no row can carry (a vector of another length, a sparse-only
    record); nothing leaves a batch without standing there.
    """

    source_keys: Sequence[str]
    vectors: Vectors
    texts: Sequence[str | None] | None = None
    metadata: Sequence[Mapping[str, Any] | None] | None = None
    keys: Sequence[Key] | None = None
    rejected: tuple[RowError, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.source_keys)
        columns: dict[str, Sequence[Any] | None] = {
            "texts": self.texts,
            "metadata": self.metadata,
            "keys": self.keys,
        }
        wrong = [f"{name} {len(column)}" for name, column in columns.items() if column is not None and len(column) != n]
        if self.vectors.ndim != 2 or len(self.vectors) != n or wrong:
            raise ValueError(f"a batch of {n} source keys with vectors {self.vectors.shape} {' '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.source_keys)

    @property
    def dimension(self) -> int:
        """The number of columns of ``vectors``."""
        return int(self.vectors.shape[1])

    def take(self, positions: Sequence[int] | NDArray[np.intp], keys: Sequence[Key] | None = None) -> VectorBatch:
        """The rows at ``positions``, in that order, with ``keys`` in place of those rows' own where given."""
        rows = [int(i) for i in positions]
        if keys is None and self.keys is not None:
            keys = [self.keys[i] for i in rows]
        return VectorBatch(
            source_keys=[self.source_keys[i] for i in rows],
            vectors=self.vectors[np.asarray(rows, dtype=np.intp)],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
            metadata=None if self.metadata is None else [self.metadata[i] for i in rows],
            keys=keys,
            rejected=self.rejected,
        )

    def validated(self, *, cosine: bool, storage: Literal["vector", "halfvec"] = "vector") -> VectorBatch:
        """The rows that can be stored; the others stand in ``rejected`` with their reason.

        NaN and infinite values are refused by pgvector. A zero vector has no direction: under cosine no index holds it
        and no query finds it. A halfvec is judged by what its cast to float16 leaves: 70,000 is infinite there, and
        1e-9 is 0. PostgreSQL's text and jsonb cannot hold the NUL character.
        """
        with np.errstate(over="ignore"):
            stored = self.vectors if storage == "vector" else self.vectors.astype(np.float16)
        finite = np.isfinite(stored).all(axis=1, keepdims=True).ravel()
        zero = ~stored.any(axis=1, keepdims=True).ravel() & cosine
        nul = np.fromiter((self._has_nul(i) for i in range(len(self))), dtype=bool, count=len(self))
        good = finite & ~zero & ~nul
        if good.all():
            return self
        rejected = list(self.rejected)
        for i in np.flatnonzero(~good).tolist():
            key = self.source_keys[i]
            if not finite[i]:
                rejected.append(RowError(key, Reason.NOT_FINITE, f"a NaN or infinite value as {storage}"))
            elif zero[i]:
                rejected.append(RowError(key, Reason.ZERO, f"all values are 0 as {storage}, which has no direction"))
            else:
                rejected.append(RowError(key, Reason.NUL, "text or metadata has a NUL character"))
        return replace(self.take(np.flatnonzero(good)), rejected=tuple(rejected))

    def _has_nul(self, row: int) -> bool:
        text = self.texts[row] if self.texts is not None else None
        metadata = self.metadata[row] if self.metadata is not None else None
        return (text is not None and "\0" in text) or (metadata is not None and _contains_nul(metadata))


def _contains_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any("\0" in name or _contains_nul(item) for name, item in value.items())
    return isinstance(value, list | tuple) and any(_contains_nul(item) for item in value)
