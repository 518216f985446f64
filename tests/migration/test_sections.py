"""Sections share a database: in any order, each downgraded alone, core's tables there as long as one needs them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from migrating import ROOT, Database

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings

SECOND = '''
"""Another system's table."""

import sqlalchemy as sa
from alembic import op

revision = "notes_0001"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade():
    op.adopt_table("notes", sa.Column("id", sa.Text, primary_key=True), key=["id"])
    op.add_vector_column("notes", "embedding", 3)
    op.create_vector_index("idx_notes_embedding", "notes", "embedding")
    op.queue_backfill("notes", "notes.embedding")


def downgrade():
    op.cancel_backfill("notes", "notes.embedding")
    op.drop_vector_index("idx_notes_embedding")
    op.drop_kept_column("notes", "embedding")
    op.retire_table("notes")
'''
TABLES = {"alembic": "rag_chunks", "notes": "notes"}


@pytest.fixture(autouse=True)
def two_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revisions as they are, with those of a second section beside them."""
    folder = tmp_path / "alembic"
    shutil.copytree(ROOT / "alembic", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "notes").mkdir()
    (folder / "versions" / "notes" / "notes_0001.py").write_text(SECOND)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: folder)
    second = migrate.Section("notes", ("core", "notes"), "amprenta_version_notes")
    monkeypatch.setitem(migrate.SECTIONS, "notes", second)


def upgrade(db: Database, section: str) -> None:
    migrate.upgrade(Settings.load(database_url=db.url, vector_dimension=3), section)


def downgrade(db: Database, section: str) -> None:
    migrate.downgrade(Settings.load(database_url=db.url), section)


@pytest.mark.parametrize("up", list(itertools.permutations(TABLES)), ids=" then ".join)
@pytest.mark.parametrize("down", list(itertools.permutations(TABLES)), ids=" then ".join)
def test_sections_come_in_any_order_and_go_one_by_one(db: Database, up: tuple[str, ...], down: tuple[str, ...]) -> None:
    for section in up:
        upgrade(db, section)
    for table in TABLES.values():
        key = "chunk_id" if table == "rag_chunks" else "id"
        db.execute(f"INSERT INTO {table} ({key}, embedding) VALUES ('a', '[1,2,3]')")
    first, last = down
    downgrade(db, first)
    assert not db.columns(TABLES[first])
    assert db.scalar(f"SELECT embedding::text FROM {TABLES[last]}") == "[1,2,3]"
    assert db.columns("migration_run")
    upgrade(db, first)
    assert db.scalar(f"SELECT embedding::text FROM {TABLES[first]}") == "[1,2,3]"
    downgrade(db, first)
    downgrade(db, last)
    assert not db.columns("migration_run")
    for section in up:
        upgrade(db, section)
    assert [db.scalar(f"SELECT embedding::text FROM {table}") for table in TABLES.values()] == ["[1,2,3]", "[1,2,3]"]


def test_each_section_queues_its_own_backfill(db: Database) -> None:
    for section in TABLES:
        upgrade(db, section)
    assert db.execute("SELECT target, state FROM migration_run ORDER BY target") == [
        ("notes.embedding", "planned"),
        ("rag_chunks.embedding", "planned"),
    ]
    downgrade(db, "notes")
    assert db.execute("SELECT target, state FROM migration_run ORDER BY target") == [
        ("notes.embedding", "cancelled"),
        ("rag_chunks.embedding", "planned"),
    ]
