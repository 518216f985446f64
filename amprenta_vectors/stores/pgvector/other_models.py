"""The vectors of a table's other models, made from the texts of records and written in the same statement as these."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR

from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.schema.hashes import hash_embedding, hash_text, to_bigint
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.sql import to_text
from amprenta_vectors.stores.protocol import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What another model made of the texts that are written: a vector by key, None where it could make none."""

    column: ModelColumn
    vectors: Mapping[str, NDArray[np.float32] | None]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Prepared:
    """Records to write, the model that made their vectors, and what every other model made of their texts."""

    records: Sequence[Record]
    own: ModelColumn | None
    others: Sequence[Embedded]


@dataclass(frozen=True)
class OtherVectors:
    """The vectors of another model beside those that are written, in ``table``, which is from the catalogue."""

    table: VectorTable
    vectors: Mapping[str, NDArray[np.float32] | None]
    texts: Mapping[str, str]

    def columns(self) -> dict[str, Any]:
        """Return the type of each column that is written."""
        table = self.table
        types: dict[str, Any] = {table.embedding: (HALFVEC if table.storage == "halfvec" else VECTOR)(table.dimension)}
        return types | {name: sa.BigInteger() for name in (table.hash, table.text_hash) if name is not None}

    def values(self, key: str) -> dict[str, str | None]:
        """Return what each column gets, as text: the vector, and the hashes by which a run knows what it was made of.

        All are NULL for a record without a text, or whose text was not embedded: a run makes that good.
        """
        table, vector = self.table, self.vectors.get(key)
        if vector is None:
            return dict.fromkeys(self.columns())
        with np.errstate(over="ignore"):
            half = vector.astype(">f2")
        if table.storage == "halfvec" and not np.isfinite(half).all():
            return dict.fromkeys(self.columns())
        stored = (vector.astype(">f4") if table.storage == "vector" else half).tobytes()
        hashes: dict[str | None, str] = {
            table.hash: str(to_bigint(hash_embedding(stored))),
            table.text_hash: str(to_bigint(hash_text(self.texts[key]))),
        }
        kept: dict[str, str | None] = {name: value for name, value in hashes.items() if name is not None}
        return {table.embedding: to_text(vector), **kept}


def texts_of(records: Sequence[Record], table: VectorTable) -> dict[str, str]:
    """Return the text to embed of each record that has one, by key, as a run reads it from the row.

    Where several columns make the text that a run embeds, a record has not all of it, and none is returned.
    """
    if MODEL_SCOPE not in table.scope and (table.text is None or table.text_columns not in ((), (table.text,))):
        return {}
    return {record.key: text for record in records if record.text is not None and (text := record.text.strip())}


def embed_texts(
    model: str, embed: Callable[[Sequence[str]], NDArray[np.float32]], texts: Mapping[str, str]
) -> dict[str, NDArray[np.float32] | None]:
    """Return the vector of each text by key, None for each if the embedder fails, whatever it raises.

    A vector that a search would never find counts as none: one of zeros, or with a value that is no number.
    """
    if not texts:
        return {}
    try:
        vectors = np.asarray(embed(list(texts.values())), dtype=np.float32)
    except Exception as error:
        # A second model that fails never fails the application's write.
        log.warning("model %s embedded none of %d texts that were written: %s", model, len(texts), for_a_log(error))
        return dict.fromkeys(texts)
    return {
        key: vector if np.isfinite(vector).all() and vector.any() else None
        for key, vector in zip(texts, vectors, strict=True)
    }
