"""What small and large models cost and find, and what a partial index for each model is worth.

    python benchmarks/models.py [--rows 20000] [--queries 200]

The chunks are the texts of Python's standard library; the models are WordLlama at 256, 128 and 64 dimensions, and a
second one of 64 that shares a column with the third. The judged queries are the first sentences of docstrings: relevant
is the source of that function.
"""

from __future__ import annotations

import re
import statistics
import time
from contextlib import closing

import click
import sqlalchemy as sa
from tools import open_stage, print_machine

from amprenta_vectors.compare.judged import JudgedQuery
from amprenta_vectors.compare.models import ModelReport, compare_models
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.moves.models.adding import NewModel, add_model
from amprenta_vectors.moves.models.migrating import migrate_model
from amprenta_vectors.moves.models.tables import open_model_table
from amprenta_vectors.sandbox.corpus import read_corpus
from amprenta_vectors.sandbox.legacy_models import judged_queries, key_of
from amprenta_vectors.schema.models import MODEL_SCOPE
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS
from amprenta_vectors.stores.factory import store_options
from amprenta_vectors.stores.pgvector.store import PgVectorStore

MODELS = (
    NewModel("256", "wordllama", dimension=256),
    NewModel("128", "wordllama", dimension=128),
    NewModel("64", "wordllama", dimension=64),
    NewModel("64-prefixed", "wordllama", {"text_prefix": "passage: "}, dimension=64),
)


@click.command()
@click.option("--rows", default=20_000, show_default=True)
@click.option("--queries", default=200, show_default=True)
def main(rows: int, queries: int) -> None:
    """Print every figure."""
    print_machine()
    with open_stage() as stage:
        settings = Settings.load(database_url=stage.server.url("postgres"), table="chunk_embeddings")
        upgrade(settings, "models")
        asked = fill(settings, rows)[:queries]
        click.echo(f"{rows:,} chunks, {len(asked)} judged queries, top 10\n")
        for new in MODELS:
            table = open_model_table(settings)
            add_model(settings, table, new)
            began = time.perf_counter()
            table = table.again()
            migrate_model(settings, table, table.named(new.name))
            click.echo(f"{new.name:<12} embedded, indexed and verified in {time.perf_counter() - began:.1f} s")
            table.engine.dispose()
        compared(settings, asked)
        by_partial(settings, asked)


def fill(settings: Settings, rows: int) -> list[JudgedQuery]:
    """Insert the documents and chunks; return the judged queries."""
    chunks = [chunk for chunk in read_corpus(rows) if re.search(r"\w", chunk.text)]
    engine = create_engine(settings)
    modules = dict.fromkeys(chunk.metadata["module"] for chunk in chunks)
    values = [
        {"id": key_of(chunk.id), "document": key_of(chunk.metadata["module"]), "number": number, "text": chunk.text}
        for number, chunk in enumerate(chunks)
    ]
    with engine.begin() as connection:
        documents = [{"id": key_of(module), "title": module} for module in modules]
        connection.execute(sa.text("INSERT INTO documents (id, title) VALUES (:id, :title)"), documents)
        insert = "INSERT INTO chunks (id, document_id, chunk_index, content) VALUES (:id, :document, :number, :text)"
        connection.execute(sa.text(insert), values)
    engine.dispose()
    return [JudgedQuery(each["query"], dict.fromkeys(each["relevant"], 1.0)) for each in judged_queries(chunks)]


def compared(settings: Settings, asked: list[JudgedQuery]) -> None:
    """Print what each model finds, and costs."""
    table = open_model_table(settings)
    with closing(open_store(settings)) as store, table.engine.connect() as connection:
        pairs = [(model, table.resolved(connection, model)) for model in table.models]
        reports: dict[str, ModelReport] = {}
        for other in pairs[1:]:
            found = compare_models(table.engine, store, (pairs[0], other), asked, top_k=10)
            reports |= {report.name: report for report in found.models}
    click.echo("\nmodel         nDCG@10  MRR@10  recall@10  embed ms  search p50 ms  column MB  index MB")
    for report in reports.values():
        click.echo(
            f"{report.name:<12} {report.ndcg:8.3f} {report.mrr:7.3f} {report.recall:10.4f} {report.embed_ms:9.2f} "
            f"{report.search_p50_ms:14.2f} {report.column_bytes / 2**20:10.1f} {report.index_bytes / 2**20:9.1f}"
        )
    table.engine.dispose()


def by_partial(settings: Settings, asked: list[JudgedQuery]) -> None:
    """Print searches of a column that two models share: by an index for each, and by one index of both."""
    table = open_model_table(settings)
    model = table.named("64").model.name
    with closing(open_store(settings)) as store:
        embedder = store.models.embedder(table.named("64").model)
        embedded = [embedder.embed_query(each.text) for each in asked]
    click.echo("\nthe column that two models share   p50 ms  recall@10")
    for name, change in (("an index for each model", None), ("one index of all rows", _to_one_index)):
        if change is not None:
            with table.engine.begin() as connection:
                change(connection)
        with closing(open_store(settings)) as store:
            exact = [store.query(vector, exact=True, model=model) for vector in embedded]
            taken, found = [], []
            for vector, nearest in zip(embedded, exact, strict=True):
                began = time.perf_counter()
                hits = store.query(vector, model=model)
                taken.append((time.perf_counter() - began) * 1000)
                found.append(sum(hit.score >= nearest[-1].score - 1e-6 for hit in hits) / len(nearest))
        click.echo(f"{name:<34} {statistics.median(taken):6.2f} {statistics.mean(found):10.4f}")
    table.engine.dispose()


def open_store(settings: Settings) -> PgVectorStore:
    """Open the store of the embeddings; whose rows a query reads is its model's."""
    return PgVectorStore(create_engine(settings), CHUNK_EMBEDDINGS, {MODEL_SCOPE: ""}, store_options(settings))


def _to_one_index(connection: sa.Connection) -> None:
    connection.exec_driver_sql("DROP INDEX idx_embeddings_hnsw_64, idx_embeddings_hnsw_64_2")
    connection.exec_driver_sql(
        "CREATE INDEX idx_embeddings_hnsw_64 ON chunk_embeddings USING hnsw (embedding_64 vector_cosine_ops)"
    )


if __name__ == "__main__":
    main()
