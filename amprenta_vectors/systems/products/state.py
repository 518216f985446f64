"""The state of a catalogue and its ChromaDB, counted in products."""

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
"""The most Chroma ids without a product that are named."""


@dataclass
class State:
    """The counts of both ends. ``to_move`` products lack an embedding that Chroma has.

    ``records`` is how many records Chroma has in all, ``unmatched`` how many of their ids have no product, ``shown``
    the first of those ids.
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
        """The number of products without an embedding."""
        return self.products - self.embedded

    @property
    def absent(self) -> int:
        """The number of products without an embedding here and in Chroma."""
        return self.missing - self.to_move


class _Distinct:
    """A count of different names, at 8 bytes for each one added: two records of Chroma may be of one product."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, names: Iterable[str]) -> None:
        self._hashes.extend(map(hash, names))

    def count(self) -> int:
        return len(np.unique(np.asarray(self._hashes)))


def count_products(connection: Connection, slice_: Slice) -> State:
    """Count the table's products without a look at Chroma; every product counts, also those that are sold no more."""
    products = connection.execute(sa.select(sa.func.count()).select_from(slice_.rows)).scalar_one()
    return State(products, products - slice_.count_empty(connection))


def look_at_both(engine: Engine, slice_: Slice, source: Source) -> State:
    """Count both ends by listing all ids of ``source``; a record is read only if its id does not identify a product.

    Raises `TransientError` and its subclasses if Chroma goes away.
    """
    with engine.connect() as connection:
        state = count_products(connection, slice_)
    in_chroma, to_move = _Distinct(), _Distinct()
    for keys, _ in source.iter_keys():
        matched = look_up(slice_.key_map, keys)
        found = [key[0] for known in matched.values() for key in known]
        strange = [key for key in keys if key not in matched]
        if strange:
            # Their metadata may identify the product.
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
    """Return the products' ids, and the source keys without a product."""
    matched = key_map.apply(batch)
    return [key[0] for key in matched.keys or ()], [error.key for error in matched.quarantined]
