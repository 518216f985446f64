"""How an index is searched: by what it holds of a vector, and by what was set or found out for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from amprenta_vectors.pg.types import IndexMethod, IndexStorage
from amprenta_vectors.schema.ann_indexes import Serving
from amprenta_vectors.schema.vector_table import VectorTable

MAX_EF_SEARCH = 1000
"""pgvector's own limit."""
ITERATIVE_SCAN = "relaxed_order"
"""Finds more than strict order does; the store sorts the hits itself."""

DEFAULT_EF_SEARCH = 300
"""On 28,515 real embeddings of 256 dimensions, HNSW with m 16 and ef_construction 64: recall@10 0.997 (200: 0.990)."""
DEFAULT_OVERSAMPLING: dict[IndexStorage, int] = {"vector": 4, "halfvec": 4, "bit": 100}
"""Rows taken from an index for each hit. An index that is scanned on for what passes a filter stops at the first rows
that do: of four times as many the nearest are the right ones more often (recall@10 with a filter that 5 % pass rises
from 0.96 to 0.995). The signs alone tell neighbours apart so badly that many are compared by their distance: of 64
times as many the nearest are right in 0.991, of 100 times in 0.997 (the same rows, 256 signs each)."""
MOST_SPARE: dict[IndexStorage, int] = {"vector": 1000, "halfvec": 1000, "bit": 20_000}
"""Rows taken beyond the hits; of signs as many as ``hnsw.max_scan_tuples`` lets a scan go."""


@dataclass(frozen=True)
class SearchSettings:
    """What searches of ``table`` are made with; None is the default of what serves it, and without an index of hnsw.

    ``ef_search`` is how many candidates a search of an hnsw index keeps at least, ``probes`` how many lists one of an
    ivfflat index reads, ``oversampling`` how many rows are taken from an index for each hit, of which the nearest by
    their exact distance are the answer.
    """

    table: VectorTable = field(repr=False)
    serving: Serving | None
    ef_search: int | None = None
    probes: int | None = None
    oversampling: int | None = None

    @property
    def storage(self) -> IndexStorage:
        """What of a vector a search is ordered by: what the index holds; without one the vector itself."""
        return self.table.storage if self.serving is None else self.serving.storage

    @property
    def methods(self) -> frozenset[IndexMethod]:
        """The kinds of index that PostgreSQL may choose among."""
        return frozenset({"hnsw"}) if self.serving is None else self.serving.methods

    def candidates(self, top_k: int) -> int:
        """How many rows are taken from an index to choose ``top_k`` of."""
        wanted = (self.oversampling or DEFAULT_OVERSAMPLING[self.storage]) * top_k
        return min(wanted, top_k + MOST_SPARE[self.storage])

    def kept(self, top_k: int) -> int:
        """``ef_search`` of a search for ``top_k``; of signs, all candidates at once."""
        least = self.candidates(top_k) if self.storage == "bit" else top_k
        return min(max(least, self.ef_search or DEFAULT_EF_SEARCH), MAX_EF_SEARCH)

    @property
    def lists_read(self) -> int:
        """``probes`` of a search."""
        lists = 1 if self.serving is None else self.serving.lists or 1
        return self.probes or default_probes(lists)


def default_probes(lists: int) -> int:
    """How many of an ivfflat index's lists are read: on 25,000 real embeddings 20 of 25, recall@10 0.993 (10: 0.93)."""
    return min(lists, math.ceil(4 * math.sqrt(lists)))
