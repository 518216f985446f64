"""Finds, by measurement, the cheapest setting of a search that finds enough."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from sqlalchemy.engine import Connection

from amprenta_vectors.compare.queries import Query
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.indexes import DEFAULT_OPTIONS
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.search_settings import SearchSetting
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.comparison import Nearest, nearest_rows
from amprenta_vectors.stores.pgvector.search_settings import SearchSettings
from amprenta_vectors.stores.pgvector.store import PgVectorStore

EF_SEARCH = (10, 15, 20, 30, 40, 60, 80, 100, 120, 160, 200, 250, 300, 400, 500, 600, 800, 1000)
"""Values tried of ``hnsw.ef_search``; 1000 is pgvector's own limit."""
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Values tried of ``ivfflat.probes``, as far as the index has lists."""
OVERSAMPLING = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 100, 150, 200, 300, 400, 600, 1000)
"""Rows for each hit, tried on an hnsw index that holds signs; there they decide more than ``ef_search``."""


@dataclass(frozen=True)
class Trial:
    """One setting on all queries: its recall, by distance, and the median time of a query."""

    value: int
    recall: float
    p50_ms: float


@dataclass(frozen=True)
class Tuning:
    """The settings tried, cheapest first. ``chosen`` is the first that reaches ``target``; None if none does."""

    setting: SearchSetting
    target: float
    queries: int
    top_k: int
    trials: tuple[Trial, ...]
    chosen: Trial | None


def choices(connection: Connection, table: VectorTable, top_k: int) -> tuple[SearchSetting, Sequence[int]]:
    """Return the setting that searches of the index on a table from the catalogue use, with values from cheap to dear.

    Raises `ConfigError` if no index serves.
    """
    served = serving(table, ann_indexes(connection, table))
    if served is None:
        raise ConfigError(
            f"{table.target} has no valid hnsw or ivfflat index to tune", hint="amprenta-vectors index build"
        )
    if "hnsw" not in served.methods:
        lists = served.lists or int(DEFAULT_OPTIONS["ivfflat"]["lists"])
        return "probes", [*(value for value in PROBES if value < lists), lists]
    if served.storage == "bit":
        return "oversampling", OVERSAMPLING
    # The store takes at least this many candidates from the index; with fewer at once it goes back for more.
    least = min(SearchSettings(table, served).candidates(top_k), EF_SEARCH[-1])
    return "ef_search", [least, *(value for value in EF_SEARCH if value > least)]


def tune(
    open_store: Callable[[int], PgVectorStore],
    setting: SearchSetting,
    values: Sequence[int],
    queries: Sequence[Query],
    *,
    top_k: int,
    target: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """Try ``values``, ascending, on a store opened with each; choose the first whose recall reaches ``target``.

    More candidates never find less, so each trial rules out half of the values that are left. Raises `ConfigError` if
    the queries find nothing.
    """
    with closing(open_store(values[0])) as reference:
        wanted = [nearest_rows(reference, query.vector, top_k, query.filter) for query in queries]
    if not any(nearest.rows for nearest in wanted):
        raise ConfigError(
            "the queries find nothing, by an exact search either", hint="check the namespace: --namespace NAME"
        )
    tried: dict[int, Trial] = {}

    def reaches(value: int) -> bool:
        with closing(open_store(value)) as store:
            tried[value] = _try(store, value, queries, wanted, top_k, clock)
        return tried[value].recall >= target

    place = bisect_left(values, True, key=reaches)
    chosen = tried[values[place]] if place < len(values) else None
    return Tuning(setting, target, len(queries), top_k, tuple(tried[value] for value in sorted(tried)), chosen)


def _try(
    store: PgVectorStore,
    value: int,
    queries: Sequence[Query],
    wanted: Sequence[Nearest],
    top_k: int,
    clock: Callable[[], float],
) -> Trial:
    # The first query opens connections, which are not to be measured.
    store.query(queries[0].vector, top_k=top_k, filter=queries[0].filter)
    found, seconds = 0, []
    for query, nearest in zip(queries, wanted, strict=True):
        start = clock()
        hits = store.query(query.vector, top_k=top_k, filter=query.filter)
        seconds.append(clock() - start)
        found += sum(nearest.reached_by(hit.score) for hit in hits)
    return Trial(value, found / sum(nearest.rows for nearest in wanted), float(np.median(seconds)) * 1000)
