"""The index outside revisions: built, rebuilt, dropped and brought back as it was."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from amprenta_vectors.cli import main


@pytest.fixture
def rows(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO rag_chunks (chunk_id, embedding)
                SELECT n, ARRAY(SELECT random() + 0 * (n + d) FROM generate_series(1, 8) d)::vector
                FROM generate_series(1, 3000) n
            """)
        )
    return engine


def run(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["index", *arguments], env={"DATABASE_URL": url})
    assert result.exit_code == 0, result.output
    return result.output


def definitions(engine: sa.Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        found = connection.execute(
            sa.text("""
                SELECT c.oid::text, indexdef FROM pg_indexes JOIN pg_class c ON c.relname = indexname
                JOIN pg_index i ON i.indexrelid = c.oid AND i.indisvalid
                WHERE tablename = 'rag_chunks' AND indexdef LIKE '%embedding%' ORDER BY indexname
            """)
        )
        return [(row[0], row[1]) for row in found]


def test_a_dropped_index_comes_back_as_it_was(rows: sa.Engine, upgraded_url: str) -> None:
    before = definitions(rows)
    assert "back with: amprenta-vectors index build" in run(upgraded_url, "drop")
    assert definitions(rows) == []
    assert "is indexed" in run(upgraded_url, "build", "--m", "4")
    assert [one[1] for one in definitions(rows)] == [one[1] for one in before]


def test_rebuild_makes_every_index_anew(rows: sa.Engine, upgraded_url: str) -> None:
    before = definitions(rows)
    assert "rebuilt:" in run(upgraded_url, "rebuild")
    after = definitions(rows)
    assert [one[1] for one in after] == [one[1] for one in before]
    assert after[0][0] != before[0][0]


def test_without_any_index_one_is_built_with_the_options_given(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    run(upgraded_url, "build", "--m", "8", "--ef-construction", "32")
    assert "m='8', ef_construction='32'" in definitions(rows)[0][1]


def test_ivfflat_takes_its_lists_from_the_number_of_rows(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    run(upgraded_url, "build", "--method", "ivfflat")
    assert "USING ivfflat" in definitions(rows)[0][1]
    assert "lists='3'" in definitions(rows)[0][1]


def test_rebuilding_where_there_is_none_names_the_command(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    assert "index build" in run(upgraded_url, "rebuild")
