"""docs/tables.md is typed in as it stands: table, revision, amprenta.toml and commands, to a verified column."""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from application import Application
from click.testing import CliRunner
from migrating import ROOT, Database

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

PAGE = Path(ROOT, "docs/tables.md").read_text()
DIMENSION = 768


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def block(language: str) -> str:
    return blocks(language)[0]


def test_the_page_leads_from_a_table_to_a_verified_column_and_back(
    db: Database, emulator: Callable[..., PineconeEmulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [uuid.uuid4() for _ in range(3)]
    pinecone = emulator(dimension=DIMENSION)
    rng = np.random.default_rng(1)
    for tenant in ("acme", "other"):
        ids = [f"{document}#{page}" for document in documents for page in range(5)]
        pinecone.load(tenant, ids, rng.standard_normal((len(ids), DIMENSION), dtype=np.float32))
    environment = {
        "DATABASE_URL": db.url,
        "PINECONE_API_KEY": "test-key",
        "PINECONE_INDEX_NAME": "test-index",
        "PINECONE_CONTROLLER_HOST": pinecone.host,
        "PINECONE_GRPC_HOST": pinecone.grpc_host,
        "AMPRENTA_RETRY_SECONDS": "5",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for statement in block("sql").split(";"):
        if statement.strip():
            db.execute(statement)
    for tenant in ("acme", "other"):
        for document in documents:
            db.execute(
                'INSERT INTO library."Pages" SELECT :document, page, :tenant, :body FROM generate_series(0, 4) page',
                document=document,
                tenant=tenant,
                body="own text",
            )
    type_in("amprenta-vectors db upgrade core_0001")

    application = Application(tmp_path, db.url)
    for number, revision in enumerate(blocks("python")):
        (application.folder / "versions" / f"{number}.py").write_text(revision)
    application.upgrade()
    monkeypatch.chdir(tmp_path)
    Path("amprenta.toml").write_text(block("toml"))
    outputs = []
    for line in block("sh").splitlines():
        if line.startswith("export"):
            name, _, value = line.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, value)
        else:
            outputs.append(type_in(line))
    assert outputs[0] == "pages: library.Pages.embedding halfvec(768), cosine: as declared\n"
    assert outputs[3] == "library.Pages.embedding is complete: 30 rows have their embedding\n"
    assert db.scalar("SELECT count(*) FROM library.\"Pages\" WHERE body = 'own text' AND embedding IS NOT NULL") == 30
    assert db.scalar("SELECT count(*) FROM migration_run WHERE state = 'finished'") == 2

    application.write('op.ensure_backfill_finished("Pages", "embedding", schema="library")', "pass")
    application.upgrade()
    application.downgrade("base")
    # The way back keeps the values.
    assert db.scalar('SELECT count(embedding_retired) FROM library."Pages"') == 30


def type_in(line: str) -> str:
    """A command of the page, as a person types it; it must succeed."""
    program, *arguments = shlex.split(line)
    assert program == "amprenta-vectors"
    done = CliRunner().invoke(main, arguments, env=dict(os.environ))
    assert done.exit_code == 0, f"{line}: {done.output}{done.exception!r}"
    return done.output


def test_the_output_that_the_page_shows_is_what_the_command_says(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", db.url)
    monkeypatch.chdir(tmp_path)
    Path("amprenta.toml").write_text(block("toml"))
    for statement in block("sql").split(";")[:-1]:
        db.execute(statement)
    db.execute("CREATE EXTENSION vector")
    db.execute('ALTER TABLE library."Pages" ADD COLUMN embedding halfvec(768)')
    done = CliRunner().invoke(main, ["tables", "check", "pages"], env=dict(os.environ))
    assert done.exit_code == 2
    assert done.output == block("text")
