"""`forget`: a person's rows go from everything that is kept here, and nobody else's do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import UUID, uuid5

import pytest
import sqlalchemy as sa
from backfill_tools import add_rows, environment, execute, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.migrate import downgrade, upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.engine_tables import ENGINE_TABLES
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.protocol import Record

ZOE, BOB = "zoe-4711", "bob-0815"
TARGET = "rag_chunks.embedding"
VECTOR = "[1,2,3,4,5,6,7,8]"


@pytest.fixture
def variables(upgraded_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return {"DATABASE_URL": upgraded_url, "VECTOR_BACKEND": "pgvector", "AMPRENTA_REPORT": str(tmp_path / "reports")}


def forget(variables: Mapping[str, str], *arguments: str, code: int = 0, answer: str | None = None) -> Result:
    more = [] if answer is not None or "--dry-run" in arguments else ["--yes"]
    result = CliRunner().invoke(main, ["forget", *arguments, *more], env=dict(variables), input=answer)
    assert result.exit_code == code, result.output
    return result


def where(engine: sa.Engine, value: str) -> list[str]:
    """Every table in whose rows, as text, the value is found."""
    tables = execute(engine, "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.oid > 16383")
    found = []
    for (name,) in sorted(tables):
        if execute(engine, f"SELECT 1 FROM {name} t WHERE strpos(t::text, :value) > 0 LIMIT 1", value=value):
            found.append(name)
    return found


def adopted(engine: sa.Engine) -> None:
    """Have the rows be an application's own."""
    execute(engine, "COMMENT ON TABLE rag_chunks IS NULL")


def keep_everywhere(engine: sa.Engine, key: str) -> None:
    """Keep a row's key, text and vector wherever the engine or a store keeps any."""
    add_rows(engine, [key])
    execute(engine, "UPDATE rag_chunks SET embedding = :vector WHERE chunk_id = :key", vector=VECTOR, key=key)
    (run,) = execute(
        engine,
        "INSERT INTO migration_run (vector_table, target, scope, source, state, desired_state, finished_at, plan_token,"
        " last_error) VALUES ('rag_chunks', :target, '{\"namespace\": \"\"}', 'pinecone:x', 'finished', 'running',"
        " now(), :token, :error) RETURNING id",
        target=TARGET,
        token=f'["{key}"]',
        error=f"no record {key!r} here",
    )[0]
    execute(
        engine,
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, last_error)"
        " VALUES (:run, 1, :key, 'z', ARRAY[:key, 'z'], 'pending', 'record ' || :key || ' is too long'),"
        " (:run, 2, 'a', 'b', ARRAY['a', 'b'], 'pending', NULL)",
        run=run,
        key=key,
    )
    execute(
        engine,
        "INSERT INTO migration_quarantine (run_id, key, reason, batch, detail) VALUES (:run, :key, 'no_target', 1, ''),"
        " (:run, 'other', 'no_target', 1, '''' || :key || ''' is another spelling of the same key')",
        run=run,
        key=key,
    )
    execute(engine, "INSERT INTO migration_insert VALUES (:run, ARRAY[:key], 'x')", run=run, key=key)
    execute(
        engine,
        "INSERT INTO migration_event (run_id, event, detail)"
        " VALUES (:run, 'failed', jsonb_build_object('error', 'refused: ' || :key, 'keys', 3))",
        run=run,
        key=key,
    )
    execute(
        engine,
        "INSERT INTO vector_outbox (target, scope, key, operation, text, metadata, cleared_at)"
        " VALUES (:target, '{\"namespace\": \"\"}', :key, 'upsert', :key, jsonb_build_object('who', :key), NULL),"
        " (:target, '{\"namespace\": \"\"}', :key, 'delete', NULL, NULL, now())",
        target=TARGET,
        key=key,
    )
    execute(
        engine,
        "INSERT INTO vector_row_mark (target, scope, key, mark, written_by, row_at, file_node, digest, digest_without)"
        " VALUES (:target, '{\"namespace\": \"\"}', ARRAY[:key], 'emptied', '1', '(0,1)', 1, 'x', '{}')",
        target=TARGET,
        key=key,
    )
    execute(
        engine,
        "INSERT INTO shadow_query (primary_store, secondary_store, query, top_k, hits, primary_ms, missing, filter,"
        " error) VALUES ('a', 'b', '{1}', 1, 1, 1, ARRAY['x', :key], NULL, NULL),"
        " ('a', 'b', '{1}', 1, 1, 1, '{}', CAST(:filter AS jsonb), NULL),"
        " ('a', 'b', '{1}', 1, 1, 1, '{}', NULL, 'SourceError: no ' || :key)",
        key=key,
        filter=json.dumps({"who": {"$in": ["x", key]}}),
    )


STRANGE = ["100%", "a_b", "back\\slash", "[a-z]+(.*)", "'; DROP TABLE rag_chunks; --", "Zoë ↑", "7"]
KEPT_IN = [
    "migration_event",
    "migration_insert",
    "migration_progress",
    "migration_quarantine",
    "migration_run",
    "rag_chunks",
    "shadow_query",
    "vector_outbox",
    "vector_row_mark",
]


def test_a_key_is_gone_from_every_table_and_another_is_still_in_each(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    keep_everywhere(engine, ZOE)
    keep_everywhere(engine, BOB)
    assert where(engine, ZOE) == where(engine, BOB) == KEPT_IN
    output = forget(variables, "--key", ZOE).output
    assert where(engine, ZOE) == []
    assert where(engine, BOB) == KEPT_IN
    assert "rag_chunks: 1 row(s) gone" in output
    assert "vector_outbox: 2 row(s) gone" in output
    assert "shadow_query: 3 row(s) gone" in output
    # What is no value of the person's stays.
    assert execute(engine, "SELECT keys FROM migration_progress WHERE run_id = 2 ORDER BY batch") == [
        ([],),
        (["a", "b"],),
    ]
    assert execute(engine, "SELECT detail FROM migration_event WHERE run_id = 2") == [
        ({"error": "(forgotten)", "keys": 3},)
    ]


def test_texts_that_an_ended_run_left_go_with_whoever_is_forgotten(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    keep_everywhere(engine, ZOE)
    execute(engine, "INSERT INTO migration_text (run_id, digest, vector) SELECT max(id), 'd', 'v' FROM migration_run")
    assert "migration_text: 1 row(s) gone" in forget(variables, "--key", ZOE).output
    assert execute(engine, "SELECT count(*) FROM migration_text") == [(0,)]


def test_every_table_of_the_engine_is_listed_and_no_other(engine: sa.Engine) -> None:
    made = execute(
        engine,
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND obj_description(oid, 'pg_class') = :made"
        " AND relname <> 'rag_chunks' ORDER BY 1",
        made=MADE,
    )
    assert [name for (name,) in made] == sorted(ENGINE_TABLES)


def test_what_went_is_on_record_without_any_value(engine: sa.Engine, variables: dict[str, str]) -> None:
    keep_everywhere(engine, ZOE)
    forget(variables, "--key", ZOE)
    ((asked_for, removed),) = execute(engine, "SELECT asked_for, removed FROM vector_forgotten")
    assert asked_for == "key"
    assert removed["rag_chunks"] == 1
    assert all(isinstance(rows, int) for rows in removed.values())


def test_a_dry_run_says_the_same_and_changes_nothing(engine: sa.Engine, variables: dict[str, str]) -> None:
    keep_everywhere(engine, ZOE)
    output = forget(variables, "--key", ZOE, "--dry-run").output
    assert "rag_chunks: 1 row(s) would go" in output
    assert where(engine, ZOE) == KEPT_IN
    assert execute(engine, "SELECT count(*) FROM vector_forgotten") == [(0,)]


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, KEPT_IN), ("y\n", 0, [])])
def test_it_asks_before_it_takes_anything_out(
    engine: sa.Engine, variables: dict[str, str], answer: str, code: int, left: list[str]
) -> None:
    keep_everywhere(engine, ZOE)
    forget(variables, "--key", ZOE, answer=answer, code=code)
    assert where(engine, ZOE) == left


def test_a_second_time_there_is_nothing_and_no_record_of_that(engine: sa.Engine, variables: dict[str, str]) -> None:
    keep_everywhere(engine, ZOE)
    forget(variables, "--key", ZOE)
    assert "nothing is kept here" in forget(variables, "--key", ZOE).output
    assert execute(engine, "SELECT count(*) FROM vector_forgotten") == [(1,)]


def test_of_an_applications_row_our_columns_go_and_the_delete_for_the_rest_is_printed(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    adopted(engine)
    quoted = "o'brien"
    add_rows(engine, [quoted, BOB])
    execute(engine, "ALTER TABLE rag_chunks ADD old_retired vector(8), ADD mine_retired text DEFAULT 'mine'")
    execute(engine, "COMMENT ON COLUMN rag_chunks.old_retired IS 'retired by amprenta_vectors at 2026-01-01'")
    execute(
        engine,
        "UPDATE rag_chunks SET embedding = :v, old_retired = :v, embedding_model = 'm', embedding_hash = 1,"
        " embedding_text_hash = 2",
        v=VECTOR,
    )
    output = forget(variables, "--key", quoted).output
    assert "rag_chunks, emptied: 1 row(s) gone" in output
    ours = "embedding, old_retired, embedding_model, embedding_hash, embedding_text_hash"
    assert execute(
        engine,
        f"SELECT num_nonnulls({ours}), mine_retired, content IS NOT NULL FROM rag_chunks ORDER BY chunk_id",
    ) == [(5, "mine", True), (0, "mine", True)]
    (typed,) = re.findall("DELETE FROM .*", output)
    execute(engine, typed)
    assert execute(engine, "SELECT chunk_id FROM rag_chunks") == [(BOB,)]


def test_a_row_that_a_store_inserted_into_an_applications_table_goes_whole(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    adopted(engine)
    store = open_pgvector_store(Settings.load(database_url=variables["DATABASE_URL"]))
    store.upsert([Record(key, to_vectors(1)[0], f"text of {key}", {"who": key}) for key in (ZOE, BOB)])
    store.close()
    output = forget(variables, "--key", ZOE).output
    assert "rag_chunks: 1 row(s) gone" in output
    assert where(engine, ZOE) == []
    assert where(engine, BOB) == ["rag_chunks", "vector_row_mark"]


def test_a_column_that_cannot_be_emptied_refuses_with_the_statement_that_helps(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    adopted(engine)
    add_rows(engine, [ZOE])
    execute(engine, "UPDATE rag_chunks SET embedding = :v", v=VECTOR)
    execute(engine, "ALTER TABLE rag_chunks ALTER embedding SET NOT NULL")
    output = forget(variables, "--key", ZOE, code=2).output
    (typed,) = re.findall("hint: (DELETE FROM .*), then the same command again", output)
    execute(engine, typed)
    forget(variables, "--key", ZOE)
    assert where(engine, ZOE) == []


def test_another_namespace_keeps_the_same_key(engine: sa.Engine, variables: dict[str, str]) -> None:
    add_rows(engine, [ZOE], "theirs")
    keep_everywhere(engine, ZOE)
    forget(variables, "--key", ZOE)
    assert where(engine, ZOE) == ["rag_chunks"]
    forget(variables, "--key", ZOE, "--namespace", "theirs")
    assert where(engine, ZOE) == []


def test_a_deletion_that_the_other_store_has_not_got_stays_until_it_has(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    keep_everywhere(engine, ZOE)
    execute(engine, "UPDATE vector_outbox SET cleared_at = NULL WHERE operation = 'delete'")
    output = forget(variables, "--key", ZOE, code=1).output
    assert "1 deletion(s) stay in vector_outbox" in output
    assert execute(engine, "SELECT operation, text FROM vector_outbox") == [("delete", None)]
    execute(engine, "UPDATE vector_outbox SET cleared_at = now()")
    forget(variables, "--key", ZOE)
    assert where(engine, ZOE) == []


@pytest.mark.parametrize("state", ["planned", "running", "paused"])
def test_an_unfinished_run_refuses_and_cancelling_it_helps(
    engine: sa.Engine, variables: dict[str, str], state: str
) -> None:
    keep_everywhere(engine, ZOE)
    execute(engine, "UPDATE migration_run SET state = :state, finished_at = NULL WHERE source IS NOT NULL", state=state)
    output = forget(variables, "--key", ZOE, code=2).output
    (command,) = re.findall(r"amprenta-vectors (cancel \d+)", output)
    assert where(engine, ZOE) == KEPT_IN
    assert CliRunner().invoke(main, command.split(), env=variables).exit_code == 0
    forget(variables, "--key", ZOE)
    assert where(engine, ZOE) == []


def test_what_a_backfill_left_of_a_key_goes_and_the_others_stay(
    engine: sa.Engine, variables: dict[str, str], emulator: Callable[..., PineconeEmulator]
) -> None:
    pinecone = emulator()
    pinecone.load("", [ZOE, BOB], to_vectors(2), [{"text": f"about {name}"} for name in (ZOE, BOB)])
    given = environment(variables["DATABASE_URL"], pinecone) | {"AMPRENTA_REPORT": variables["AMPRENTA_REPORT"]}
    assert CliRunner().invoke(main, ["backfill", "--keys-from", "source"], env=given).exit_code == 0
    output = forget(given, "--key", ZOE).output
    assert where(engine, ZOE) == []
    assert where(engine, BOB)
    assert "the source: " in output
    assert "the store that VECTOR_BACKEND names: pinecone" in output
    assert "VACUUM (ANALYZE)" in output
    assert CliRunner().invoke(main, ["doctor"], env=given).exit_code in (0, 1)


def test_reports_that_name_the_person_are_listed(engine: sa.Engine, variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "run-1.html").write_text("<td>a &amp; b</td>")
    (tmp_path / "reports" / "run-2.html").write_text("<td>nobody</td>")
    output = forget(variables, "--key", "a & b").output
    assert "a report: " in output
    assert "run-1.html" in output
    assert "run-2.html" not in output


@pytest.mark.parametrize(
    "key", ["100%", "a_b", "back\\slash", "[a-z]+(.*)", "'; DROP TABLE rag_chunks; --", "Zoë ↑", "7"]
)
def test_whatever_a_key_is_it_is_only_that_key(engine: sa.Engine, variables: dict[str, str], key: str) -> None:
    others = ["100x", "axb", "a", "zoe", "77", "x" + key, key + "x"]
    add_rows(engine, others)
    keep_everywhere(engine, key)
    execute(engine, "UPDATE migration_run SET last_error = NULL")
    forget(variables, "--key", key)
    assert sorted(row for (row,) in execute(engine, "SELECT chunk_id FROM rag_chunks")) == sorted(others)
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE key = :key", key=key) == [(0,)]
    assert execute(engine, "SELECT count(*) FROM shadow_query") == [(0,)]
    assert execute(engine, "SELECT detail ->> 'error' FROM migration_event") == [("(forgotten)",)]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--key", ZOE, "--user", ZOE),
        ("--key", ""),
        ("--key", "\0"),
        ("--user", ZOE, "--namespace", "n"),
        ("--user", ""),
    ],
)
def test_who_is_meant_has_to_be_said_once(variables: dict[str, str], arguments: tuple[str, ...]) -> None:
    assert "hint: " in forget(variables, *arguments, code=2).output


def test_before_any_upgrade_the_upgrade_is_named(database_url: str) -> None:
    given = {"DATABASE_URL": database_url}
    assert "alembic upgrade head" in forget(given, "--key", ZOE, code=2).output
    assert "alembic upgrade head" in forget(given, "--user", ZOE, code=2).output


@pytest.fixture
def documents(documents_url: str) -> Iterator[sa.Engine]:
    engine = create_engine(Settings.load(database_url=documents_url))
    yield engine
    engine.dispose()


def add_document(engine: sa.Engine, user: str, collection: str, name: str) -> None:
    """Keep a document of a user, an intent for it, and the run that brought it, with a row in quarantine."""
    namespace = VECTOR_DOCUMENTS.key_rule.uuid_namespace
    assert isinstance(namespace, UUID)
    scope = f'{{"user_id": "{user}", "collection_name": "{collection}"}}'
    execute(
        engine,
        "INSERT INTO vector_documents (id, user_id, collection_name, text, embedding)"
        " VALUES (:id, :user, :collection, :text, array_fill(1, ARRAY[256])::vector)",
        id=str(uuid5(namespace, f"{user}/{collection}/{name}")),
        user=user,
        collection=collection,
        text=f"{name} of {user}",
    )
    execute(
        engine,
        "INSERT INTO vector_outbox (target, scope, key, operation) VALUES ('vector_documents.embedding',"
        " CAST(:scope AS jsonb), :name, 'upsert')",
        scope=scope,
        name=name,
    )
    execute(
        engine,
        "WITH run AS ("
        "INSERT INTO migration_run (vector_table, target, scope, source, state, desired_state, finished_at)"
        " VALUES ('vector_documents', 'vector_documents.embedding', CAST(:scope AS jsonb), 'simple:' || :user,"
        " 'finished', 'running', now()) RETURNING id)"
        " INSERT INTO migration_quarantine (run_id, key, reason, batch, detail)"
        " SELECT id, :name, 'no_vector', 1, '' FROM run",
        scope=scope,
        user=user,
        name=f"aside {name}",
    )


def of_documents(engine: sa.Engine, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "AMPRENTA_TABLE": "vector_documents",
        "AMPRENTA_REPORT": str(tmp_path / "reports"),
        "VECTOR_BACKEND": "pgvector",
        "SIMPLE_STORE_ROOT": str(tmp_path / "user_data"),
    }


def test_a_user_is_gone_from_every_collection_and_everything_kept_of_it(documents: sa.Engine, tmp_path: Path) -> None:
    for user in (ZOE, BOB):
        add_document(documents, user, "one", "doc")
        add_document(documents, user, "two", "doc")
    execute(
        documents,
        "INSERT INTO shadow_query (primary_store, secondary_store, query, top_k, hits, primary_ms, filter)"
        " VALUES ('a', 'b', '{1}', 1, 1, 1, jsonb_build_object('user_id', :user))",
        user=ZOE,
    )
    output = forget(of_documents(documents, tmp_path), "--user", ZOE).output
    assert where(documents, ZOE) == []
    assert where(documents, BOB) == ["migration_run", "vector_documents", "vector_outbox"]
    assert "vector_documents: 2 row(s) gone" in output
    assert f"the source: simple:{ZOE}" in output
    assert execute(documents, "SELECT count(*) FROM migration_quarantine") == [(2,)]


def test_a_document_is_found_by_its_own_id_as_by_its_rows(documents: sa.Engine, tmp_path: Path) -> None:
    for name in ("doc", "other"):
        add_document(documents, ZOE, "one", name)
    given = of_documents(documents, tmp_path)
    assert "vector_documents: 1 row(s)" in forget(given, "--key", "doc", "--namespace", f"{ZOE}/one").output
    ((row,),) = execute(documents, "SELECT id::text FROM vector_documents")
    assert "vector_documents: 1 row(s)" in forget(given, "--key", row.upper(), "--namespace", f"{ZOE}/one").output
    assert "--namespace USER_ID/COLLECTION_NAME" in forget(given, "--key", "doc", code=2).output


def test_files_and_backups_of_the_user_are_named(documents: sa.Engine, tmp_path: Path) -> None:
    for folder in ("user_data", "user_data_backup_20260101_000000"):
        for user in (ZOE, BOB):
            (tmp_path / folder / user).mkdir(parents=True)
    output = forget(of_documents(documents, tmp_path), "--user", ZOE).output
    assert f"the files: {tmp_path / 'user_data' / ZOE}" in output
    assert f"a backup: {tmp_path / 'user_data_backup_20260101_000000' / ZOE}" in output
    assert BOB not in output


def test_where_the_files_were_need_not_be_there_any_more(documents: sa.Engine, tmp_path: Path) -> None:
    given = {**of_documents(documents, tmp_path), "SIMPLE_STORE_ROOT": str(tmp_path / "unmounted" / "user_data")}
    assert "the files: " not in forget(given, "--user", ZOE).output


def test_what_a_downgrade_retired_is_reached_too(documents: sa.Engine, documents_url: str, tmp_path: Path) -> None:
    for user in (ZOE, BOB):
        add_document(documents, user, "one", "doc")
    # Another section holds the engine's tables, or none does: then they are retired with the rest.
    downgrade(Settings.load(database_url=documents_url), "documents", "base")
    before = where(documents, ZOE)
    assert "vector_documents_retired" in before
    assert "migration_run_retired" in before
    given = of_documents(documents, tmp_path)
    upgrade(Settings.load(database_url=documents_url, vector_dimension=8))
    output = forget(given, "--user", ZOE).output
    assert "vector_documents_retired: 1 row(s) gone" in output
    assert where(documents, ZOE) == []
    assert "vector_documents_retired" in where(documents, BOB)


def test_a_table_that_holds_one_namespace_refuses_another(engine: sa.Engine, variables: dict[str, str]) -> None:
    keep_everywhere(engine, ZOE)
    execute(engine, "ALTER TABLE rag_chunks DROP namespace CASCADE")
    execute(engine, "CREATE UNIQUE INDEX ON rag_chunks (chunk_id)")
    assert "nothing says that it holds 'b'" in forget(variables, "--key", ZOE, "--namespace", "b", code=2).output
    assert where(engine, ZOE) == KEPT_IN
    forget(variables, "--key", ZOE)
    assert where(engine, ZOE) == []


def test_where_nobody_can_tell_whose_a_row_is_that_is_said(documents: sa.Engine, tmp_path: Path) -> None:
    add_document(documents, ZOE, "one", "doc")
    execute(documents, "ALTER TABLE vector_documents DROP user_id CASCADE")
    given = of_documents(documents, tmp_path)
    assert "vector_documents has no column user_id" in forget(given, "--user", ZOE).output
    assert "ADD COLUMN user_id" in forget(given, "--key", "doc", "--namespace", f"{ZOE}/one", code=2).output


def test_where_all_is_retired_all_of_it_is_reached(documents: sa.Engine, documents_url: str, tmp_path: Path) -> None:
    given = of_documents(documents, tmp_path)
    for user in ("first", ZOE, BOB):
        add_document(documents, user, "one", "doc")
    forget(given, "--user", "first")
    downgrade(Settings.load(database_url=documents_url), "documents", "base")
    assert "vector_documents_retired: 1 row(s) gone" in forget(given, "--user", ZOE).output
    assert where(documents, ZOE) == []
    assert execute(documents, "SELECT count(*) FROM vector_forgotten_retired") == [(2,)]
    output = forget(given, "--key", "doc", "--namespace", f"{BOB}/one").output
    assert "vector_documents_retired: 1 row(s) gone" in output
    assert "vector_outbox: 1 row(s) gone" in output


DECLARED = {
    "numbered": ("doc text, n int", "doc, n", 'key = ["doc", "n"]\nkey_map = "numbered"', "('zoe-4711', {n})", 2),
    "split": (
        "tenant text, doc text",
        "tenant, doc",
        'key = ["tenant", "doc"]\nkey_map = "split"\nseparator = "-"',
        "('zoe', '4711')",
        1,
    ),
    "lookup": (
        "id bigserial, external text",
        "id",
        'key = "id"\nkey_map = "lookup"\nlookup = "external"',
        "(DEFAULT, 'zoe-4711')",
        2,
    ),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_every_row_of_a_key_goes_whatever_the_key_map(
    engine: sa.Engine, variables: dict[str, str], tmp_path: Path, kind: str
) -> None:
    columns, key, declared, row, rows = DECLARED[kind]
    execute(engine, f"CREATE TABLE notes ({columns}, body text, embedding vector(8), PRIMARY KEY ({key}))")
    given = [row.format(n=n)[:-1] + f", 'text', '{VECTOR}')" for n in range(rows)]
    execute(engine, f"INSERT INTO notes VALUES {', '.join(given)}")
    other = row.format(n=0).replace("4711", "0815")[:-1] + f", 'text', '{VECTOR}')"
    execute(engine, f"INSERT INTO notes VALUES {other}")
    text = f'[tables.notes]\ntable = "notes"\ntext = "body"\ndimension = 8\n{declared}\n'
    (tmp_path / "amprenta.toml").write_text(text)
    output = forget(variables | {"AMPRENTA_TABLE": "notes"}, "--key", ZOE).output
    assert f"notes, emptied: {rows} row(s) gone" in output
    assert execute(engine, "SELECT count(*) FROM notes WHERE embedding IS NOT NULL") == [(1,)]
    (typed,) = re.findall("DELETE FROM .*", output)
    execute(engine, typed)
    assert execute(engine, "SELECT count(*) FROM notes") == [(1,)]


def test_a_uuid_that_the_source_puts_a_prefix_before_is_found_under_either(
    engine: sa.Engine, variables: dict[str, str]
) -> None:
    one, other = "6f0c1d52-5a53-4d0e-9a44-0d6f3f6f0001", "6f0c1d52-5a53-4d0e-9a44-0d6f3f6f0002"
    execute(engine, "CREATE TABLE products (id uuid PRIMARY KEY, name text, embedding vector(8))")
    execute(
        engine,
        f"INSERT INTO products SELECT id, 'n', '{VECTOR}' FROM unnest(CAST(:ids AS uuid[])) id",
        ids=[one, other],
    )
    execute(
        engine,
        "WITH run AS (INSERT INTO migration_run (vector_table, target, source, state, desired_state, finished_at)"
        " VALUES ('products', 'products.embedding', 'chroma:x', 'finished', 'running', now()) RETURNING id)"
        " INSERT INTO migration_quarantine (run_id, key, reason, batch, detail)"
        " SELECT run.id, 'product_' || each, 'no_vector', 1, '' FROM run, unnest(CAST(:ids AS text[])) each",
        ids=[one, other],
    )
    given = variables | {"AMPRENTA_TABLE": "products"}
    forget(given, "--key", one.upper())
    assert execute(engine, "SELECT key FROM migration_quarantine") == [(f"product_{other}",)]
    forget(given, "--key", f"product_{other}")
    assert execute(engine, "SELECT count(*), count(embedding) FROM products") == [(2, 0)]
    assert execute(engine, "SELECT count(*) FROM migration_quarantine") == [(0,)]
