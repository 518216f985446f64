"""Two models of a table on the same queries: a table to decide by before queries are switched."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.compare.judged import JudgedQuery, ndcg, reciprocal_rank
from amprenta_vectors.schema.ann_indexes import ann_indexes
from amprenta_vectors.schema.expressions import in_scope, to_clause
from amprenta_vectors.schema.models import ModelColumn
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.comparison import TIE
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Hit

COMPLETE = 0.99
"""The share of the other's rows from which a model counts as complete."""
MOST_AMONG = 2000
"""The most rows that two models are ranked on where one of them is not complete."""


@dataclass(frozen=True)
class ModelReport:
    """One model's answers.

    ``recall`` is the share of the nearest rows that the index found, None if there was nothing to find. ``ndcg`` and
    ``mrr`` are means over the judged queries, None without any. Sizes are in bytes, of the rows that have a vector.
    """

    name: str
    dimension: int
    rows: int
    recall: float | None
    ndcg: float | None
    mrr: float | None
    embed_ms: float
    search_p50_ms: float
    search_p95_ms: float
    column_bytes: int
    index_bytes: int


@dataclass(frozen=True)
class ModelComparison:
    """Both models on the same queries. ``overlap`` is the mean share of hits, by key, that both gave.

    Where one of them has not embedded all rows yet, ranks and overlap are by an exact search ``among`` so many rows
    that the latter has; None where they are by the searches of the application.
    """

    queries: int
    judged: int
    among: int | None
    top_k: int
    overlap: float | None
    models: tuple[ModelReport, ModelReport]


@dataclass
class _Asked:
    keys: list[list[str]]
    recall: list[float]
    embed_ms: list[float]
    search_ms: list[float]


def compare_models(
    engine: Engine,
    store: PgVectorStore,
    models: tuple[tuple[ModelColumn, VectorTable], tuple[ModelColumn, VectorTable]],
    queries: Sequence[JudgedQuery],
    *,
    top_k: int,
    clock: Callable[[], float] = time.perf_counter,
) -> ModelComparison:
    """Embed each query by each model and search that model's column, by its index and exactly; nothing is written.

    Raises what the models' embedders raise.
    """
    rows = [store.count(model=column.model.name) for column, _ in models]
    fewer = models[int(rows[1] < rows[0])][0].model.name
    among = store.sample_keys(MOST_AMONG, model=fewer) if min(rows) < COMPLETE * max(rows) else None
    if among is not None:
        queries = [_within(query, set(among)) for query in queries]
    answers = [_ask(store, column, queries, top_k, among, clock) for column, _ in models]
    shares = [
        len(set(ours) & set(theirs)) / max(len(ours), len(theirs))
        for ours, theirs in zip(answers[0].keys, answers[1].keys, strict=True)
        if ours or theirs
    ]
    first, second = (
        _report(engine, column, table, asked, queries, top_k)
        for (column, table), asked in zip(models, answers, strict=True)
    )
    judged = sum(bool(query.relevant) for query in queries)
    overlap = float(np.mean(shares)) if shares else None
    number = None if among is None else len(among)
    return ModelComparison(len(queries), judged, number, top_k, overlap, (first, second))


def _within(query: JudgedQuery, keys: Collection[str]) -> JudgedQuery:
    """Return a query of which only rows with one of ``keys`` are relevant."""
    return replace(query, relevant={key: grade for key, grade in query.relevant.items() if key in keys})


def _ask(
    store: PgVectorStore,
    column: ModelColumn,
    queries: Sequence[JudgedQuery],
    top_k: int,
    among: Sequence[str] | None,
    clock: Callable[[], float],
) -> _Asked:
    asked = _Asked([], [], [], [])
    embedder, name = store.models.embedder(column.model), column.model.name
    # The first query opens connections and loads the model, which are not to be measured.
    store.query(embedder.embed_query(queries[0].text), top_k=top_k, model=name)
    for query in queries:
        begin = clock()
        vector = embedder.embed_query(query.text)
        embedded = clock()
        hits = store.query(vector, top_k=top_k, filter=query.filter, model=name)
        asked.search_ms.append((clock() - embedded) * 1000)
        asked.embed_ms.append((embedded - begin) * 1000)
        nearest = store.query(vector, top_k=top_k, filter=query.filter, exact=True, model=name)
        if among is None:
            asked.keys.append([hit.key for hit in hits])
        else:
            scores = store.scores(vector, among, model=name)
            sign = 1 if store.distance == "l2" else -1
            asked.keys.append(sorted(scores, key=lambda key: (sign * scores[key], key))[:top_k])
        if nearest:
            asked.recall.append(_found(hits, nearest, lower=store.distance == "l2"))
    return asked


def _found(hits: Sequence[Hit], nearest: Sequence[Hit], *, lower: bool) -> float:
    """Return the share of the nearest rows that were found; a hit as near as the last of them counts."""
    sign = -1 if lower else 1
    last = nearest[-1].score
    return sum(sign * (hit.score - last) >= -TIE for hit in hits) / len(nearest)


def _report(
    engine: Engine,
    column: ModelColumn,
    table: VectorTable,
    asked: _Asked,
    queries: Sequence[JudgedQuery],
    top_k: int,
) -> ModelReport:
    judged = [(keys, query.relevant) for keys, query in zip(asked.keys, queries, strict=True) if query.relevant]
    p50, p95 = np.percentile(asked.search_ms, [50, 95])
    rows = to_clause(table)
    embedding = rows.c[table.embedding]
    sizes = sa.select(sa.func.count(embedding), sa.func.coalesce(sa.func.sum(sa.func.pg_column_size(embedding)), 0))
    with engine.connect() as connection:
        count, column_bytes = connection.execute(sizes.select_from(rows)).one()
        oids = [index.oid for index in ann_indexes(connection, table)]
        index_bytes = sum(connection.scalar(sa.select(sa.func.pg_relation_size(oid))) or 0 for oid in oids)
    return ModelReport(
        name=column.model.name,
        dimension=table.dimension,
        rows=count,
        recall=float(np.mean(asked.recall)) if asked.recall else None,
        ndcg=float(np.mean([ndcg(keys, relevant, top_k) for keys, relevant in judged])) if judged else None,
        mrr=float(np.mean([reciprocal_rank(keys, relevant, top_k) for keys, relevant in judged])) if judged else None,
        embed_ms=float(np.median(asked.embed_ms)),
        search_p50_ms=float(p50),
        search_p95_ms=float(p95),
        column_bytes=int(column_bytes),
        index_bytes=int(index_bytes),
    )


def sampled_queries(
    engine: Engine,
    table: VectorTable,
    scope: Mapping[str, str],
    columns: Sequence[str],
    most: int,
    seed: int,
) -> list[JudgedQuery]:
    """Return the beginnings of rows' own texts as queries, the same for the same seed and rows."""
    rows = to_clause(table, *columns)
    text = sa.func.concat_ws(" ", *(sa.cast(rows.c[name], sa.Text) for name in columns))
    key = sa.func.concat_ws("/", *(sa.cast(rows.c[name], sa.Text) for name in table.key))
    embedded = rows.c[table.embedding].is_not(None), text.op("~")(r"\w"), *in_scope(table, rows, scope)
    statement = sa.select(text).select_from(rows).where(*embedded)
    lottery = sa.func.hashtextextended(key, seed)
    with engine.connect() as connection:
        texts = connection.execute(statement.order_by(lottery, key).limit(most)).scalars()
        return [JudgedQuery(" ".join(each.split()[:WORDS])) for each in texts]


WORDS = 12
"""The words of a row's text that are asked for: a question is about as long."""
