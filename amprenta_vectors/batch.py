"""The columnar vector batch, the only thing that flows from a source to a table, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.storable import fault_of, strip

Key = tuple[str, ...]
"""One target key: a value for each key column, as text; PostgreSQL casts it to the column's type."""

Vectors = NDArray[np.float32]

Sparse = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Indices from 0 and their values, of one length; every other value is 0."""

MAX_SPARSE_VALUES = 16_000
"""The most values other than 0 that pgvector's sparsevec holds (SPARSEVEC_MAX_NNZ)."""


@dataclass(frozen=True, eq=False)
class VectorBatch:
    """Rows read from a source, one column each, all of length ``n``.

    ``vectors`` is ``(n, dimension)`` float32, C-contiguous. ``source_keys`` may repeat: one source key can give several
    rows. ``keys`` is None until a key map has been applied. ``texts`` and ``metadata`` are None if the source has none,
    ``sparse`` if sparse values were not asked for. ``quarantined`` holds what the source gave and no row can carry (a
    vector of another length, a sparse-only record); nothing leaves a batch without standing there.
    """

    source_keys: Sequence[str]
    vectors: Vectors
    texts: Sequence[str | None] | None = None
    metadata: Sequence[Mapping[str, Any] | None] | None = None
    keys: Sequence[Key] | None = None
    sparse: Sequence[Sparse | None] | None = None
    quarantined: tuple[RowError, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.source_keys)
        columns: dict[str, Sequence[Any] | None] = {
            "texts": self.texts,
            "metadata": self.metadata,
            "keys": self.keys,
            "sparse": self.sparse,
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
        """Return the rows at ``positions``, in that order, with ``keys``, if given, in place of their own."""
        rows = [int(i) for i in positions]
        if keys is None and self.keys is not None:
            keys = [self.keys[i] for i in rows]
        return VectorBatch(
            source_keys=[self.source_keys[i] for i in rows],
            vectors=self.vectors[np.asarray(rows, dtype=np.intp)],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
            metadata=None if self.metadata is None else [self.metadata[i] for i in rows],
            keys=keys,
            sparse=None if self.sparse is None else [self.sparse[i] for i in rows],
            quarantined=self.quarantined,
        )

    def validated(
        self, *, cosine: bool, storage: Literal["vector", "halfvec"] = "vector", hint: str | None = None
    ) -> VectorBatch:
        """Return the rows that can be stored; the others stand in ``quarantined`` with their reason.

        pgvector refuses NaN and infinite values. A zero vector has no direction: under cosine no index holds it and no
        query finds it. A halfvec is judged by what its cast to float16 leaves: 70,000 is infinite there, and 1e-9 is 0.
        PostgreSQL's text and jsonb cannot hold the NUL character, nor JSON NaN;
        ``hint`` says what to do about those.
        """
        if self._is_plainly_good(storage):
            return self
        with np.errstate(over="ignore"):
            stored = self.vectors if storage == "vector" else self.vectors.astype(np.float16)
        finite = np.isfinite(stored).all(axis=1, keepdims=True).ravel()
        zero = ~stored.any(axis=1, keepdims=True).ravel() & cosine
        faults = [self._fault_of(i) for i in range(len(self))]
        good = finite & ~zero & np.fromiter((fault is None for fault in faults), dtype=bool, count=len(self))
        if good.all():
            return self
        quarantined = list(self.quarantined)
        for i in np.flatnonzero(~good).tolist():
            key = self.source_keys[i]
            if not finite[i]:
                quarantined.append(RowError(key, Reason.NOT_FINITE, f"a NaN or infinite value as {storage}"))
            elif zero[i]:
                quarantined.append(RowError(key, Reason.ZERO, f"all values are 0 as {storage}, which has no direction"))
            elif (fault := faults[i]) is not None:
                reason, detail = fault
                quarantined.append(RowError(key, reason, detail if hint is None else f"{detail}; {hint}"))
        return replace(self.take(np.flatnonzero(good)), quarantined=tuple(quarantined))

    def _is_plainly_good(self, storage: str) -> bool:
        """Return whether the squared lengths settle it: none is 0 (perhaps underflow), all are finite (no overflow)."""
        if storage != "vector" or self.texts is not None or self.metadata is not None:
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.vecdot(self.vectors, self.vectors)
        return bool((squares > 0).all() and np.isfinite(squares).all())

    def with_sparse(self, dimension: int) -> VectorBatch:
        """Return the rows with their sparse values as ``sparsevec(dimension)`` holds them: ascending, without zeros.

        Sparse values that it cannot hold are left out and stand in ``quarantined``; their row stays.
        """
        quarantined = list(self.quarantined)
        fitted: list[Sparse | None] = []
        for key, values in zip(self.source_keys, self.sparse or [None] * len(self), strict=True):
            try:
                fitted.append(None if values is None else fit_sparse(*values, dimension))
            except ValueError as error:
                fitted.append(None)
                quarantined.append(RowError(key, Reason.SPARSE_REFUSED, str(error)))
        return replace(self, sparse=fitted, quarantined=tuple(quarantined))

    def stripped(self) -> VectorBatch:
        """Return the batch with texts and metadata as PostgreSQL can hold them; each row that changed is noted."""
        texts, metadata, notes = list(self.texts or ()), list(self.metadata or ()), list(self.quarantined)
        for i in range(len(self)):
            if self._fault_of(i) is None:
                continue
            try:
                text, fields, changed = strip(*self._content(i))
            except ValueError:
                # It stays as it is, and is quarantined.
                continue
            notes.append(RowError(self.source_keys[i], Reason.NUL_STRIPPED, changed))
            if texts:
                texts[i] = text
            if metadata:
                metadata[i] = fields
        if len(notes) == len(self.quarantined):
            return self
        return replace(self, texts=texts or self.texts, metadata=metadata or self.metadata, quarantined=tuple(notes))

    def _content(self, row: int) -> tuple[str | None, Mapping[str, Any] | None]:
        text = self.texts[row] if self.texts is not None else None
        return text, self.metadata[row] if self.metadata is not None else None

    def _fault_of(self, row: int) -> tuple[Reason, str] | None:
        return fault_of(*self._content(row))


def fit_sparse(indices: NDArray[Any], values: NDArray[Any], dimension: int) -> Sparse:
    """Return sparse values as ``sparsevec(dimension)`` holds them. Raises ValueError saying why it cannot."""
    if len(indices) != len(values):
        raise ValueError(f"{len(indices)} sparse indices with {len(values)} values")
    if not np.isfinite(values).all():
        raise ValueError("a sparse value is NaN or infinite")
    order = np.argsort(indices, kind="stable")
    order = order[values[order] != 0]
    fitted = indices[order].astype(np.int64), values[order].astype(np.float32)
    if len(order) > MAX_SPARSE_VALUES:
        raise ValueError(f"{len(order)} sparse values; a sparsevec holds {MAX_SPARSE_VALUES}")
    if len(order) and fitted[0][-1] >= dimension:
        raise ValueError(f"sparse index {fitted[0][-1]}; sparsevec({dimension}) holds 0 to {dimension - 1}")
    if (np.diff(fitted[0]) == 0).any():
        raise ValueError("a sparse index is given twice")
    return fitted
