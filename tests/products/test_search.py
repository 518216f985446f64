"""Products are found by likeness and filters in one search: always as many as there are, never one that is not sold."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sqlalchemy as sa
from catalogue import rows
from chroma_tools import ChromaServer
from click.testing import CliRunner
from databases import janitor

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.doctor.examine import examine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.errors import FilterUnsupported, TransientError
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.stores.composites import late
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.systems.products.search import ProductSearch, product_settings, to_filter

QUESTION = "read and write compressed files"
Open = Callable[..., ProductSearch]


@pytest.fixture
def open_search(migrated_url: str, system: dict[str, str]) -> Iterator[Open]:
    """A function that opens a search by settings, pgvector alone if they do not say."""
    opened: list[ProductSearch] = []

    def open_(**settings: Any) -> ProductSearch:
        given: dict[str, Any] = {"vector_backend": "pgvector"} if "product_search_strategy" not in settings else {}
        given |= {"database_url": migrated_url, "chroma_path": system["CHROMA_PATH"], "embedder": "wordllama"}
        given |= {"pgvector_similarity_threshold": -1, "chroma_similarity_threshold": -1}
        opened.append(ProductSearch.open(product_settings(**{**given, **settings})))
        return opened[-1]

    yield open_
    for search in opened:
        search.close()


def expected(engine: sa.Engine, where: str, limit: int) -> list[str]:
    """The ids of the nearest active products that SQL's own condition leaves, by reading every one."""
    found = rows(engine, f"SELECT id::text, embedding::text FROM products WHERE active AND {where}")
    asked = WordLlamaEmbedder().embed([QUESTION])[0]
    vectors = np.array([np.fromstring(row.embedding[1:-1], np.float32, sep=",") for row in found]).reshape(-1, 256)
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1)
    return [found[place].id for place in np.argsort(-cosines)[:limit]]


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "true"),
    ({"category": "class"}, "category = 'class'"),
    ({"category": "module"}, "category = 'module'"),
    ({"category": ["class", "module"], "min_stock": 1}, "category IN ('class', 'module') AND stock >= 1"),
    ({"brand": "argparse", "max_price": 9.99}, "brand = 'argparse' AND price <= 9.99"),
    ({"brand": "ast", "max_price": 20.5}, "brand = 'ast' AND price <= 20.5"),
    ({"min_price": 5, "max_price": 20.5, "category": "function"}, "price BETWEEN 5 AND 20.5 AND category = 'function'"),
    ({"brand": "no such brand"}, "false"),
]


def test_the_nearest_that_pass_every_filter_come_back_as_many_as_there_are(
    open_search: Open, migrated_engine: sa.Engine
) -> None:
    search = open_search()
    for filters, where in FILTERS:
        found = search.search(QUESTION, 10, **filters)
        assert [product.id for product in found] == expected(migrated_engine, where, 10), filters
        assert all(product.row["active"] for product in found)


def test_a_hit_has_its_row_and_no_vector(open_search: Open) -> None:
    found = open_search().search(QUESTION, 1)[0]
    assert isinstance(found.row["price"], Decimal)
    assert {"id", "name", "brand", "category", "description", "price", "stock", "active"} <= set(found.row)
    assert "embedding" not in found.row
    assert str(found.row["id"]) == found.id


def test_filters_are_conditions_of_the_one_statement_that_the_vector_index_serves(
    migrated_url: str, migrated_engine: sa.Engine
) -> None:
    database = sa.engine.make_url(migrated_url).database
    for setting in ("enable_seqscan", "enable_sort"):
        rows(migrated_engine, f"ALTER DATABASE {database} SET {setting} = off")
    store = get_vector_store(Settings.load(table="products", vector_backend="pgvector", database_url=migrated_url))
    assert isinstance(store, PgVectorStore)
    plan = store.explain(WordLlamaEmbedder().embed([QUESTION])[0], filter=to_filter(max_price=1000), top_k=5)
    store.close()
    assert plan.index == "idx_products_embedding_hnsw", plan
    assert plan.iterative_scan


def test_what_is_not_as_near_as_the_threshold_is_no_hit(open_search: Open) -> None:
    every = open_search().search(QUESTION, 20)
    threshold = every[4].score
    near = open_search(pgvector_similarity_threshold=threshold).search(QUESTION, 20)
    assert [product.id for product in near] == [product.id for product in every[:5]]
    assert open_search(pgvector_similarity_threshold=0.99).search(QUESTION, 20) == []


def test_a_search_logs_backend_hits_and_threshold_and_never_its_text(
    open_search: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    open_search(pgvector_similarity_threshold=0.1).search(QUESTION, 3)
    assert "search backend=pgvector hits=3 threshold=0.1" in caplog.text
    assert "pgvector search found 3 products" in caplog.text
    assert QUESTION not in caplog.text


def test_a_filter_on_a_column_that_is_none_of_them_names_those_there_are(migrated_url: str) -> None:
    store = get_vector_store(Settings.load(table="products", vector_backend="pgvector", database_url=migrated_url))
    with pytest.raises(FilterUnsupported, match=r"(?s)'colour'.*category, brand, price, stock, active"):
        store.query([1.0] * 256, filter={"colour": "red"})
    store.close()


def in_chroma(engine: sa.Engine, where: str, limit: int) -> list[str]:
    """As `expected`, of the products that were moved from Chroma."""
    moved = "embedding_text_hash IS NULL"
    return expected(engine, f"{where} AND {moved}", limit)


def test_chroma_alone_answers_with_the_same_filters(open_search: Open, migrated_engine: sa.Engine) -> None:
    search = open_search(vector_backend="chroma")
    for filters, where in (
        ({}, "true"),
        (
            {"category": "class", "max_price": 20.5, "min_stock": 1},
            "category = 'class' AND price <= 20.5 AND stock >= 1",
        ),
        ({"brand": ["argparse", "ast"]}, "brand IN ('argparse', 'ast')"),
    ):
        found = search.search(QUESTION, 8, **filters)
        assert [product.id for product in found] == in_chroma(migrated_engine, where, 8)


def test_what_is_sold_no_more_makes_room_for_others_though_chroma_does_not_know(
    open_search: Open, migrated_engine: sa.Engine
) -> None:
    gone = in_chroma(migrated_engine, "true", 12)
    rows(migrated_engine, "UPDATE products SET active = false WHERE id = ANY(CAST(:gone AS uuid[]))", gone=gone)
    found = open_search(vector_backend="chroma").search(QUESTION, 5)
    assert [product.id for product in found] == in_chroma(migrated_engine, "true", 5)
    assert not {product.id for product in found} & set(gone)


def test_hybrid_has_the_best_of_both_sides(open_search: Open, migrated_engine: sa.Engine) -> None:
    every = expected(migrated_engine, "true", 1000)
    nearest_of_chroma = in_chroma(migrated_engine, "true", 5)
    # Here only what Chroma lacks.
    rows(migrated_engine, "UPDATE products SET embedding = NULL WHERE embedding_text_hash IS NULL")
    search = open_search(product_search_strategy="hybrid")
    assert [product.id for product in search.search(QUESTION, 1000)] == every
    assert not set(nearest_of_chroma) & {product.id for product in open_search().search(QUESTION, 1000)}


def test_chroma_answers_where_pgvector_fails(
    open_search: Open, migrated_engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    search = open_search(product_search_strategy="pgvector_primary", vector_timeout_seconds=60)
    assert len(search.search(QUESTION, 3)) == 3
    expected_then = in_chroma(migrated_engine, "true", 3)
    rows(migrated_engine, "ALTER TABLE products RENAME COLUMN embedding TO gone")
    assert [product.id for product in search.search(QUESTION, 3)] == expected_then
    assert "pgvector failed, chroma answers" in caplog.text


AS_TYPED = [
    "CREATE TYPE kind AS ENUM ('class', 'module', 'function', 'method')",
    "CREATE DOMAIN named AS kind",
    "CREATE DOMAIN maker AS varchar(80)",
    "CREATE DOMAIN money_at_least AS numeric(12,2) CHECK (VALUE >= 0)",
    "CREATE DOMAIN price AS money_at_least NOT NULL",
    "CREATE DOMAIN flag AS boolean",
    "CREATE DOMAIN identity AS uuid",
    "UPDATE products SET category = NULL WHERE category NOT IN ('class', 'module', 'function', 'method')",
]


@pytest.fixture
def change(
    postgres_server: EmbeddedPostgres, old_template: str, system: dict[str, str]
) -> Iterator[Callable[..., str]]:
    """A function that alters the old application's table, then migrates it as the guide does; returns the URL."""
    with janitor(postgres_server, "other_types", template=old_template) as database:
        url = postgres_server.url(database.dbname)

        def migrate(*statements: str) -> str:
            engine = create_engine(Settings.load(database_url=url))
            for statement in statements:
                rows(engine, statement)
            engine.dispose()
            upgrade(Settings.load(database_url=url, vector_dimension=256), "products")
            variables = {**system, "DATABASE_URL": url, "AMPRENTA_TABLE": "products", "VECTOR_BACKEND": "pgvector"}
            for arguments in (["migrate"], ["coverage"]):
                done = CliRunner().invoke(main, ["products", *arguments], env=variables, catch_exceptions=False)
                # What the sample quarantines is embedded from its text.
                assert done.exit_code == (3 if arguments == ["migrate"] else 0), done.output
            return url

        yield migrate


@pytest.mark.parametrize("category", ["kind", "named"])
def test_enumerations_and_domains_are_filtered_as_what_they_are_based_on(
    change: Callable[..., str], open_search: Open, category: str
) -> None:
    url = change(
        *AS_TYPED,
        f"ALTER TABLE products ALTER category TYPE {category} USING category::{category}, ALTER brand TYPE maker, "
        "ALTER price TYPE price, ALTER active DROP DEFAULT, ALTER active TYPE flag, ALTER id TYPE identity",
    )
    search = open_search(database_url=url)
    engine = create_engine(Settings.load(database_url=url))
    for filters, where in FILTERS:
        found = search.search(QUESTION, 10, **filters)
        assert [product.id for product in found] == expected(engine, where.replace("category ", "category::text "), 10)
    engine.dispose()
    assert search.search(QUESTION, 10, category="no such category") == []
    assert search.search(QUESTION, 10, category=["class", "no such category"])


def test_a_filter_column_that_no_filter_compares_is_the_fault_of_that_filter_only_and_another_store_answers_it(
    change: Callable[..., str], open_search: Open, caplog: pytest.LogCaptureFixture
) -> None:
    url = change("ALTER TABLE products ALTER category TYPE text[] USING ARRAY[category]")
    search = open_search(database_url=url)
    assert search.search(QUESTION, 3, max_price=20)
    with pytest.raises(FilterUnsupported, match=r"'category' asks a column of type text\[\]"):
        search.search(QUESTION, 3, category="class")
    backed = open_search(database_url=url, product_search_strategy="pgvector_primary", vector_timeout_seconds=60)
    found = backed.search(QUESTION, 3, category="class")
    assert [product.row["category"] for product in found] == [["class"]] * 3
    assert "pgvector cannot be asked, chroma answers: FilterUnsupported\n" in caplog.text
    assert "category" not in caplog.text
    for _ in range(5):
        backed.search(QUESTION, 3, category="class")
    assert cast(FallbackStore, backed.store).breaker.state == "closed"
    findings = examine(Settings.load(table="products", vector_backend="pgvector", database_url=url))
    assert [(each.severity, each.found.split(" asks")[0]) for each in findings if each.check == "filter columns"] == [
        ("serious", "products: a filter on 'category'")
    ]


def test_a_chroma_server_that_is_down_keeps_no_search_from_opening_and_helps_once_it_is_there(
    migrated_engine: sa.Engine, migrated_url: str, chroma_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "RETRY_SECONDS", 0.0)
    shutil.copytree(chroma_folder, tmp_path / "chroma")
    server = ChromaServer(tmp_path / "chroma")
    settings = product_settings(
        database_url=migrated_url,
        chroma_host="127.0.0.1",
        chroma_port=server.port,
        embedder="wordllama",
        product_search_strategy="pgvector_primary",
        vector_timeout_seconds=60,
        pgvector_similarity_threshold=-1,
        chroma_similarity_threshold=-1,
    )
    with closing(ProductSearch.open(settings)) as search:
        assert len(search.search(QUESTION, 3)) == 3
        expected_then = in_chroma(migrated_engine, "true", 3)
        rows(migrated_engine, "ALTER TABLE products RENAME COLUMN embedding TO gone")
        with pytest.raises(TransientError):
            search.search(QUESTION, 3)
        server.start()
        assert [product.id for product in search.search(QUESTION, 3)] == expected_then
    server.kill()
