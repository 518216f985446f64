"""What was dropped by hand, while the version says that it is there: the hint that is given makes it anew."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest
from migrating import Database

from amprenta_vectors.errors import NotUpgraded
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS, VECTOR_DOCUMENTS

GUIDE = """
    DROP TRIGGER IF EXISTS trigger_update_embedding_version ON products;
    DROP FUNCTION IF EXISTS update_embedding_version();
    DROP MATERIALIZED VIEW IF EXISTS product_embedding_stats;
    DROP FUNCTION IF EXISTS find_similar_products;
    DROP FUNCTION IF EXISTS product_similarity(UUID, UUID);
    DROP INDEX IF EXISTS idx_products_embedding_hnsw;
    ALTER TABLE products DROP COLUMN IF EXISTS embedding, DROP COLUMN IF EXISTS last_embedding_update,
        DROP COLUMN IF EXISTS embedding_model, DROP COLUMN IF EXISTS embedding_version
"""
"""The products guide's «Complete Rollback»."""

CASES = {
    "the guide's rollback": ("products", PRODUCTS, GUIDE),
    "a column": (None, RAG_CHUNKS, "ALTER TABLE rag_chunks DROP COLUMN embedding"),
    "a table": (None, RAG_CHUNKS, "DROP TABLE rag_chunks"),
    "a table of documents": ("documents", VECTOR_DOCUMENTS, "DROP TABLE vector_documents"),
}


@pytest.mark.parametrize("case", CASES)
def test_typing_the_hint_makes_anew_what_was_dropped_and_touches_nothing_else(
    db: Database, typed: Callable[..., Any], case: str
) -> None:
    section, table, statement = CASES[case]
    db.upgrade(section=section or "alembic", vector_dimension=table.dimension)
    before = db.columns(table.table)
    columns, values = "vector_table, target, state, desired_state", "'x', 'x.y', 'finished', 'running'"
    db.execute(f"INSERT INTO migration_run ({columns}) VALUES ({values})")
    runs = db.execute("SELECT count(*) FROM migration_run")
    db.execute(statement)
    with db.engine.connect() as connection, pytest.raises(NotUpgraded) as refused:
        resolve_table(connection, table)
    commands, said, _ = refused.value.hint.partition(" makes anew what was dropped by hand")
    assert said
    for command in commands.split(" && "):
        done = typed(*shlex.split(command), VECTOR_DIMENSION=str(table.dimension))
        assert done.returncode == 0, done.stderr
    with db.engine.connect() as connection:
        assert resolve_table(connection, table).dimension == table.dimension
    assert db.columns(table.table) == before
    assert db.execute("SELECT count(*) FROM migration_run WHERE vector_table = 'x'") == [(1,)]
    assert db.execute("SELECT count(*) FROM migration_run")[0][0] >= runs[0][0]


def test_a_role_that_may_not_read_the_version_is_told_of_the_upgrade(
    db: Database, as_role: Callable[[str], Database]
) -> None:
    db.upgrade(section="products")
    db.execute("ALTER TABLE products DROP COLUMN embedding CASCADE")
    with as_role("app").engine.connect() as connection, pytest.raises(NotUpgraded) as refused:
        resolve_table(connection, PRODUCTS)
    assert refused.value.hint == "alembic -n products upgrade head"


def test_before_the_upgrade_it_is_the_upgrade_that_is_named(db: Database) -> None:
    with db.engine.connect() as connection, pytest.raises(NotUpgraded) as refused:
        resolve_table(connection, PRODUCTS)
    assert refused.value.hint == "alembic -n products upgrade head"
