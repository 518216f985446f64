"""Simple vector stores are moved, verified, taken back and removed by the commands that a person types."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from uuid import uuid5

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute, run_forked, run_process
from click.testing import CliRunner, Result
from cryptography.fernet import Fernet
from databases import janitor

from amprenta_vectors.backends.simple import fields, shapes
from amprenta_vectors.backends.simple import source as source_module
from amprenta_vectors.backends.simple.cipher import MetadataCipher, decrypted
from amprenta_vectors.backends.simple.folder import FILES
from amprenta_vectors.backends.simple.source import SimpleOrigin, SimpleSource
from amprenta_vectors.backfill.engine.observer import MoveEvent
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import ExitCode, SourceError
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.moves.ends import open_ends
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.systems.documents.migration import StoreMigration
from amprenta_vectors.systems.documents.stores import choose_stores, document_settings

KEY = Fernet.generate_key().decode()
DIMENSION = 8


@pytest.fixture(scope="module")
def small_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with the documents' section in it, of short vectors."""
    with janitor(postgres_server, "small_documents_template", as_template=True) as template:
        url = postgres_server.url(template.dbname)
        upgrade(Settings.load(database_url=url, vector_dimension=DIMENSION), "documents")
        yield template.dbname


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, small_template: str) -> Iterator[str]:
    """The URL of a database with the documents' section in it."""
    with janitor(postgres_server, "small_documents", small_template) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """An engine on the database that the environment names."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
    engine = create_engine(Settings.load(database_url=database_url))
    yield engine
    engine.dispose()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two users with documents of the same ids and texts, one of them encrypted, and a second collection."""
    root = tmp_path / "user_data"
    make_store(root, "alice", seed=1)
    make_store(root, "bob", seed=2, encrypted=True)
    make_store(root, "bob", "notes", seed=3, count=5)
    return root


def to_documents(count: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    vectors = {f"doc-{n}": row.tolist() for n, row in enumerate(rows)}
    return vectors, {i: {"text": f"text of {i}", "metadata": {"page": n}} for n, i in enumerate(vectors)}


def make_store(
    root: Path,
    user: str,
    collection: str = "personal_assistant",
    *,
    seed: int,
    count: int = 30,
    encrypted: bool = False,
) -> Path:
    return write_store(root, user, collection, *to_documents(count, seed), encrypted=encrypted)


def write_store(
    root: Path, user: str, collection: str, vectors: Any, documents: Any, *, encrypted: bool = False
) -> Path:
    folder = root / user / f"vector_store_{collection}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vectors.pkl").write_bytes(pickle.dumps(vectors))
    content = json.dumps(documents).encode()
    (folder / "metadata.json").write_bytes(Fernet(KEY).encrypt(content) if encrypted else content)
    return folder


def run(root: Path, *arguments: str, command: str = "migrate", **options: Any) -> Result:
    return CliRunner().invoke(main, ["documents", command, "--root", str(root), *arguments], **options)


def rows_of(engine: sa.Engine) -> dict[tuple[str, str, str], tuple[str, str, dict[str, Any], list[float]]]:
    """By user, collection and original id: the key, text, metadata and embedding."""
    rows = execute(
        engine,
        "SELECT user_id, collection_name, id::text, text, metadata, CAST(embedding AS real[]) FROM vector_documents",
    )
    return {(user, collection, m["original_id"]): (key, text, m, v) for user, collection, key, text, m, v in rows}


def files_of(root: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_every_users_documents_arrive_bit_for_bit_under_keys_of_their_own(engine: sa.Engine, root: Path) -> None:
    before, namespace = files_of(root), VECTOR_DOCUMENTS.key_rule.uuid_namespace
    assert namespace is not None
    result = run(root)
    assert result.exit_code == 0, result.output
    rows = rows_of(engine)
    assert len(rows) == 65
    for user, collection, seed, count in (
        ("alice", "personal_assistant", 1, 30),
        ("bob", "personal_assistant", 2, 30),
        ("bob", "notes", 3, 5),
    ):
        vectors, documents = to_documents(count, seed)
        assert f"{user}/{collection}: {count} documents in the files, {count} rows in the table, 0 quarantined" in (
            result.output
        )
        for identity, vector in vectors.items():
            key, text, metadata, stored = rows[user, collection, identity]
            assert key == str(uuid5(namespace, f"{user}/{collection}/{identity}"))
            assert text == documents[identity]["text"]
            assert decrypted(metadata, MetadataCipher(KEY)) == {
                **documents[identity]["metadata"],
                "original_id": identity,
            }
            assert np.float32(stored).tobytes() == np.float32(vector).tobytes()
    assert "page" not in str(execute(engine, "SELECT metadata FROM vector_documents"))
    assert "metadata: a dict by id, encrypted as a whole" in result.output
    assert result.output.count("equal, bit for bit") == 3
    assert files_of(root) == before


def test_a_command_makes_one_backup_folder_for_all_its_users(engine: sa.Engine, root: Path) -> None:
    assert run(root).exit_code == 0
    [backup] = root.parent.glob("user_data_backup_*")
    assert files_of(backup) == files_of(root)


def test_a_dated_backup_is_made_once_for_the_same_files(engine: sa.Engine, root: Path) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    [backup] = root.parent.glob("user_data_backup_*")
    copied = files_of(backup)
    assert copied == {name: content for name, content in files_of(root).items() if name.startswith("alice/")}
    result = run(root, "--user", "alice", "--resume")
    assert "backed up before" in result.output
    assert list(root.parent.glob("user_data_backup_*")) == [backup]


def test_a_dry_run_says_what_there_is_and_changes_nothing(engine: sa.Engine, root: Path) -> None:
    vectors, documents = to_documents(3, 5)
    write_store(root, "carol", "odd", {**vectors, "alone": [1.0] * DIMENSION}, documents)
    (root / "dave" / "vector_store_x").mkdir(parents=True)
    (root / "dave" / "vector_store_x" / "metadata.json").write_text("{}")
    (root / "erin" / "vector_store_new").mkdir(parents=True)
    result = run(root, "--dry-run")
    assert result.exit_code == 1
    assert "alice/personal_assistant: 30 documents, 0 rows in the table, 0 to be quarantined" in result.output
    assert "vectors: a dict by id; metadata: a dict by id, not encrypted" in result.output
    assert "carol/odd: 4 documents, 0 rows in the table, 1 to be quarantined" in result.output
    assert "unpaired: 'alone'" in result.output
    assert "vector_store_x/vectors.pkl is not there" in result.output
    assert "erin" not in result.output
    assert rows_of(engine) == {}
    assert not execute(engine, "SELECT 1 FROM migration_run WHERE source IS NOT NULL")
    assert not list(root.parent.glob("user_data_backup_*"))


def test_what_cannot_be_carried_over_is_quarantined_and_exits_3(engine: sa.Engine, root: Path) -> None:
    vectors, documents = to_documents(40, 7)
    vectors |= {"short": [1.0] * 3, "alone": [1.0] * DIMENSION, "zero": [0.0] * DIMENSION}
    documents |= {name: {"text": "x"} for name in ("short", "zero", "no vector")}
    folder = write_store(root, "carol", "odd", vectors, documents)
    result = run(root, "--max-bad-share", "0.5")
    assert result.exit_code == 3, result.output
    assert "carol/odd: 44 documents in the files, 40 rows in the table, 4 quarantined" in result.output
    found = execute(engine, "SELECT key, reason, detail FROM migration_quarantine ORDER BY key")
    assert [(key, reason) for key, reason, _ in found] == [
        ("alone", "unpaired"),
        ("no vector", "unpaired"),
        ("short", "wrong_dimension"),
        ("zero", "zero_under_cosine"),
    ]
    assert all(str(folder) in detail for _, reason, detail in found if reason != "zero_under_cosine")
    refused = run(root, "--yes", "--user", "carol", command="remove-files")
    assert "they are nowhere else: AMPRENTA_TABLE=vector_documents amprenta-vectors errors" in refused.output


def test_stores_that_cannot_be_read_are_named_and_stop_nobody_else(engine: sa.Engine, root: Path) -> None:
    (make_store(root, "anna", seed=4) / "metadata.json").unlink()
    (make_store(root, "berta", seed=4) / "vectors.pkl").write_bytes(b"cos\nsystem\n(Vtouch canary\ntR.")
    vectors, documents = to_documents(4, 4)
    write_store(root, "clara", "wide", {i: [1.0] * 16 for i in vectors}, documents)
    other = Fernet(Fernet.generate_key()).encrypt(json.dumps(documents).encode())
    (make_store(root, "dora", seed=4) / "metadata.json").write_bytes(other)
    result = run(root)
    assert result.exit_code == 1
    assert len(rows_of(engine)) == 65
    for said in (
        "anna/personal_assistant: failed: ",
        "metadata.json is not there",
        "vectors.pkl is refused: it tries the global os.system",
        "has vectors of 16 dimensions, vector_documents.embedding has 8",
        "VECTOR_DIMENSION=16",
        "is encrypted with another key than VECTOR_STORE_ENCRYPTION_KEY",
        "bob/notes: 5 documents in the files, 5 rows in the table, 0 quarantined",
    ):
        assert said in result.output, said


def test_users_that_are_not_there_and_options_that_contradict_are_usage_errors(engine: sa.Engine, root: Path) -> None:
    result = run(root, "--user", "alice", "--user", "nobody")
    assert (result.exit_code, "users there are: alice, bob" in result.output) == (2, True)
    assert run(root, "--resume", "--rollback").exit_code == 2
    assert "--root" in run(root / "nowhere").output
    assert "has no store" in run(root / "alice").output


def test_rollback_takes_back_what_was_inserted_and_nothing_else(engine: sa.Engine, root: Path) -> None:
    assert run(root).exit_code == 0
    insert = (
        "INSERT INTO vector_documents (user_id, collection_name, text, embedding, metadata) "
        "SELECT user_id, collection_name, 'own', embedding, '{\"original_id\": \"own\"}' FROM vector_documents LIMIT 1"
    )
    execute(engine, insert)
    changed = (
        ("doc-1", "text = 'edited'"),
        ("doc-2", "metadata = metadata || '{\"page\": 99}'"),
        ("doc-3", "embedding = (SELECT embedding FROM vector_documents WHERE text = 'own')"),
    )
    for identity, change in changed:
        execute(
            engine,
            f"UPDATE vector_documents SET {change} WHERE user_id = 'alice' AND metadata->>'original_id' = :id",
            id=identity,
        )
    execute(engine, "DELETE FROM vector_documents WHERE user_id = 'bob' AND metadata->>'original_id' = 'doc-4'")
    said = run(root, "--rollback", "--dry-run").output
    assert "alice/personal_assistant: 30 rows were inserted by runs" in said
    assert len(rows_of(engine)) == 64
    result = run(root, "--rollback")
    assert result.exit_code == 0, result.output
    assert "alice/personal_assistant: 27 rows removed, 3 kept because they were changed since" in result.output
    assert "bob/notes: 4 rows removed, 0 kept" in result.output
    left = rows_of(engine)
    assert {identity for _, _, identity in left} == {"own", *(identity for identity, _ in changed)}
    for identity, _ in changed:
        assert left["alice", "personal_assistant", identity][0] in result.output
    again = run(root, "--resume")
    assert again.exit_code == 1  # The three rows differ from the files, and stay as they are.
    assert len(rows_of(engine)) == 66
    assert rows_of(engine)["alice", "personal_assistant", "doc-1"][1] == "edited"


def test_a_row_that_was_there_without_a_vector_is_filled_and_not_taken_back(engine: sa.Engine, root: Path) -> None:
    namespace = VECTOR_DOCUMENTS.key_rule.uuid_namespace
    assert namespace is not None
    execute(engine, "ALTER TABLE vector_documents ALTER embedding DROP NOT NULL")
    execute(
        engine,
        "INSERT INTO vector_documents (id, user_id, collection_name, text, metadata) "
        "VALUES (CAST(:id AS uuid), 'alice', 'personal_assistant', 'own', '{\"original_id\": \"doc-3\"}')",
        id=str(uuid5(namespace, "alice/personal_assistant/doc-3")),
    )
    assert run(root, "--user", "alice").exit_code == 0
    assert "alice/personal_assistant: 29 rows removed, 0 kept" in run(root, "--rollback").output
    assert [row[1] for row in rows_of(engine).values()] == ["own"]


def test_rollback_of_one_user_leaves_the_others(engine: sa.Engine, root: Path) -> None:
    assert run(root).exit_code == 0
    assert run(root, "--rollback", "--user", "bob").exit_code == 0
    assert {user for user, _, _ in rows_of(engine)} == {"alice"}
    assert run(root, "--resume").exit_code == 0
    assert len(rows_of(engine)) == 65


def test_a_run_records_what_it_inserted_itself_and_nothing_else(engine: sa.Engine, root: Path) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    assert execute(engine, "SELECT count(*) FROM migration_insert")[0][0] == 30
    execute(engine, "DELETE FROM vector_documents WHERE metadata->>'original_id' = 'doc-0'")
    assert run(root, "--user", "alice", "--restart").exit_code == 0
    assert [n for (n,) in execute(engine, "SELECT count(*) FROM migration_insert GROUP BY run_id ORDER BY run_id")] == [
        30,
        1,
    ]


def test_old_files_are_removed_only_when_verified_backed_up_and_unchanged(engine: sa.Engine, root: Path) -> None:
    def remove(*arguments: str, **options: Any) -> Result:
        return run(root, *arguments, command="remove-files", **options)

    refused = remove("--yes")
    assert refused.exit_code == 1
    assert refused.output.count("it was not moved and verified") == 3
    assert run(root).exit_code == 0
    before = files_of(root)
    assert remove(input="n\n").exit_code == 1
    assert files_of(root) == before
    make_store(root, "alice", seed=1, count=31)
    assert run(root, "--rollback", "--user", "bob").exit_code == 0
    refused = remove("--yes")
    assert refused.exit_code == 1
    assert "alice/personal_assistant: not removed: no backup from before its comparison" in refused.output
    assert "bob/notes: not removed: it was not moved and verified" in refused.output
    assert len(files_of(root)) == len(before)
    assert run(root, "--restart").exit_code == 0
    done = remove("--yes")
    assert done.exit_code == 0, done.output
    assert files_of(root) == {}
    assert len(rows_of(engine)) == 66
    latest = sorted(root.parent.glob("user_data_backup_*"))
    assert {name for backup in latest for name in files_of(backup)} == set(before)


def test_a_run_that_stopped_midway_is_cancelled_and_taken_back(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = SimpleSource.fetch

    def fetch_until(source: SimpleSource, keys: Sequence[str]) -> VectorBatch:
        if "doc-25" in keys:
            raise SourceError("the disk is broken")
        return fetch(source, keys)

    monkeypatch.setattr(SimpleSource, "fetch", fetch_until)
    stopped = run(root, "--user", "alice", "--batch-size", "5", "--workers", "1")
    assert stopped.exit_code == 1
    assert "alice/personal_assistant: failed: batch 6 (5 keys from 'doc-25'): the disk is broken" in stopped.output
    written = len(rows_of(engine))
    assert written > 0
    assert execute(engine, "SELECT count(*) FROM migration_insert")[0][0] == written
    again = run(root, "--user", "alice")
    assert (again.exit_code, "is unfinished" in again.output) == (2, True)
    assert f"alice/personal_assistant: {written} rows removed, 0 kept" in run(root, "--rollback").output
    assert rows_of(engine) == {}
    assert execute(engine, "SELECT state FROM migration_run WHERE source IS NOT NULL") == [("cancelled",)]


def test_the_scripts_are_the_command(root: Path) -> None:
    for run_it, script in ((run_process, "migrate_simple_store.py"), (run_forked, "migrate_to_pgvector.py")):
        code, said = run_it(os.environ, "--help", script=script)
        assert code == 0
        assert script in said
        assert "--rollback" in said


def test_reconcile_finds_encrypted_documents_equal_and_only_what_is_new(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMPRENTA_TABLE", "vector_documents")
    monkeypatch.setenv("SIMPLE_STORE_ROOT", str(root))
    assert run(root).exit_code == 0
    before = rows_of(engine)
    make_store(root, "bob", seed=2, count=32, encrypted=True)
    result = CliRunner().invoke(main, ["reconcile", "--all-namespaces"])
    assert result.exit_code == 0, result.output
    after = rows_of(engine)
    assert {place for place in after if place not in before} == {
        ("bob", "personal_assistant", "doc-30"),
        ("bob", "personal_assistant", "doc-31"),
    }
    assert {place: after[place] for place in before} == before


def remove(root: Path, *arguments: str, **options: Any) -> Result:
    return run(root, *arguments, command="remove-files", **options)


def reconcile(root: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    with monkeypatch.context() as patch:
        patch.setenv("AMPRENTA_TABLE", "vector_documents")
        patch.setenv("SIMPLE_STORE_ROOT", str(root))
        return CliRunner().invoke(main, ["reconcile", "--all-namespaces"])


@pytest.mark.parametrize("encrypted", [False, True])
def test_files_whose_metadata_was_edited_stay_until_reconcile_has_brought_it_over(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    root = tmp_path / "user_data"
    make_store(root, "alice", seed=1, encrypted=encrypted)
    assert run(root).exit_code == 0
    vectors, documents = to_documents(30, 1)
    documents["doc-3"]["metadata"]["page"] = "edited"
    write_store(root, "alice", "personal_assistant", vectors, documents, encrypted=encrypted)
    assert "amprenta-vectors reconcile --namespace alice/personal_assistant" in remove(root, "--yes").output
    assert run(root, "--restart").exit_code == 0
    refused = remove(root, "--yes")
    assert refused.exit_code == 1
    assert "another text or other metadata of 1 documents than their rows ('doc-3')" in refused.output
    assert len(files_of(root)) == 2
    assert reconcile(root, monkeypatch).exit_code == 0
    assert run(root, "--restart").exit_code == 0
    assert remove(root, "--yes").exit_code == 0
    assert files_of(root) == {}
    metadata = rows_of(engine)["alice", "personal_assistant", "doc-3"][2]
    assert decrypted(metadata, MetadataCipher(KEY))["page"] == "edited"


def test_what_the_application_changed_in_the_table_keeps_no_files(engine: sa.Engine, root: Path) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    execute(engine, "UPDATE vector_documents SET text = 'newer' WHERE metadata->>'original_id' = 'doc-1'")
    execute(
        engine,
        "UPDATE vector_documents SET text = 'newer', embedding_hash = NULL, embedding_text_hash = NULL "
        "WHERE metadata->>'original_id' = 'doc-2'",
    )
    execute(engine, "DELETE FROM vector_documents WHERE metadata->>'original_id' = 'doc-3'")
    done = remove(root, "--yes", "--user", "alice")
    assert done.exit_code == 0, done.output
    assert "alice/personal_assistant: 1 documents have no row any longer" in done.output


def test_files_of_a_store_that_the_table_has_nothing_of_stay(engine: sa.Engine, root: Path) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    execute(engine, "TRUNCATE vector_documents")
    refused = remove(root, "--yes", "--user", "alice")
    assert (refused.exit_code, "has not one of its documents" in refused.output) == (1, True)
    assert len(files_of(root / "alice")) == 2


@pytest.mark.parametrize("change", ["files", "rows"])
def test_what_changed_while_the_person_was_asked_is_not_deleted(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    assert run(root, "--user", "alice").exit_code == 0

    def confirm(*_: Any, **__: Any) -> bool:
        if change == "files":
            make_store(root, "alice", seed=1, count=31)
        else:
            execute(engine, "DELETE FROM vector_documents WHERE metadata->>'original_id' = 'doc-3'")
        return True

    monkeypatch.setattr("click.confirm", confirm)
    refused = remove(root, "--user", "alice")
    assert refused.exit_code == 1
    assert "not removed: " in refused.output
    assert len(files_of(root / "alice")) == 2


def test_files_that_cannot_be_deleted_are_named_and_stop_nobody_else(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(root).exit_code == 0
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if "alice" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = remove(root, "--yes")
    assert result.exit_code == 1
    assert "vectors.pkl cannot be read or written: Permission denied" in result.output
    assert {Path(name).parts[0] for name in files_of(root)} == {"alice"}


def test_a_store_whose_last_change_is_unfinished_keeps_its_files(engine: sa.Engine, root: Path) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    (root / "alice" / "vector_store_personal_assistant" / ".committed").mkdir()
    assert "was made and not finished" in remove(root, "--yes", "--user", "alice").output


def test_rollback_keeps_the_rows_of_files_that_were_removed_and_names_the_backup(engine: sa.Engine, root: Path) -> None:
    assert run(root).exit_code == 0
    assert remove(root, "--yes", "--user", "alice").exit_code == 0
    [backup] = (path for path in root.parent.glob("user_data_backup_*") if (path / "alice").is_dir())
    result = run(root, "--rollback")
    assert result.exit_code == 1
    assert "alice/personal_assistant: not taken back" in result.output
    assert f"put back those of {backup}/alice/vector_store_personal_assistant first" in result.output
    assert {user for user, _, _ in rows_of(engine)} == {"alice"}
    for name, content in files_of(backup / "alice").items():
        (root / "alice" / name).write_bytes(content)
    assert run(root, "--rollback").exit_code == 0
    assert rows_of(engine) == {}


def test_rollback_takes_back_what_reconcile_replaced_and_not_what_was_changed_before(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(root, "--user", "alice").exit_code == 0
    execute(engine, "UPDATE vector_documents SET text = 'own' WHERE metadata->>'original_id' = 'doc-2'")
    vectors, documents = to_documents(30, 1)
    documents["doc-1"]["text"] = "edited"
    vectors["doc-2"] = vectors["doc-3"] = [1.0] * DIMENSION
    write_store(root, "alice", "personal_assistant", vectors, documents)
    assert "3 replaced" in reconcile(root, monkeypatch).output
    assert rows_of(engine)["alice", "personal_assistant", "doc-1"][1] == "edited"
    result = run(root, "--rollback", "--user", "alice")
    assert "alice/personal_assistant: 29 rows removed, 1 kept" in result.output
    assert [row[1] for place, row in rows_of(engine).items() if place[0] == "alice"] == ["own"]


def test_stores_are_moved_from_python_and_tell_an_observer_what_becomes_of_each(
    engine: sa.Engine, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (root / "bob" / "vector_store_notes" / "vectors.pkl").write_bytes(b"no pickle")
    settings, told = document_settings(root), list[MoveEvent]()
    ends = open_ends(settings)
    migration = StoreMigration(settings, ends, observer=told.append)
    stores = choose_stores(cast("SimpleOrigin", ends.origin))
    assert migration.plan(stores) is ExitCode.FAILED
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(migration.run, stores).result() is ExitCode.FAILED
    assert len(rows_of(engine)) == 60
    lines = [json.loads(json.dumps(event.to_json())) for event in told]
    ended = {line["store"]: line["result"] for line in lines if line["event"] == "store"}
    whole = "30 documents in the files, 30 rows in the table, 0 quarantined"
    assert ended.pop("bob/notes").startswith("failed: ")
    assert list(ended.values()) == [whole, whole]
    assert [line["doing"] for line in lines if line["event"] == "store_refused"] == ["plan", "move"]
    assert capfd.readouterr() == ("", "")


def test_files_that_say_more_than_was_read_of_them_stay(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, documents = to_documents(3, seed=5)
    documents["doc-1"]["meta"] = {"author": "x"}
    write_store(root, "carol", "notes", vectors, documents)

    def overlooking(entry: Any) -> fields.Document:
        return fields.Document(entry["text"], (("metadata", entry["metadata"]),))

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "to_document", overlooking)
        assert run(root, "--user", "carol").exit_code == 0
        result = remove(root, "--user", "carol")
        assert result.exit_code == 1
        assert "says more of 1 documents than was read of them ('doc-1')" in result.output
    assert (root / "carol" / "vector_store_notes" / "metadata.json").exists()


def test_every_field_of_a_document_reaches_its_row_and_then_its_files_may_go(engine: sa.Engine, root: Path) -> None:
    vectors, documents = to_documents(3, seed=5)
    documents["doc-1"] |= {"id": 7, "page": 2, "meta": {"author": "x"}}
    documents["doc-1"]["metadata"]["original_id"] = "own"
    write_store(root, "carol", "notes", vectors, documents, encrypted=True)
    assert run(root, "--user", "carol").exit_code == 0
    found = decrypted(rows_of(engine)["carol", "notes", "doc-1"][2], MetadataCipher(KEY))
    own = {"id": 7, "page": 1, "page__beside": 2, "meta": {"author": "x"}, "original_id__metadata": "own"}
    assert found == own | {"original_id": "doc-1"}
    result = remove(root, "--user", "carol", "--yes")
    assert result.exit_code == 0, result.output


def test_what_postgresql_cannot_hold_is_quarantined_and_carried_over_without_it_where_asked(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECTOR_STORE_ENCRYPTION_KEY")
    monkeypatch.setenv("AMPRENTA_MAX_BAD_SHARE", "1")
    vectors, documents = to_documents(5, seed=5)
    documents["doc-1"]["text"] = "from a\0 PDF\0"
    documents["doc-2"]["metadata"]["score"] = float("nan")
    documents["doc-3"]["metadata"]["title"] = "x\0y"
    write_store(root, "carol", "notes", vectors, documents)
    result = run(root, "--user", "carol")
    assert result.exit_code == 3
    shown = CliRunner().invoke(main, ["errors"])
    assert {"2 nul_character", "1 nan_in_metadata"} <= set(shown.output.splitlines())
    assert shown.output.count("--nul strip") == 3
    result = run(root, "--user", "carol", "--restart", "--nul", "strip")
    assert result.exit_code == 0, result.output
    assert "3 nul_stripped" in result.output
    rows = {identity: row for (user, _, identity), row in rows_of(engine).items() if user == "carol"}
    assert len(rows) == 5
    assert rows["doc-1"][1] == "from a PDF"
    assert rows["doc-2"][2] == {"page": 2, "score": None, "original_id": "doc-2"}
    assert rows["doc-3"][2]["title"] == "xy"
    assert "NUL characters in the text" in CliRunner().invoke(main, ["errors"]).output
    variables = {"SIMPLE_STORE_ROOT": str(root), "AMPRENTA_TABLE": "vector_documents"}
    compared = CliRunner().invoke(main, ["verify", "--namespace", "carol/notes"], env=variables)
    assert compared.exit_code == 0, compared.output
    removed = remove(root, "--user", "carol", "--yes")
    assert removed.exit_code == 0, removed.output


def nested(depth: int) -> Any:
    value: Any = "deepest"
    for _ in range(depth):
        value = {"in": value}
    return value


def spoil(root: Path) -> dict[str, str]:
    """Add stores whose content, files or names nobody expects; return what each is refused by, or quarantined."""
    stores = {
        name: make_store(root, name, "x", seed=9, count=3) for name in ("deep", "pipe", "device", "global", "odd")
    }
    vectors, documents = to_documents(3, seed=9)
    documents["doc-1"]["metadata"] = nested(400)
    write_store(root, "deep", "x", vectors, documents)
    write_store(root, "deeper", "x", vectors, documents)
    content = json.dumps(documents).replace('"deepest"', "[" * 50_000 + "]" * 50_000)
    (root / "deeper" / "vector_store_x" / "metadata.json").write_text(content)
    (stores["pipe"] / "vectors.pkl").unlink()
    os.mkfifo(stores["pipe"] / "vectors.pkl")
    (stores["device"] / "metadata.json").unlink()
    (stores["device"] / "metadata.json").symlink_to("/dev/zero")
    half = pickle.dumps("\ud800x")[:-1].removesuffix(pickle.MEMOIZE)
    (stores["global"] / "vectors.pkl").write_bytes(half + half[11:] + pickle.STACK_GLOBAL + pickle.STOP)
    os.rename(os.fsencode(root / "odd"), os.path.join(os.fsencode(root), b"odd\xff"))
    return {
        "deeper/x": "is no JSON",
        "pipe/x": "is no regular file",
        "device/x": "is a symbolic link to /dev/zero",
        "global/x": "is refused: it tries",
        "odd\\udcff/x": "is not UTF-8",
    }


def test_whatever_one_store_raises_is_its_own_failure_and_the_rest_is_moved(engine: sa.Engine, root: Path) -> None:
    refused = spoil(root)
    for arguments in (["--dry-run"], ["--max-bad-share", "1"]):
        result = run(root, *arguments)
        assert result.exit_code == 1
        for store, why in refused.items():
            lines = [line for line in result.output.splitlines() if f"{store}: " in line]
            assert any(why in line for line in lines), (store, result.output)
    assert "deep/x: 3 documents in the files, 2 rows in the table, 1 quarantined" in result.output
    assert "more than 100 objects and lists in one another" in CliRunner().invoke(main, ["errors"]).output
    assert {user for user, _, _ in rows_of(engine)} == {"alice", "bob", "deep"}


def test_an_error_that_nobody_foresaw_is_the_failure_of_its_store_and_an_interrupt_is_not(
    engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = source_module.read_store
    raised: list[type[BaseException]] = [ZeroDivisionError]

    def read_store(folder: Path, key: str | None) -> Any:
        if folder.parent.name == "alice":
            raise raised[0]("half \ud800")
        return read(folder, key)

    monkeypatch.setattr(source_module, "read_store", read_store)
    result = run(root)
    assert result.exit_code == 1
    assert "alice/personal_assistant: failed: " in result.output
    assert "ZeroDivisionError: half \\ud800" in result.output
    assert len(rows_of(engine)) == 35
    raised[0] = KeyboardInterrupt
    result = run(root, "--restart")
    assert isinstance(result.exception, KeyboardInterrupt | SystemExit)
    assert result.exit_code != 0
    assert "bob/notes: " not in result.output


def test_what_a_link_leads_to_is_nobody_elses_and_is_not_removed(engine: sa.Engine, root: Path) -> None:
    (root / "bob" / "vector_store_stolen").symlink_to(root / "alice" / "vector_store_personal_assistant")
    (root / "carol").symlink_to(root / "alice")
    outside = make_store(root.parent / "elsewhere", "x", "y", seed=4)
    (root / "bob" / "vector_store_outside").symlink_to(outside)
    dave = make_store(root, "dave", "x", seed=5)
    (dave / "metadata.json").unlink()
    (dave / "metadata.json").symlink_to(root / "bob" / "vector_store_notes" / "metadata.json")
    before = files_of(root.resolve())
    result = run(root)
    assert result.exit_code == 1
    assert {(user, collection) for user, collection, _ in rows_of(engine)} == {
        ("bob", "personal_assistant"),
        ("bob", "notes"),
    }
    for store in ("bob/stolen", "carol/personal_assistant", "alice/personal_assistant", "bob/outside", "dave/x"):
        assert f"{store}: failed: " in result.output, store
    removed = remove(root, "--yes")
    assert removed.exit_code == 1
    gone = {f"bob/vector_store_{name}/{file}" for name in ("personal_assistant", "notes") for file in FILES}
    left = {name for name in before if (root / name).is_file()}
    assert set(before) - left == gone | {"dave/vector_store_x/metadata.json"}
    (root / "carol").unlink()
    (root / "bob" / "vector_store_stolen").unlink()
    assert run(root, "--user", "alice").exit_code == 0
