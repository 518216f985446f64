"""`amprenta-vectors db plan` says beforehand what an upgrade will do, lock and keep waiting, and changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest
import sqlalchemy as sa
from fingerprint import fingerprint
from migrating import Database

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine, migration_lock
from amprenta_vectors.ddl.plan import RevisionPlan
from amprenta_vectors.ddl.steps import Step
from amprenta_vectors.errors import ConfigError, DimensionMismatch, SchemaMismatch

Typed = Callable[..., subprocess.CompletedProcess[str]]


def planned(db: Database, revision: str = "head", **settings: object) -> dict[str, RevisionPlan]:
    with sa.create_engine(db.engine.url, poolclass=sa.NullPool).connect() as connection:
        connection.execution_options(postgresql_readonly=True)
        plans = migrate.plan(Settings.load(database_url=db.url, **settings), connection, revision=revision)
    return {plan.revision: plan for plan in plans}


def actions(plan: RevisionPlan) -> list[str]:
    return [step.action if isinstance(step, Step) else step.found for step in plan.steps]


def test_an_empty_database_is_told_everything_and_left_empty(db: Database, typed: Typed) -> None:
    before = fingerprint(db)
    done = typed("amprenta_vectors", "db", "plan")
    assert done.returncode == 0, done.stderr
    for line in (
        "core_0001  Enable pgvector and make the tables that record backfills.",
        "  - enable extension vector",
        "  - create table migration_run",
        "  - create table rag_chunks",
        "  - add column embedding vector(1536)",
        "      lock: ACCESS EXCLUSIVE on rag_chunks; nobody waits; instant",
        "  - build index idx_rag_chunks_embedding (hnsw)",
        "  - queue a backfill of rag_chunks.embedding",
    ):
        assert line in done.stdout.splitlines()
    assert fingerprint(db) == before


def test_an_adopted_table_is_told_with_its_size_and_who_will_wait(adopted: Database, typed: Typed) -> None:
    adopted.execute("ANALYZE rag_chunks")
    before = fingerprint(adopted)
    done = typed("amprenta_vectors", "db", "plan", VECTOR_DIMENSION="8")
    assert done.returncode == 0, done.stderr
    for line in (
        "  - rag_chunks exists: adopted as it is",
        "  - add column embedding vector(8)",
        "      lock: ACCESS EXCLUSIVE on rag_chunks; who waits: readers and writers; instant",
        "      lock: SHARE UPDATE EXCLUSIVE on rag_chunks; nobody waits; concurrent: scans the table twice, and waits "
        "for every transaction that is open",
    ):
        assert line in done.stdout.splitlines()
    assert "    rag_chunks: about 100 rows, 0." in done.stdout
    assert "asked for 2 s at a time" in done.stdout
    assert fingerprint(adopted) == before


def test_a_column_of_another_name_that_may_be_one_of_ours_is_named_at_adoption(adopted: Database, typed: Typed) -> None:
    adopted.execute("ALTER TABLE rag_chunks ADD chunk_metadata json, ADD notes text[]")
    adopted.execute("ALTER TABLE rag_chunks DROP COLUMN IF EXISTS metadata")
    done = typed("amprenta_vectors", "db", "plan", VECTOR_DIMENSION="8")
    assert (
        "  - rag_chunks exists: adopted as it is; it has no metadata, and does not use chunk_metadata json: "
        "amprenta-vectors doctor says how to" in done.stdout.splitlines()
    )


def test_what_a_subscriber_needs_before_is_said_for_each_publication(adopted: Database, typed: Typed) -> None:
    adopted.execute("CREATE TABLE other (id int PRIMARY KEY)")
    adopted.execute("CREATE PUBLICATION of_chunks FOR TABLE rag_chunks")
    adopted.execute("CREATE PUBLICATION of_others FOR TABLE other")
    done = typed("amprenta_vectors", "db", "plan", VECTOR_DIMENSION="8")
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("Publication ")]
    assert said.startswith("Publication of_chunks carries rag_chunks: before the upgrade, install pgvector")
    assert said.endswith("amprenta-vectors db upgrade --section alembic --sql head")
    adopted.execute("CREATE PUBLICATION of_all FOR ALL TABLES")
    done = typed("amprenta_vectors", "db", "plan", VECTOR_DIMENSION="8")
    assert "Publication of_all carries embedding_models, " in done.stdout
    adopted.upgrade(vector_dimension=8)
    assert "Publication" not in typed("amprenta_vectors", "db", "plan").stdout


def test_values_that_a_downgrade_kept_are_counted(adopted: Database) -> None:
    adopted.upgrade(vector_dimension=3)
    adopted.execute("UPDATE rag_chunks SET embedding = '[1,2,3]', updated_at = now() - interval '1 day'")
    adopted.downgrade("rag_0001")
    adopted.execute("UPDATE rag_chunks SET updated_at = now() WHERE chunk_id IN ('chunk-1', 'chunk-2')")
    before = fingerprint(adopted)
    plans = planned(adopted)
    assert list(plans) == ["rag_0002", "rag_0003", "rag_0004"]
    first = [step for step in plans["rag_0002"].steps[:3] if isinstance(step, Step)]
    assert [(step.action, step.object, step.lock, step.blocks, step.duration) for step in first] == [
        (
            "create a trigger that empties rows that change until the end",
            "rag_chunks",
            "SHARE ROW EXCLUSIVE",
            "writers",
            "instant",
        ),
        (
            "empty 2 of these values, whose rows changed since the downgrade",
            "rag_chunks",
            "ROW EXCLUSIVE",
            "nobody",
            "scans the table, 128 pages a transaction",
        ),
        (
            "take back 100 values of embedding from embedding_retired",
            "rag_chunks",
            "ACCESS EXCLUSIVE",
            "readers and writers",
            "instant",
        ),
    ]
    assert fingerprint(adopted) == before


def test_a_table_that_a_downgrade_kept_is_planned_under_its_retired_name(db: Database) -> None:
    db.upgrade(vector_dimension=3)
    db.execute("INSERT INTO rag_chunks (chunk_id, embedding) VALUES ('a', '[1,2,3]')")
    db.downgrade()
    plans = planned(db)
    assert actions(plans["rag_0001"]) == ["take back rag_chunks from rag_chunks_retired, with 1 rows"]
    assert "take back 1 values of embedding from embedding_retired" in actions(plans["rag_0002"])
    steps = [step for plan in plans.values() for step in plan.steps if isinstance(step, Step)]
    assert {step.blocks for step in steps} == {"nobody"}


def test_what_is_there_is_told_as_adopted(adopted: Database) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD embedding vector(3)")
    adopted.execute("CREATE INDEX theirs ON rag_chunks USING hnsw (embedding vector_cosine_ops)")
    plans = planned(adopted)
    assert actions(plans["core_0001"])[0].startswith("extension vector is there (")
    assert actions(plans["rag_0002"])[0] == "column embedding vector(3) exists: adopted as it is"
    assert actions(plans["rag_0003"]) == ["index theirs does the same as idx_rag_chunks_embedding: used instead"]


def test_at_head_there_is_nothing_to_do(upgraded_url: str, typed: Typed) -> None:
    done = typed("amprenta_vectors", "db", "plan", DATABASE_URL=upgraded_url)
    assert (done.returncode, done.stdout) == (0, "nothing to do: the schema is there already\n")


def test_a_plan_stops_at_the_revision_asked_for_and_an_unknown_one_is_refused(adopted: Database) -> None:
    assert list(planned(adopted, "rag_0001")) == ["core_0001", "rag_0001"]
    with pytest.raises(ConfigError, match="nowhere"):
        planned(adopted, "nowhere")


def test_what_the_upgrade_would_refuse_is_said_by_the_plan(adopted: Database) -> None:
    adopted.upgrade("rag_0002", vector_dimension=3)
    adopted.execute("UPDATE amprenta_version_rag SET version_num = 'rag_0001'")
    with pytest.raises(DimensionMismatch):
        planned(adopted, vector_dimension=4)
    adopted.downgrade("core_0001")
    adopted.execute("ALTER TABLE rag_chunks RENAME chunk_id TO id")
    with pytest.raises(SchemaMismatch, match="chunk_id"):
        planned(adopted)


def test_a_plan_waits_for_nobody(adopted: Database) -> None:
    with (
        migration_lock(create_engine(Settings.load(database_url=adopted.url)), 1),
        closing(psycopg2.connect(adopted.url)) as writer,
    ):
        writer.cursor().execute("UPDATE rag_chunks SET content = 'new'")
        assert len(planned(adopted)) == 5
