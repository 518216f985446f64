"""Records as the store writes them: all text, and what PostgreSQL would refuse found beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.filters.values import is_storable
from amprenta_vectors.stores.pgvector.sql import to_text

KEYS_NAMED = 20
"""Keys that a message or a hint lists."""


@dataclass(frozen=True)
class Given:
    """One record as it is written; ``own`` is whether the row that is there is ours whole.

    ``others`` are the values of the other models' columns that `Others` writes beside it, by their names.
    """

    key: str
    vector: str
    text: str | None
    metadata: str
    own: bool = False
    others: Mapping[str, str | None] = field(default_factory=dict)


def one_of(refused: Sequence[RowError]) -> RowError:
    """Return one error for several rows: the first, with the keys of the others."""
    first, *others = refused
    named = ", ".join(repr(error.key) for error in others[:KEYS_NAMED])
    more = f" and {len(others) - KEYS_NAMED} more" if len(others) > KEYS_NAMED else ""
    rest = f"; likewise {named}{more}; the others were written" if others else "; the others were written"
    return RowError(first.key, first.reason, first.detail + rest)


def to_records(batch: VectorBatch, table: VectorTable) -> list[Given]:
    """Return a batch as it is written. Raises `RowError` for what PostgreSQL would refuse."""
    if table.storage == "halfvec":
        _check_half(batch)
    records = []
    for key, vector, text, fields in zip(
        batch.source_keys, batch.vectors, batch.texts or (), batch.metadata or (), strict=True
    ):
        metadata = _encode(key, fields)
        if not all(map(is_storable, (key, text or "", metadata))):
            raise RowError(key, Reason.REFUSED, "key, text or metadata has a character that PostgreSQL cannot hold")
        if text is not None and table.text is None:
            raise RowError(key, Reason.REFUSED, f"table {table.qualified_name} has no text column for its text")
        if metadata != "{}" and table.metadata is None:
            raise RowError(key, Reason.REFUSED, f"table {table.qualified_name} has no metadata column")
        records.append(Given(key, to_text(vector), text, metadata))
    return records


def _check_half(batch: VectorBatch) -> None:
    with np.errstate(over="ignore"):
        fits = np.isfinite(batch.vectors.astype(np.float16)).all(axis=1)
    if not fits.all():
        key = batch.source_keys[int(np.argmin(fits))]
        raise RowError(key, Reason.REFUSED, "the vector has a value beyond the range of halfvec, 65504")


def _encode(key: str, metadata: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(metadata or {}), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RowError(key, Reason.REFUSED, f"the metadata is no JSON: {error}") from None
