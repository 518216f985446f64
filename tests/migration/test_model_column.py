"""The column of another model: in an application's own revisions, and as its autogenerate and our check see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from application import Application
from click.testing import CliRunner
from fingerprint import fingerprint
from migrating import Database, psql, run_script
from pgvector.sqlalchemy import VECTOR
from systems import MODEL_COLUMNS, RAG

from amprenta_vectors.cli import main
from amprenta_vectors.ddl.plan import plan_upgrade
from amprenta_vectors.ddl.steps import Done
from amprenta_vectors.errors import SchemaMismatch

SMALL = "wordllama-l2-supercat-64"
ADD_OWN = ("rag_chunks", "embedding", "large", 4)
ADD_SMALL = ("rag_chunks", "embedding_2", "small", 2)
DROP_SMALL = ("rag_chunks", "embedding_2", "small")
Type = Callable[..., None]


@pytest.fixture
def adopted(db: Database) -> Database:
    """The application's table with rows and embeddings, at head."""
    RAG.adopt(db)
    RAG.upgrade(db)
    RAG.fill(db)
    db.execute("UPDATE rag_chunks SET content = 'the text of ' || chunk_id")
    return db


@pytest.fixture
def type_in(adopted: Database, monkeypatch: pytest.MonkeyPatch) -> Type:
    """A function that types a command."""
    monkeypatch.setenv("DATABASE_URL", adopted.url)
    monkeypatch.setattr("amprenta_vectors.moves.models.migrating.SEEN_SECONDS", 0.0)

    def run(*arguments: str, table: str = "rag_chunks") -> None:
        done = CliRunner().invoke(main, arguments, env={"AMPRENTA_TABLE": table})
        assert done.exit_code == 0, done.output

    return run


@pytest.fixture
def added(adopted: Database, type_in: Type) -> Database:
    """The same with the column of a second model, as `models add` leaves it."""
    type_in("models", "add", "large", "--column", "embedding")
    type_in("models", "add", SMALL, "--provider", "wordllama", "--dimension", "64")
    return adopted


@contextmanager
def printed(text: StringIO) -> Iterator[Any]:
    """What a revision is given as ``op`` where there is no database."""
    context = MigrationContext.configure(
        dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, opts={"as_sql": True, "output_buffer": text}
    )
    with context.begin_transaction():
        yield Operations(context)


def script_of(*calls: tuple[str, tuple[Any, ...]]) -> str:
    """What Alembic's own offline mode prints of operations."""
    text = StringIO()
    with printed(text) as op:
        for name, arguments in calls:
            getattr(op, name)(*arguments)
    return text.getvalue()


def applications_model(*columns: sa.Column[Any]) -> sa.MetaData:
    """The application's own model of the table, which does not know of ours, with columns that it does."""
    table = sa.Table(
        "rag_chunks",
        sa.MetaData(),
        sa.Column("chunk_id", sa.Text, primary_key=True),
        sa.Column("content", sa.Text),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()")),
        *columns,
    )
    return table.metadata


def registry(db: Database) -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in db.execute("""
            SELECT model_name, column_name, written, searched FROM model_column JOIN embedding_models ON id = model_id
            ORDER BY column_name
        """)
    ]


@pytest.mark.parametrize(
    "model", [applications_model, lambda: applications_model(sa.Column("embedding_64", VECTOR(64)))]
)
def test_neither_check_nor_an_applications_autogenerate_has_anything_to_do_with_a_column_that_was_added(
    added: Database, type_in: Type, tmp_path: Path, model: Callable[[], sa.MetaData]
) -> None:
    application = Application(tmp_path, added.url)
    # Its index is deferred.
    RAG.check(added)
    application.check(model())
    type_in("index", "build", table="rag_chunks.embedding_64")
    assert added.index_is_valid("idx_rag_chunks_embedding_64_hnsw")
    RAG.check(added)
    if "embedding_64" not in model().tables["rag_chunks"].columns:
        application.check(model())
    type_in("models", "retire", SMALL)
    assert added.index_is_valid("idx_rag_chunks_embedding_64_hnsw") is None
    RAG.check(added)
    application.check(applications_model())


def test_a_retired_models_index_is_deferred_no_more(added: Database, type_in: Type) -> None:
    type_in("models", "retire", SMALL)
    assert added.execute("SELECT * FROM migration_index WHERE built_at IS NULL") == []
    assert not [name for name in added.columns("rag_chunks") if "64" in name]
    type_in("models", "add", SMALL)
    assert added.execute("SELECT index_name FROM migration_index WHERE built_at IS NULL") == [
        ("idx_rag_chunks_embedding_64_hnsw",)
    ]


def test_an_applications_revisions_up_down_and_up_keep_the_values(adopted: Database) -> None:
    MODEL_COLUMNS.upgrade(adopted)
    assert registry(adopted) == [("large", "embedding", True, True), ("small", "embedding_2", True, False)]
    MODEL_COLUMNS.fill(adopted)
    adopted.execute("CREATE INDEX idx_small ON rag_chunks USING hnsw (embedding_2 vector_cosine_ops)")
    adopted.execute("COMMENT ON INDEX idx_small IS 'made by amprenta_vectors'")
    values = "SELECT chunk_id, embedding_2::text, hash_embedding_2 FROM rag_chunks ORDER BY 1"
    before = adopted.execute(values)
    MODEL_COLUMNS.downgrade(adopted, "own")
    assert registry(adopted) == [("large", "embedding", True, True)]
    assert {"embedding_2_retired", "hash_embedding_2_retired"} < set(adopted.columns("rag_chunks"))
    assert adopted.index_is_valid("idx_small") is None
    adopted.execute("UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id = 'chunk-3'")
    MODEL_COLUMNS.upgrade(adopted)
    changed = [row if row[0] != "chunk-3" else ("chunk-3", None, None) for row in before]
    assert adopted.execute(values) == changed
    assert adopted.execute("SELECT index_name, built_at FROM migration_index") == [("idx_small", None)]
    MODEL_COLUMNS.downgrade(adopted)
    assert registry(adopted) == []
    # The table's own column stays as it was.
    assert "embedding" in adopted.columns("rag_chunks")
    assert adopted.index_is_valid(RAG.index)


def test_the_model_that_is_searched_is_not_dropped_while_there_is_another(adopted: Database) -> None:
    MODEL_COLUMNS.upgrade(adopted)
    adopted.execute("UPDATE model_column SET searched = NOT searched WHERE searched")
    adopted.execute("UPDATE model_column SET searched = true WHERE column_name = 'embedding_2'")
    before = fingerprint(adopted)
    with pytest.raises(SchemaMismatch, match="small is the model that queries of rag_chunks search") as caught:
        MODEL_COLUMNS.downgrade(adopted)
    assert "amprenta-vectors models switch large" in str(caught.value)
    assert fingerprint(adopted) == before
    adopted.execute("UPDATE model_column SET searched = false")
    adopted.execute("UPDATE model_column SET searched = true WHERE column_name = 'embedding'")
    MODEL_COLUMNS.downgrade(adopted)
    assert registry(adopted) == []


def test_what_alembic_prints_without_a_database_does_the_same_and_fails_on_any_other_state(
    adopted: Database, clone: Callable[..., Database]
) -> None:
    own, small = ("add_model_column", ADD_OWN), ("add_model_column", ADD_SMALL)
    both = script_of(own, small)
    assert "IF NOT EXISTS" not in both
    run_script(adopted, both)
    assert registry(adopted) == [("large", "embedding", True, True), ("small", "embedding_2", True, False)]
    assert adopted.columns("rag_chunks")["embedding_2"] == "vector(2)"
    RAG.check(adopted)
    before = fingerprint(adopted)
    for script, expected in (
        (both, "model large is not registered"),
        (
            script_of(("add_model_column", ("rag_chunks", "embedding", "other", 4))),
            "no model of rag_chunks.embedding is",
        ),
        (script_of(("add_model_column", ("rag_chunks", "embedding_3", "small", 3))), "model small is not registered"),
        (
            script_of(("add_model_column", ("rag_chunks", "embedding_2", "other", 2))),
            "there is no rag_chunks.embedding_2",
        ),
    ):
        done = psql(adopted, script)
        assert done.returncode == 3
        assert expected in done.stderr
    assert fingerprint(adopted) == before
    # Not without the first model, either.
    other = clone()
    RAG.adopt(other)
    RAG.upgrade(other)
    done = psql(other, script_of(small))
    assert done.returncode == 3
    assert "queries of rag_chunks.embedding search a model" in done.stderr


def test_the_script_of_the_way_back_is_for_a_column_that_is_indexed_and_not_searched(adopted: Database) -> None:
    MODEL_COLUMNS.upgrade(adopted)
    MODEL_COLUMNS.fill(adopted)
    drop = script_of(("drop_model_column", DROP_SMALL))
    done = psql(adopted, drop)
    assert done.returncode == 3
    assert "index idx_rag_chunks_embedding_2_hnsw is made by amprenta_vectors" in done.stderr
    index = "idx_rag_chunks_embedding_2_hnsw"
    adopted.execute(f"CREATE INDEX {index} ON rag_chunks USING hnsw (embedding_2 vector_cosine_ops)")
    adopted.execute(f"COMMENT ON INDEX {index} IS 'made by amprenta_vectors'")
    adopted.execute("DELETE FROM migration_index")
    adopted.execute("UPDATE model_column SET searched = false")
    adopted.execute("UPDATE model_column SET searched = true WHERE column_name = 'embedding_2'")
    done = psql(adopted, drop)
    assert done.returncode == 3
    assert "queries of rag_chunks.embedding do not search small" in done.stderr
    adopted.execute("UPDATE model_column SET searched = false")
    adopted.execute("UPDATE model_column SET searched = true WHERE column_name = 'embedding'")
    run_script(adopted, drop)
    assert registry(adopted) == [("large", "embedding", True, True)]
    assert adopted.columns("rag_chunks")["embedding_2_retired"] == "vector(2)"
    assert adopted.index_is_valid(index) is None


def test_a_plan_says_what_the_operations_come_to_and_what_is_there(adopted: Database) -> None:
    script = ScriptDirectory.from_config(MODEL_COLUMNS.config(adopted))

    def plan() -> list[str]:
        with adopted.engine.connect() as connection:
            plans = plan_upgrade(connection, script, "head", version_table="amprenta_version_application", options={})
        return [step.found if isinstance(step, Done) else step.action for each in plans for step in each.steps]

    before = fingerprint(adopted)
    assert plan() == [
        "register model large of 4 dimensions",
        "register rag_chunks.embedding for model large: searched",
        "add column embedding_2 vector(2)",
        "add column hash_embedding_2 bigint",
        "add column text_hash_embedding_2 bigint",
        "register model small of 2 dimensions",
        "register rag_chunks.embedding_2 for model small: written; its index is deferred until its rows are filled",
    ]
    assert fingerprint(adopted) == before
    MODEL_COLUMNS.upgrade(adopted)
    assert plan() == []
    MODEL_COLUMNS.fill(adopted)
    MODEL_COLUMNS.downgrade(adopted, "own")
    again = plan()
    taken_back = [action for action in again if action.startswith("take back 20 values of")]
    assert taken_back == [
        f"take back 20 values of {name} from {name}_retired"
        for name in ("embedding_2", "hash_embedding_2", "text_hash_embedding_2")
    ]
    assert "register model small of 2 dimensions" not in again
    assert again[-1].startswith("register rag_chunks.embedding_2 for model small: written")
