"""``amprenta-vectors doctor`` on a table with two models: each fault is made, found, and mended by what it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner
from embedded_rows import LARGE, SMALL, TEXTS
from model_rows import add_column, add_two, fill_small, switch

from amprenta_vectors import doctor
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.doctor import models
from amprenta_vectors.doctor.examine import examine
from amprenta_vectors.doctor.finding import Finding
from amprenta_vectors.errors import ExitCode

CHECKS = {check.__name__.replace("_", " ") for check in models.CHECKS}


class Patient:
    """A database in which an application searches, and what the doctor says of its models."""

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self.engine, self.url = engine, url

    def execute(self, statement: str) -> Any:
        return execute(self.engine, statement)

    def findings(self, **settings: Any) -> list[Finding]:
        found = examine(Settings.load(database_url=self.url, vector_backend="pgvector", **settings))
        return [finding for finding in found if finding.check in CHECKS]

    def finding(self, severity: str, message: str) -> Finding:
        """Return the only finding on models."""
        (only,) = self.findings()
        assert only.severity == severity
        assert re.search(message, only.found), only.found
        return only

    def type_in(self, mend: str) -> None:
        """Type each statement and command that a finding names; of two that are alternatives, the first."""
        for typed in re.split("; (?!those|or )", mend.split("; or ")[0].split("; those")[0]):
            variables, command, arguments = typed.partition("amprenta-vectors ")
            if not command:
                self.execute(typed)
                continue
            environment = {"DATABASE_URL": self.url, **dict(each.split("=") for each in variables.split())}
            done = CliRunner().invoke(main, arguments.split(), env=environment)
            assert done.exit_code in (ExitCode.CLEAN, ExitCode.QUARANTINED), done.output


@pytest.fixture
def patient(embedded_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    """A table of two models, both filled and indexed."""
    monkeypatch.setattr("amprenta_vectors.moves.models.switching.IN_FORCE_SECONDS", 0.0)
    engine = create_engine(Settings.load(database_url=embedded_url))
    add_two(engine)
    fill_small(engine)
    made = Patient(engine, embedded_url)
    made.type_in("AMPRENTA_TABLE=rag_chunks.embedding_128 amprenta-vectors index build")
    made.execute("UPDATE migration_run SET state = 'cancelled'; ANALYZE rag_chunks")
    yield made
    engine.dispose()


def test_two_models_that_are_filled_and_indexed_are_no_finding(patient: Patient) -> None:
    assert patient.findings() == []
    switch(patient.engine, SMALL)
    assert patient.findings() == []
    assert patient.findings(table="rag_chunks.embedding_128") == []


def test_a_column_that_is_gone_is_serious_and_added_again(patient: Patient) -> None:
    patient.execute("ALTER TABLE rag_chunks DROP COLUMN embedding_128")
    found = patient.finding("serious", f"model {SMALL} is registered for column embedding_128 of rag_chunks, which is")
    patient.type_in(found.mend)
    patient.type_in(patient.finding("advice", "have no vector").mend)
    patient.type_in(patient.finding("advice", "no vector index on embedding_128").mend)
    assert patient.findings() == []


def test_rows_that_a_model_lacks_are_advice_and_serious_once_it_is_searched(patient: Patient) -> None:
    patient.execute("UPDATE rag_chunks SET embedding_128 = NULL WHERE chunk_id < 'k2'")
    patient.execute("INSERT INTO rag_chunks (chunk_id, content) VALUES ('without a text', '')")
    [(rows,)] = patient.execute("SELECT count(*) FROM rag_chunks WHERE embedding_128 IS NULL AND content <> ''")
    found = patient.finding("advice", f"^{rows} rows of rag_chunks with a text have no vector of {SMALL} in embedding_")
    switch(patient.engine, SMALL)
    assert patient.finding("serious", f"^{rows} rows").mend == found.mend
    patient.type_in(found.mend)
    assert patient.findings() == []


def test_rows_that_the_application_alone_can_embed_are_its_to_write(patient: Patient) -> None:
    patient.execute("UPDATE rag_chunks SET embedding_128 = NULL WHERE chunk_id = 'k2'")
    patient.execute(f"UPDATE embedding_models SET provider = NULL WHERE model_name = '{SMALL}'")
    assert patient.finding("advice", "^1 rows").mend == (
        f"the application writes them: store.upsert(records, model='{SMALL}')"
    )


@pytest.mark.parametrize("rows", [TEXTS, TEXTS[:50]], ids=["many", "few"])
def test_a_model_without_an_index_is_serious_once_it_is_searched_in_many_rows(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, rows: list[str]
) -> None:
    monkeypatch.setattr(doctor.indexes, "WORTH_AN_INDEX", len(TEXTS) * 2 - len(rows))
    patient.execute("DROP INDEX idx_embedding_128")
    found = patient.finding(
        "advice", "^public.rag_chunks has no vector index on embedding_128: each search reads all rows"
    )
    switch(patient.engine, SMALL)
    found = patient.finding(
        "serious" if rows is TEXTS else "advice", "^public.rag_chunks has no vector index on embedding_12"
    )
    patient.type_in(found.mend)
    assert patient.findings() == []


def test_a_vector_of_more_than_2000_dimensions_is_indexed_by_its_halves(patient: Patient) -> None:
    add_column(patient.engine, "long", 3072, "embedding_3072", None)
    zeros = "(CAST('[' || repeat('1,', 3071) || '1]' AS vector))"
    patient.execute(f"UPDATE rag_chunks SET embedding_3072 = {zeros} WHERE content IS NOT NULL")
    patient.execute("DELETE FROM migration_index")
    found = patient.finding("advice", r"no vector index on embedding_3072.*; a vector\(3072\) is not indexed as it is,")
    patient.type_in(found.mend)
    assert patient.findings() == []
    [(made,)] = patient.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%embedding_3072%'")
    assert "halfvec(3072)" in made
    patient.execute("DROP INDEX idx_embedding_128; DELETE FROM migration_index")
    # One by another distance serves no search.
    patient.execute("CREATE INDEX theirs ON rag_chunks USING hnsw (embedding_128 vector_l2_ops)")
    found = patient.finding("advice", r"theirs \(vector_l2_ops\) does not serve")
    assert found.mend.startswith("AMPRENTA_TABLE=rag_chunks.embedding_128 amprenta-vectors index build; DROP INDEX ")
    patient.type_in(found.mend.split("; ")[0])
    assert patient.findings() == []


def test_two_models_in_one_column_are_serious_and_one_of_them_is_retired(patient: Patient) -> None:
    patient.execute("INSERT INTO embedding_models (model_name, dimension) VALUES ('other', 256)")
    patient.execute(
        "INSERT INTO model_column (target, model_id, column_name) SELECT target, (SELECT max(id) FROM "
        "embedding_models), 'embedding' FROM model_column LIMIT 1"
    )
    found = patient.finding("serious", f"models {LARGE} and other are both registered for column embedding of rag_chun")
    assert found.mend == "amprenta-vectors models retire other"
    patient.type_in(found.mend)
    assert patient.findings() == []
    # The index is that of the model which stays.
    assert len(patient.execute("SELECT FROM pg_indexes WHERE indexname = 'idx_rag_chunks_embedding'")) == 1


def test_rows_of_another_model_than_is_registered_are_serious_and_embedded_again(patient: Patient) -> None:
    patient.execute(f"UPDATE rag_chunks SET embedding_model = '{LARGE}'")
    assert patient.findings() == []
    patient.execute("UPDATE rag_chunks SET embedding_model = 'it''s another' WHERE chunk_id IN ('k1', 'k2')")
    patient.type_in(
        patient.finding(
            "serious", f"model {LARGE} is registered for .*rag_chunks.embedding, and 2 vectors there are of \"it's"
        ).mend
    )
    assert patient.findings() == []
    assert patient.execute("SELECT count(*) FROM rag_chunks WHERE embedding IS NULL") == [(0,)]


def test_a_model_that_no_query_has_searched_for_long_is_a_note(patient: Patient) -> None:
    patient.execute("UPDATE model_column SET written_at = now() - interval '31 days'")
    found = patient.finding("note", f"is embedded for {SMALL} too, which no query has searched for 31 days")
    patient.execute("UPDATE model_column SET switched_at = now() - interval '3 days' WHERE searched")
    # That was searched three days ago, or this one was: the way back is kept.
    assert patient.findings() == []
    patient.execute("UPDATE model_column SET switched_at = now() - interval '30 days' WHERE searched")
    assert patient.finding("note", "for 30 days").mend == found.mend
    patient.type_in(found.mend)
    assert patient.findings() == []


def test_a_process_that_cannot_load_a_model_is_named_with_why(patient: Patient) -> None:
    patient.execute(f"""
        INSERT INTO model_process (process, target, host, pid, loaded, failed, seen_at)
        SELECT gen_random_uuid(), target, host, 7, '{{}}', jsonb_build_object('{SMALL}', 'ImportError: no such module'),
               now() - age
        FROM model_column, (VALUES ('web-1', interval '1 minute'), ('gone', interval '2 hours')) AS hosts (host, age)
        WHERE searched
    """)
    found = patient.finding("advice", f"pid 7 on web-1 cannot load model {SMALL}: ImportError: no such module")
    assert found.mend.endswith(f"; or amprenta-vectors models retire {SMALL}")
    switch(patient.engine, SMALL)
    assert "retire" not in patient.finding("serious", "pid 7 on web-1").mend
    switch(patient.engine, LARGE)
    patient.type_in(found.mend.split("; or ")[1])
    assert patient.findings() == []
