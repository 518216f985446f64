"""What a catalogue and its ChromaDB have, in products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.keys import count_empty
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.integrations.product_rows import filled_by_id
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Source


@dataclass
class State:
    """``to_move`` products have no embedding and Chroma has one; ``unmatched`` are ids of Chroma that are no product's.

    ``records`` is how many Chroma has in all.
    """

    products: int
    embedded: int
    records: int = 0
    in_chroma: int = 0
    to_move: int = 0
    unmatched: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Products without an embedding."""
        return self.products - self.embedded

    @property
    def absent(self) -> int:
        """Products without an embedding, here or in Chroma."""
        return self.missing - self.to_move


def count_products(connection: Connection, table: VectorTable) -> State:
    """Without a look at Chroma. Every product counts, also those that are sold no more."""
    products = connection.execute(sa.select(sa.func.count()).select_from(to_clause(table))).scalar_one()
    return State(products, products - count_empty(connection, table, {}))


def look_at_both(engine: Engine, table: VectorTable, source: Source, key_map: KeyMap) -> State:
    """Counts of both ends, by a listing of all ids of ``source``; vectors are read of ids that tell no product alone.

    Raises `TransientError` and its kind where Chroma goes away.
    """
    with engine.connect() as connection:
        state = count_products(connection, table)
    for keys, _ in source.iter_keys():
        found, strange = _matched(key_map, _without_vectors(keys))
        if strange:
            # Their metadata may tell the product.
            more, strange = _matched(key_map, source.fetch(strange))
            found += more
        with engine.connect() as connection:
            filled = filled_by_id(connection, table, found)
        state.records += len(keys)
        state.in_chroma += len(filled)
        state.to_move += sum(not has_one for has_one in filled.values())
        state.unmatched += strange
    return state


def _matched(key_map: KeyMap, batch: VectorBatch) -> tuple[list[str], list[str]]:
    """The products' ids, and the source keys that are no product's."""
    matched = key_map.apply(batch)
    return [key[0] for key in matched.keys or ()], [error.key for error in matched.rejected]


def _without_vectors(keys: Sequence[str]) -> VectorBatch:
    return VectorBatch(source_keys=list(keys), vectors=np.empty((len(keys), 0), dtype=np.float32))
