"""A small product system as it was before, with the product section's tables, for every test to change at will."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from catalogue import PRODUCTS
from click.testing import CliRunner, Result
from databases import janitor

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres


@pytest.fixture(autouse=True)
def _no_product_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USE_PGVECTOR", "PRODUCT_SEARCH_STRATEGY", "PGVECTOR_SIMILARITY_THRESHOLD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def chroma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded Chroma that tests read and do not change."""
    return tmp_path_factory.mktemp("products") / "chroma"


@pytest.fixture(scope="session")
def old_template(postgres_server: EmbeddedPostgres, chroma_folder: Path) -> Iterator[str]:
    """The name of a database with the old application's table, and ``chroma_folder`` filled to go with it."""
    with janitor(postgres_server, "old_products_template", as_template=True) as template:
        # In a process of its own: one that has written a Chroma cannot open it with other settings.
        command = [sys.executable, "-m", "amprenta_vectors.sandbox.legacy_products"]
        command += ["--folder", str(chroma_folder), "--products", str(PRODUCTS)]
        environment = {"DATABASE_URL": postgres_server.url(template.dbname)}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        yield template.dbname


@pytest.fixture(scope="session")
def products_template(postgres_server: EmbeddedPostgres, old_template: str) -> Iterator[str]:
    """The same after ``alembic -n products upgrade head``."""
    name = "products_template"
    with janitor(postgres_server, name, template=old_template) as template:
        upgrade(Settings.load(database_url=postgres_server.url(template.dbname), vector_dimension=256), "products")
        yield template.dbname


@pytest.fixture
def products_url(postgres_server: EmbeddedPostgres, products_template: str) -> Iterator[str]:
    """A database of this test's own."""
    with janitor(postgres_server, "products", template=products_template) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def engine(products_url: str) -> Iterator[sa.Engine]:
    """An engine on ``products_url``."""
    engine = create_engine(Settings.load(database_url=products_url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def system(chroma_folder: Path) -> dict[str, str]:
    """What the product system's own environment says, beside its database."""
    return {"CHROMA_PATH": str(chroma_folder), "AMPRENTA_EMBEDDER": "wordllama"}


@pytest.fixture
def run(system: dict[str, str], products_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A function that runs ``amprenta-vectors products …``; ``set`` changes the environment, None removes."""

    def invoke(*arguments: str, set: dict[str, str | None] | None = None) -> Result:
        with monkeypatch.context() as patched:
            for name, value in {**system, "DATABASE_URL": products_url, **(set or {})}.items():
                if value is None:
                    patched.delenv(name, raising=False)
                else:
                    patched.setenv(name, value)
            return CliRunner().invoke(main, ["products", *arguments], catch_exceptions=False)

    return invoke


@pytest.fixture(scope="session")
def migrated(
    postgres_server: EmbeddedPostgres,
    products_template: str,
    system: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Result]]:
    """The name of a database after ``products migrate``, and how that went."""
    with janitor(postgres_server, "migrated_template", template=products_template) as template:
        variables = {
            **system,
            "DATABASE_URL": postgres_server.url(template.dbname),
            "AMPRENTA_REPORT": str(tmp_path_factory.mktemp("reports")),
        }
        result = CliRunner().invoke(main, ["products", "migrate"], env=variables, catch_exceptions=False)
        yield template.dbname, result


@pytest.fixture
def migrated_url(postgres_server: EmbeddedPostgres, migrated: tuple[str, Result]) -> Iterator[str]:
    """A migrated database of this test's own."""
    with janitor(postgres_server, "migrated", template=migrated[0]) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def migrated_engine(migrated_url: str) -> Iterator[sa.Engine]:
    """An engine on ``migrated_url``."""
    engine = create_engine(Settings.load(database_url=migrated_url))
    yield engine
    engine.dispose()
