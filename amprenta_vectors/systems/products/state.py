"""What a catalogue and its ChromaDB have, in products."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.schema.keymaps import KeyMap, look_up
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.systems.products.rows import filled_by_id

SHOWN = 5
"""Chroma ids without a product that are named."""


@dataclass
class State:
    """``to_move`` products have no embedding and Chroma has one; ``unmatched`` ids of Chroma are no product's.

    ``records`` is how many Chroma has in all; ``shown`` are the first ids that are no product's.
    """

    products: int
    embedded: int
    records: int = 0
    in_chroma: int = 0
    to_move: int = 0
    unmatched: int = 0
    shown: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Products without an embedding."""
        return self.products - self.embedded

    @property
    def absent(self) -> int:
        """Products without an embedding, here or in Chroma."""
        return self.missing - self.to_move


class _Distinct:
    """How many different names were added, at 8 bytes each: two records of Chroma may be one product's."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, names: Iterable[str]) -> None:
        self._hashes.extend(map(hash, names))

    def count(self) -> int:
        return len(np.unique(np.asarray(self._hashes)))


def count_products(connection: Connection, slice_: Slice) -> State:
    """Without a look at Chroma. Every product counts, also those that are sold no more."""
    products = connection.execute(sa.select(sa.func.count()).select_from(slice_.rows)).scalar_one()
    return State(products, products - slice_.count_empty(connection))


def look_at_both(engine: Engine, slice_: Slice, source: Source) -> State:
    """Counts of both ends, by a listing of all ids of ``source``; vectors are read of ids that tell no product alone.

    Raises `TransientError` and its kind where Chroma goes away.
    """
    with engine.connect() as connection:
        state = count_products(connection, slice_)
    in_chroma, to_move = _Distinct(), _Distinct()
    for keys, _ in source.iter_keys():
        matched = look_up(slice_.key_map, keys)
        found = [key[0] for known in matched.values() for key in known]
        strange = [key for key in keys if key not in matched]
        if strange:
            # Their metadata may tell the product.
            more, strange = _matched(slice_.key_map, source.fetch(strange))
            found += more
        with engine.connect() as connection:
            filled = filled_by_id(connection, slice_.table, found)
        state.records += len(keys)
        in_chroma.add(filled)
        to_move.add(name for name, has_one in filled.items() if not has_one)
        state.unmatched += len(strange)
        state.shown += strange[: SHOWN - len(state.shown)]
    state.in_chroma, state.to_move = in_chroma.count(), to_move.count()
    return state


def _matched(key_map: KeyMap, batch: VectorBatch) -> tuple[list[str], list[str]]:
    """The products' ids, and the source keys that are no product's."""
    matched = key_map.apply(batch)
    return [key[0] for key in matched.keys or ()], [error.key for error in matched.quarantined]
