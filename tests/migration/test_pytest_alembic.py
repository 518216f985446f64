"""pytest-alembic's own tests on every section, alone and mounted, and on an application that uses the operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from application import Application
from migrating import Database
from pgvector.sqlalchemy import VECTOR
from pytest_alembic.plugin.fixtures import alembic_runner  # noqa: F401
from pytest_alembic.tests import (  # noqa: F401
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
)
from pytest_alembic.tests import test_upgrade as upgrade_alone
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import alembic_config as config_of
from amprenta_vectors.sections import SECTIONS

# The two others begin with it: alone it is asked for in `make torture`.
test_upgrade = pytest.mark.torture(upgrade_alone)

DRIVERS = {"alone": "psycopg2", "mounted": "psycopg"}
REVISIONS = [
    (
        'op.create_vector_extension()\n    op.adopt_table("docs", sa.Column("id", sa.Integer, primary_key=True))',
        'op.retire_table("docs")\n    op.drop_vector_extension()',
    ),
    (
        'op.add_vector_column("docs", "embedding", 3, beside=[sa.Column("embedding_model", sa.Text)])',
        'op.drop_vector_column("docs", "embedding", beside=["embedding_model"])',
    ),
    ('op.create_vector_index("ix_docs_embedding", "docs", "embedding")', 'op.drop_vector_index("ix_docs_embedding")'),
    (
        'op.replace_vector_index("ix_docs_embedding", "docs", "embedding", options={"m": 8})',
        'op.replace_vector_index("ix_docs_embedding", "docs", "embedding")',
    ),
    ('op.ensure_backfill_finished("docs", "embedding")', "pass"),
]


def model() -> sa.MetaData:
    """What the application's revisions make."""
    docs = sa.Table(
        "docs",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("embedding", VECTOR(3)),
        sa.Column("embedding_model", sa.Text),
    )
    sa.Index(
        "ix_docs_embedding",
        docs.c.embedding,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "vector_cosine_ops"},
        postgresql_with={"m": 8},
    )
    return docs.metadata


PROJECTS = [
    *((name, way) for name in SECTIONS for way in DRIVERS),
    *(("application", driver) for driver in ("psycopg2", "psycopg", "asyncpg")),
]
MOUNTED_TOO = "alembic"
"""The section that is mounted here too: the others have the same operations, and are mounted in `make torture`."""


def runs(name: str, way: str) -> object:
    """A project, in `make torture` where it is mounted and is not that one section."""
    marks = pytest.mark.torture if way == "mounted" and name != MOUNTED_TOO else ()
    return pytest.param((name, way), id=f"{name}-{way}", marks=marks)


@pytest.fixture(params=[runs(*project) for project in PROJECTS])
def project(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A section and how it is used; or an application and its driver."""
    name, way = request.param
    return name, way


@pytest.fixture
def alembic_config(project: tuple[str, str], db: Database, tmp_path: Path) -> Config:
    """What the project's `alembic` would be called with."""
    name, way = project
    if way == "alone":
        return config_of(Settings.load(database_url=db.url), name)
    application = Application(tmp_path, db.url, driver=way, template="async" if way == "asyncpg" else "generic")
    if way == "mounted":
        return application.mount(name)
    for upgrade, downgrade in REVISIONS:
        application.write(upgrade, downgrade)
    return application.config(model())


@pytest.fixture
def alembic_engine(project: tuple[str, str], db: Database) -> Iterator[sa.Engine | AsyncEngine]:
    """What the plug-in hands on as ``config.attributes["connection"]``."""
    driver = DRIVERS.get(project[1], project[1])
    url = db.url.replace("postgresql:", f"postgresql+{driver}:")
    if driver == "asyncpg":
        yield create_async_engine(url, poolclass=sa.NullPool)
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()
