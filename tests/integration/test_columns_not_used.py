"""A table whose text or metadata has another name: it is said wherever one looks, with the line that has it used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from backfill_tools import environment, execute, to_vectors
from click.testing import CliRunner

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import FilterUnsupported
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.factory import get_vector_store

RENAMED = {
    "jsonb": ["ALTER TABLE rag_chunks RENAME metadata TO chunk_metadata"],
    "json": [
        "ALTER TABLE rag_chunks RENAME metadata TO chunk_metadata",
        "ALTER TABLE rag_chunks ALTER chunk_metadata DROP DEFAULT, ALTER chunk_metadata TYPE json",
    ],
    "domain": [
        "CREATE DOMAIN document AS jsonb",
        "ALTER TABLE rag_chunks RENAME metadata TO chunk_metadata",
        "ALTER TABLE rag_chunks ALTER chunk_metadata TYPE document",
    ],
}


def run(variables: dict[str, str], *arguments: str) -> str:
    done = CliRunner().invoke(main, arguments, env=variables, catch_exceptions=False)
    return done.output


@pytest.mark.parametrize("kind", RENAMED)
def test_the_line_that_has_a_column_used_is_said_before_the_move_and_lets_hits_have_it(
    engine: sa.Engine, upgraded_url: str, emulator: Callable[..., PineconeEmulator], tmp_path: Path, kind: str
) -> None:
    pinecone = emulator()
    pinecone.load("", ["k", "m"], to_vectors(2))
    for statement in (*RENAMED[kind], "ALTER TABLE rag_chunks RENAME content TO body"):
        execute(engine, statement)
    execute(
        engine,
        "INSERT INTO rag_chunks (chunk_id, body, chunk_metadata, embedding) VALUES ('k', 'text', :given, :vector)",
        given='{"page": 3}',
        vector=str([1.0] * 8),
    )
    config = tmp_path / "amprenta.toml"
    config.touch()
    there = environment(upgraded_url, pinecone, AMPRENTA_CONFIG=str(config), VECTOR_DIMENSION="8")
    store = get_vector_store(Settings.load(database_url=upgraded_url, vector_backend="pgvector"))
    with pytest.raises(FilterUnsupported, match="amprenta-vectors doctor"):
        store.query([1.0] * 8, filter={"page": 3})
    store.close()

    planned = run(there, "backfill", "--dry-run", "--keys-from", "source")
    assert re.search(r"not used: body text, chunk_metadata", planned)
    said = run(there, "doctor")
    assert "no column for metadata, so no hit has metadata, and no filter can ask for any" in said
    for output in (planned, said):
        for line in re.findall(r"under \[tables.rag_chunks\] in amprenta.toml: (.*)", output):
            old = config.read_text() or "[tables.rag_chunks]\n"
            config.write_text(old if line in old else f"{old}{line}\n")
    assert config.read_text().count("=") == 2
    assert "not used" not in run(there, "doctor")
    store = get_vector_store(Settings.load(database_url=upgraded_url, vector_backend="pgvector", config=config))
    (hit,) = store.query([1.0] * 8, filter={"page": 3})
    assert (hit.text, hit.metadata) == ("text", {"page": 3})
    store.close()


def test_a_declared_table_is_checked_for_them_too(engine: sa.Engine, upgraded_url: str, tmp_path: Path) -> None:
    columns = "id text PRIMARY KEY, vec vector(8), body text, tags text[], about json, n int"
    execute(engine, f"CREATE TABLE notes ({columns})")
    config = tmp_path / "amprenta.toml"
    config.write_text('[tables.notes]\ntable = "notes"\nkey = "id"\nembedding = "vec"\ndimension = 8\ntext = "body"\n')
    output = run({"DATABASE_URL": upgraded_url, "AMPRENTA_CONFIG": str(config)}, "tables", "check")
    assert "note: not used: tags text[], about json, n integer" in output
    assert 'if one holds metadata, under [tables.notes] in amprenta.toml: metadata = "about"\n' in output
    assert "holds text" not in output
