"""An application with Alembic of its own: our section beside its chain, our operations in its revisions."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from application import Application
from migrating import Database
from pgvector.sqlalchemy import VECTOR

from amprenta_vectors.migrate import migrations_folder
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

Alembic = Callable[..., subprocess.CompletedProcess[str]]

UPGRADE = """\
op.create_vector_extension()
    op.create_table("docs", sa.Column("id", sa.Integer, primary_key=True), sa.Column("state", sa.Text))
    op.add_vector_column("docs", "embedding", 3)
    op.add_kept_column("docs", "embedding_model", sa.Text())
    op.create_vector_index("ix_docs_embedding", "docs", "embedding", where="state = 'open'")
    op.ensure_backfill_finished("docs", "embedding")
"""
DOWNGRADE = """\
op.drop_vector_index("ix_docs_embedding")
    op.drop_kept_column("docs", "embedding_model")
    op.drop_kept_column("docs", "embedding")
    op.drop_table("docs")
    op.drop_vector_extension()
"""


def model() -> sa.MetaData:
    """What the application's own revision makes."""
    docs = sa.Table(
        "docs",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("state", sa.Text),
        sa.Column("embedding", VECTOR(3)),
        sa.Column("embedding_model", sa.Text),
    )
    sa.Index(
        "ix_docs_embedding",
        docs.c.embedding,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": "vector_cosine_ops"},
        postgresql_where=docs.c.state == "open",
    )
    return docs.metadata


@pytest.fixture(params=["psycopg2", "psycopg"])
def application(tmp_path: Path, db: Database, request: pytest.FixtureRequest) -> Application:
    """An application on either driver, with our section in its ``alembic.ini``."""
    application = Application(tmp_path, db.url, driver=request.param)
    application.mount()
    return application


def test_our_operations_work_in_an_applications_revisions_and_find_their_way_back(
    application: Application, db: Database
) -> None:
    application.write(UPGRADE, DOWNGRADE)
    empty = db.catalogue()
    application.upgrade()
    application.check(model())
    made = db.catalogue()
    assert db.index_is_valid("ix_docs_embedding")
    application.downgrade()
    assert [row for row in db.catalogue() if not row[0].startswith("alembic_version")] == empty
    application.upgrade()
    assert db.catalogue() == made


def test_what_autogenerate_writes_runs_on_the_applications_driver(application: Application, db: Database) -> None:
    application.follow(model())
    changed = model()
    (index,) = changed.tables["docs"].indexes
    index.dialect_options["postgresql"]["with"] = {"m": 8}
    application.follow(changed)
    application.downgrade("base")
    assert not db.columns("docs")


def test_our_section_stands_beside_the_applications_own_chain(
    application: Application, db: Database, alembic: Alembic
) -> None:
    def typed(*command: str) -> str:
        done = alembic("-c", str(application.ini), *command, cwd=application.ini.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    application.write(UPGRADE, DOWNGRADE)
    typed("upgrade", "head")
    theirs = db.scalar("SELECT version_num FROM alembic_version")
    typed("-n", "amprenta", "-x", "dimension=8", "upgrade", "head")
    assert db.columns("rag_chunks")["embedding"] == "vector(8)"
    assert db.scalar("SELECT version_num FROM amprenta_version_rag") in typed("-n", "amprenta", "current")
    assert "No new upgrade operations" in typed("-n", "amprenta", "check")
    application.check(model())
    typed("-n", "amprenta", "downgrade", "base")
    assert "embedding" not in db.columns("rag_chunks")
    assert db.scalar("SELECT version_num FROM alembic_version") == theirs
    application.check(model())
    typed("-n", "amprenta", "upgrade", "head")
    typed("downgrade", "base")
    assert db.index_is_valid("idx_rag_chunks_embedding")
    assert db.execute("SELECT FROM pg_extension WHERE extname = 'vector'")


def test_dash_x_arguments_reach_the_operations_where_the_environment_hands_them_on(
    application: Application, db: Database, alembic: Alembic
) -> None:
    env = application.folder / "env.py"
    handed_on = "amprenta_options=context.get_x_argument(as_dictionary=True), connection=connection"
    env.write_text(env.read_text().replace("connection=connection", handed_on))
    application.write(
        'op.create_vector_extension()\n    op.adopt_table("docs", sa.Column("id", sa.Integer, primary_key=True))\n'
        '    op.add_vector_column("docs", "embedding", 3, configurable=True)',
        'op.retire_table("docs")',
    )
    for arguments in (("-x", "dimension=4", "upgrade", "head"), ("-x", "purge=true", "downgrade", "base")):
        done = alembic("-c", str(application.ini), *arguments, cwd=application.ini.parent)
        assert done.returncode == 0, done.stderr
        if "upgrade" in arguments:
            assert db.columns("docs")["embedding"] == "vector(4)"
            db.execute("INSERT INTO docs VALUES (1)")
    assert not db.columns("docs_retired")


def test_a_section_that_there_is_not_is_said(application: Application, alembic: Alembic) -> None:
    text = application.ini.read_text()
    application.ini.write_text(text.replace("amprenta_section = alembic", "amprenta_section = ragg"))
    done = alembic("-c", str(application.ini), "-n", "amprenta", "upgrade", "head")
    assert done.returncode == 2
    assert "there is no section 'ragg'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_database_that_the_file_names_is_migrated_and_not_another(
    application: Application, db: Database, alembic: Alembic, postgres_server: EmbeddedPostgres
) -> None:
    postgres_server.create_database("named")
    named = Database(postgres_server.url("named"))
    url = named.url.replace("postgresql:", "postgresql+psycopg:").replace("%", "%%")
    text = application.ini.read_text().replace("amprenta_section =", f"sqlalchemy.url = {url}\namprenta_section =")
    application.ini.write_text(text)
    done = alembic("-c", str(application.ini), "-n", "amprenta", "upgrade", "head", cwd=application.ini.parent)
    assert done.returncode == 0, done.stderr
    assert (bool(named.columns("rag_chunks")), bool(db.columns("rag_chunks"))) == (True, False)
    named.engine.dispose()
    db.execute("DROP DATABASE named WITH (FORCE)")


def test_a_connection_that_is_handed_on_is_the_one_that_is_used(
    application: Application, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    engine = sa.create_engine(db.engine.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        config = Config(str(application.ini), ini_section="amprenta", attributes={"connection": connection})
        command.upgrade(config, "head")
        assert not connection.closed
    assert db.columns("rag_chunks")["embedding"] == "vector(1536)"


def test_an_engine_that_is_handed_on_is_the_one_that_is_used(
    application: Application, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    engine = sa.create_engine(db.engine.url, poolclass=sa.NullPool)
    config = Config(str(application.ini), ini_section="amprenta", attributes={"connection": engine})
    command.upgrade(config, "head")
    assert db.columns("rag_chunks")["embedding"] == "vector(1536)"


def test_no_revision_is_written_beside_those_of_the_package(application: Application, alembic: Alembic) -> None:
    before = sorted(migrations_folder().rglob("*.py"))
    alembic("-c", str(application.ini), "-n", "amprenta", "upgrade", "head", cwd=application.ini.parent)
    typed = ("-c", str(application.ini), "-n", "amprenta", "revision", "--autogenerate", "-m", "x")
    done = alembic(*typed, cwd=application.ini.parent)
    assert done.returncode == 2
    assert "come with amprenta_vectors" in done.stderr
    assert sorted(migrations_folder().rglob("*.py")) == before
