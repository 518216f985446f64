"""``amprenta-vectors`` on a catalogue in Chroma: moved, compared and, where something is wrong, told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid5

import pytest
import sqlalchemy as sa
from backfill_tools import execute, expected, to_vectors
from chroma_tools import COLLECTION, fill
from click.testing import CliRunner, Result
from databases import janitor

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

UUIDS = [str(uuid5(UUID(int=7), str(number))) for number in range(40)]
IDS = [f"product_{key}" for key in UUIDS]
VECTORS = to_vectors(40)


@pytest.fixture(scope="module")
def products_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with forty products and no embedding."""
    with janitor(postgres_server, "forty_products", as_template=True) as template:
        settings = Settings.load(database_url=postgres_server.url(template.dbname), vector_dimension=8)
        upgrade(settings, "products")
        engine = create_engine(settings)
        insert = "INSERT INTO products (id, name) SELECT unnest(CAST(:keys AS uuid[])), 'a product'"
        execute(engine, insert, keys=UUIDS)
        engine.dispose()
        yield template.dbname


@pytest.fixture
def folder(
    tmp_path: Path, postgres_server: EmbeddedPostgres, products_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where Chroma is to lie; the database is one of ``products_template``."""
    with janitor(postgres_server, "products", products_template) as database:
        monkeypatch.setenv("DATABASE_URL", postgres_server.url(database.dbname))
        monkeypatch.setenv("AMPRENTA_TABLE", "products")
        monkeypatch.setenv("CHROMA_PATH", str(tmp_path / "vector_db"))
        yield tmp_path / "vector_db"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def embeddings() -> dict[str, bytes]:
    engine: sa.Engine = create_engine(Settings.load())
    rows = execute(engine, "SELECT id::text, vector_send(embedding) FROM products WHERE embedding IS NOT NULL")
    engine.dispose()
    return {key: bytes(vector) for key, vector in rows}


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_catalogue_is_moved_and_compared_bit_for_bit(folder: Path, keys_from: str) -> None:
    fill(folder, IDS, VECTORS, space="l2")
    moved = run("backfill", "--resume", "--keys-from", keys_from)
    assert moved.exit_code == 0, moved.output
    assert embeddings() == expected(UUIDS, VECTORS)
    compared = run("verify")
    assert compared.exit_code == 0, compared.output


def test_records_of_no_product_are_listed(folder: Path) -> None:
    fill(folder, [*IDS[:30], "product_17", "banner"], to_vectors(32), space="l2")
    moved = run("backfill", "--resume", "--keys-from", "source", "--max-bad-share", "1")
    assert moved.exit_code == 3, moved.output
    assert len(embeddings()) == 30
    listed = run("errors")
    assert listed.exit_code in (0, 3), listed.output
    for key in ("product_17", "banner"):
        assert key in listed.output
    assert "no_target_key" in listed.output


def test_what_stands_in_the_way_is_told_and_nothing_is_written(folder: Path) -> None:
    absent = run("backfill", "--resume")
    assert absent.exit_code == 2
    assert "holds no Chroma" in absent.output
    assert not folder.exists()
    fill(folder, IDS, to_vectors(40, 16), name="articles")
    other = run("backfill", "--resume")
    assert other.exit_code == 2
    assert f"no collection '{COLLECTION}'; it has: articles" in other.output
    fill(folder, IDS, to_vectors(40, 16))
    longer = run("backfill", "--resume")
    assert longer.exit_code == 2
    assert "has 16 dimensions, products.embedding has 8" in longer.output
    assert embeddings() == {}


def test_inspect_shows_what_there_is_to_move(folder: Path) -> None:
    fill(folder, IDS, VECTORS, [{"category": "laptops", "product_id": key} for key in UUIDS], ["a text"] * 40)
    shown = run("sources", "inspect")
    assert shown.exit_code == 0, shown.output
    for said in (COLLECTION, "cosine", "40", "category"):
        assert said in shown.output
