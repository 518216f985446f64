"""`prune`: old runs, events and shadow queries go; what gate, errors, rollback and --resume go by stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner, Result

from amprenta_vectors.backfill.progress import proof, runs
from amprenta_vectors.cli import main
from amprenta_vectors.ddl.gate import unverified_runs

TARGET = "rag_chunks.embedding"
SCOPE = {"namespace": "a"}
OLD, NEW = 60, 1


@pytest.fixture
def variables(upgraded_url: str, engine: sa.Engine) -> dict[str, str]:
    execute(engine, "DELETE FROM migration_run")
    return {"DATABASE_URL": upgraded_url, "VECTOR_BACKEND": "pgvector"}


def prune(
    variables: Mapping[str, str],
    *arguments: str,
    older_than: str = "30d",
    code: int = 0,
    answer: str | None = None,
) -> Result:
    more = [] if answer is not None or "--dry-run" in arguments else ["--yes"]
    command = ["prune", "--older-than", older_than, *arguments, *more]
    result = CliRunner().invoke(main, command, env=dict(variables), input=answer)
    assert result.exit_code == code, result.output
    return result


def add_run(
    engine: sa.Engine,
    days: int = OLD,
    *,
    state: str = "finished",
    written: int = 0,
    verified: bool = False,
    namespace: str = "a",
    model: str = "m1",
    events: Sequence[str] = ("begun", "joined", "left", "finished"),
) -> int:
    """Keep a run that ended days ago, with a batch and its events; the first of a database is 1."""
    ended = state not in {"running", "paused"}
    ((number,),) = execute(
        engine,
        "INSERT INTO migration_run (vector_table, target, scope, source, model, fingerprint, keys_from, state,"
        " desired_state, finished_at, verified_at) VALUES ('rag_chunks', :target,"
        " jsonb_build_object('namespace', CAST(:namespace AS text)), 'pinecone:x', :model, :model, 'table', :state,"
        " 'running', CASE WHEN :ended THEN now() - make_interval(days => :days) END,"
        " CASE WHEN :verified THEN now() - make_interval(days => :days) END) RETURNING id",
        target=TARGET,
        namespace=namespace,
        model=model,
        state=state,
        ended=ended,
        verified=verified,
        days=days,
    )
    execute(
        engine,
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, rows_written)"
        " VALUES (:run, 1, 'a', 'z', '{}', 'done', :written)",
        run=number,
        written=written,
    )
    for event in (*events, *(["verified"] if verified else [])):
        execute(
            engine,
            "INSERT INTO migration_event (run_id, at, event)"
            " VALUES (:run, now() - make_interval(days => :days), :event)",
            run=number,
            days=days,
            event=event,
        )
    return int(number)


def left(engine: sa.Engine) -> list[int]:
    return [number for (number,) in execute(engine, "SELECT id FROM migration_run ORDER BY id")]


def add_query(engine: sa.Engine, days: int) -> None:
    execute(
        engine,
        "INSERT INTO shadow_query (at, primary_store, secondary_store, query, top_k, hits, primary_ms)"
        " VALUES (now() - make_interval(days => :days), 'a', 'b', '{1}', 1, 1, 1)",
        days=days,
    )


def test_runs_that_a_later_one_stands_for_go_with_all_that_is_kept_of_them(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    old = [add_run(engine, written=1) for _ in range(3)]
    last = add_run(engine, written=1, verified=True)
    execute(engine, "INSERT INTO migration_text (run_id, digest) VALUES (:run, 'd')", run=old[0])
    output = prune(variables).output
    assert "migration_run: 3 row(s) gone" in output
    assert left(engine) == [last]
    for table in ("migration_progress", "migration_event", "migration_text"):
        statement = f"SELECT count(*) FROM {table} WHERE run_id = ANY(:old)"
        assert execute(engine, statement, old=old) == [(0,)]


def test_the_last_proof_stays_whatever_is_younger(engine: sa.Engine, variables: dict[str, str]) -> None:
    proven = add_run(engine, written=1, verified=True)
    execute(engine, "UPDATE migration_event SET detail = '{\"compared\": 7}' WHERE event = 'verified'")
    for _ in range(2):
        add_run(engine, 50)
    prune(variables, older_than="0m")
    with engine.connect() as connection:
        found = proof.last_verified(connection, TARGET, SCOPE)
    assert found is not None
    assert (found[0].id, found[1].detail) == (proven, {"compared": 7})


def test_what_a_run_wrote_and_nobody_verified_is_not_forgotten(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_run(engine, written=1)
    add_run(engine)
    with engine.connect() as connection:
        before = unverified_runs(connection, TARGET)
    assert before
    prune(variables, older_than="0m")
    with engine.connect() as connection:
        assert unverified_runs(connection, TARGET) == before


def test_a_proof_that_is_taken_away_after_it_leaves_the_gate_shut(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_run(engine, written=1)
    add_run(engine, written=1)
    last = add_run(engine, verified=True)
    prune(variables, older_than="0m")
    with engine.begin() as connection:
        proof.forget(connection, TARGET, SCOPE)
        assert unverified_runs(connection, TARGET) == [last]


def test_every_model_that_runs_wrote_stays_known(engine: sa.Engine, variables: dict[str, str]) -> None:
    for model in ("m1", "m1", "m2"):
        add_run(engine, written=1, model=model)
    add_run(engine, verified=True, model="m2")
    prune(variables, older_than="0m")
    with engine.connect() as connection:
        assert runs.earlier_models(connection, TARGET, SCOPE) == {"m1", "m2"}


def test_a_run_with_rows_in_quarantine_or_inserted_rows_or_rolled_back_stays(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    aside, resolved, inserted, back, _ = (add_run(engine) for _ in range(5))
    add_run(engine)
    for run, at in ((aside, None), (resolved, "2026-01-01")):
        execute(
            engine,
            "INSERT INTO migration_quarantine (run_id, key, reason, batch, detail, resolved_at)"
            " VALUES (:run, 'k', 'no_vector', 1, '', CAST(:at AS timestamptz))",
            run=run,
            at=at,
        )
    execute(engine, "INSERT INTO migration_insert VALUES (:run, '{k}', 'x')", run=inserted)
    execute(engine, "UPDATE migration_event SET event = 'rolled_back' WHERE run_id = :run AND event = 'left'", run=back)
    prune(variables)
    assert left(engine) == [aside, inserted, back, back + 2]


@pytest.mark.parametrize("state", ["running", "paused"])
def test_what_is_unfinished_or_young_stays(engine: sa.Engine, variables: dict[str, str], state: str) -> None:
    young = [add_run(engine, NEW), add_run(engine, NEW)]
    unfinished = add_run(engine, state=state)
    prune(variables)
    assert left(engine) == [*young, unfinished]
    assert execute(engine, "SELECT count(*) FROM migration_event") == [(12,)]


def test_other_namespaces_stand_for_themselves(engine: sa.Engine, variables: dict[str, str]) -> None:
    kept = [add_run(engine, namespace=name) for name in ("a", "b")]
    prune(variables, older_than="0m")
    assert left(engine) == kept


def test_routine_events_and_comparisons_that_another_followed_go(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_run(engine, written=1, events=("begun", "joined", "throttled", "verified", "left", "finished"), verified=True)
    prune(variables)
    kept = execute(engine, "SELECT event FROM migration_event ORDER BY id")
    assert [event for (event,) in kept] == ["begun", "finished", "verified"]


def test_shadow_queries_and_cleared_tombstones_go_by_their_age(engine: sa.Engine, variables: dict[str, str]) -> None:
    for days in (NEW, OLD):
        add_query(engine, days)
        execute(
            engine,
            "INSERT INTO vector_outbox (target, scope, key, operation, cleared_at, created_at)"
            " VALUES (:target, '{}', 'k', 'delete', now() - make_interval(days => :days), now()),"
            " (:target, '{}', 'pending', 'delete', NULL, now() - make_interval(days => :days))",
            target=TARGET,
            days=days,
        )
    output = prune(variables).output
    assert "shadow_query: 1 row(s) gone" in output
    assert "vector_outbox: 1 row(s) gone" in output
    assert execute(engine, "SELECT count(*) FROM vector_outbox WHERE key = 'pending'") == [(2,)]


def test_a_tombstone_of_today_stays_whatever_is_asked(engine: sa.Engine, variables: dict[str, str]) -> None:
    execute(
        engine,
        "INSERT INTO vector_outbox (target, scope, key, operation, cleared_at)"
        " VALUES ('t', '{}', 'k', 'delete', now())",
    )
    prune(variables, older_than="0m")
    assert execute(engine, "SELECT count(*) FROM vector_outbox") == [(1,)]


def test_a_dry_run_and_a_no_change_nothing(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_query(engine, OLD)
    assert "shadow_query: 1 row(s) would go" in prune(variables, "--dry-run").output
    prune(variables, answer="n\n", code=1)
    assert execute(engine, "SELECT count(*) FROM shadow_query") == [(1,)]
    prune(variables, answer="y\n")
    assert execute(engine, "SELECT count(*) FROM shadow_query") == [(0,)]
    assert "nothing is kept here" in prune(variables).output


@pytest.mark.parametrize("when", ["yesterday", "30", "-1d", "9" * 30 + "d"])
def test_another_age_is_refused_with_one_to_type(variables: dict[str, str], when: str) -> None:
    assert "--older-than 24h" in prune(variables, older_than=when, code=2).output


def test_before_the_upgrade_the_upgrade_is_named(database_url: str) -> None:
    assert "alembic upgrade head" in prune({"DATABASE_URL": database_url}, code=2).output
