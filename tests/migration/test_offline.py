"""What `--sql` prints: it runs in psql on a database in any state, and makes of it what the online command makes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fingerprint import fingerprint
from migrating import ROOT, Database, wait_until
from test_operations import ODD, revision
from typed import type_in

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine, migration_lock
from amprenta_vectors.ddl.gate import check_finished
from amprenta_vectors.errors import AmprentaError, RunConflict
from amprenta_vectors.sandbox import postgres

NAMES = [ODD, "two\n  'lines", "ü" * 31, "back\\slash 'quote' $do$ $$ :colon", "name"]
INDEX = "idx_rag_chunks_embedding"
PSQL = [str(postgres._binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
REVISIONS = ["core_0001", "rag_0001", "rag_0002", "rag_0003", "rag_0004"]
RUNS = """
    SELECT vector_table, target, scope, source, state, desired_state, finished_at IS NOT NULL FROM migration_run
    ORDER BY id
"""
BITS = """
    SELECT chunk_id, encode(vector_send(CAST(embedding AS vector)), 'hex'), embedding_model FROM rag_chunks
    ORDER BY chunk_id
"""

Completed = subprocess.CompletedProcess[str]


def write(*arguments: str, **variables: str) -> str:
    """What Alembic prints."""
    done = typed("alembic", *arguments, "--sql", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def typed(*command: str, **variables: str) -> Completed:
    """Run a module, in this process, where no variable names a database."""
    ours = re.compile("(MIGRATION_)?DATABASE_URL|(POSTGRES|VECTOR|AMPRENTA)_.*")
    environment = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    return type_in(*command, environment={**environment, **variables})


@pytest.fixture(scope="module")
def up() -> str:
    return write("-x", "dimension=4", "upgrade", "head")


@pytest.fixture(scope="module")
def down() -> str:
    return write("downgrade", "head:base")


def psql(db: Database, script: str) -> Completed:
    return subprocess.run([*PSQL, db.url], input=script, capture_output=True, text=True, timeout=120)


def run(db: Database, script: str) -> str:
    """Run a script to its end; returns what psql says besides."""
    done = psql(db, script)
    assert done.returncode == 0, done.stderr
    return done.stderr


def polls(db: Database) -> bool:
    """Whether a script looks again and again for what another session does."""
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    return bool(db.scalar(sleeping))


def state(db: Database) -> list[Any]:
    """All that a migration can make, and the runs that it queues or cancels."""
    runs = db.execute(RUNS) if db.columns("migration_run") else None
    retired = (
        db.execute(RUNS.replace("migration_run", "migration_run_retired"))
        if db.columns("migration_run_retired")
        else None
    )
    return [*fingerprint(db), runs, retired]


def statements(script: str) -> list[str]:
    """The script cut into what psql sends or obeys one at a time."""
    parts, inside = [""], False
    for line in script.splitlines(keepends=True):
        parts[-1] += line
        if re.search(r"\$do+\$", line):
            inside = not inside
        if not inside and re.search(r"(;|\\gexec|\\gset)\s*$|^\\", line):
            parts.append("")
    return [part for part in parts if part.strip()]


APPLICATIONS = {
    "empty": [],
    "rows": [
        "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, content text, updated_at timestamptz DEFAULT now())",
        "INSERT INTO rag_chunks SELECT 'chunk-' || n, 'text' FROM generate_series(1, 20) n",
    ],
    "namespaces": [
        "CREATE TABLE rag_chunks (chunk_id text, namespace text, PRIMARY KEY (namespace, chunk_id))",
        "INSERT INTO rag_chunks SELECT 'chunk-' || n, 'a' FROM generate_series(1, 20) n",
    ],
    "halfvec": [
        "CREATE EXTENSION vector",
        "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding halfvec(4))",
    ],
}


@pytest.fixture
def twin(clone: Callable[..., Database]) -> Database:
    """A second empty database, for the online command to work on."""
    return clone()


def pair(clone: Callable[..., Database], application: str) -> tuple[Database, Database]:
    """Two databases of the same application: one for the script, one for the online command."""
    offline, online = clone(), clone()
    for each in (offline, online):
        for statement in APPLICATIONS[application]:
            each.execute(statement)
    return offline, online


@pytest.fixture(params=list(APPLICATIONS))
def both(request: pytest.FixtureRequest, clone: Callable[..., Database]) -> tuple[Database, Database]:
    """The `pair` of every application."""
    return pair(clone, request.param)


STARTS = [*(("rows", revision) for revision in REVISIONS), *((name, "rag_0001") for name in APPLICATIONS)]
"""Every revision with an application's rows, every application where its table has just been adopted or made."""


@pytest.fixture(params=sorted(set(STARTS)), ids=" ".join)
def begun(request: pytest.FixtureRequest, clone: Callable[..., Database]) -> tuple[Database, Database, str]:
    """A `pair`, and the revision that it starts from."""
    application, revision = request.param
    return *pair(clone, application), revision


def test_the_script_makes_what_the_upgrade_makes_and_a_second_run_changes_nothing(
    both: tuple[Database, Database], up: str
) -> None:
    offline, online = both
    online.upgrade(vector_dimension=4)
    for _ in range(2):
        run(offline, up)
        assert state(offline) == state(online)


def breaks(parts: list[str], *, kinds: bool = True) -> list[int]:
    """After how many parts to break a script off: after every commit and, unless not wanted, every kind of statement.

    What stands in a transaction is rolled back wherever in it the break is, so one of a kind tells of all.
    """
    seen: set[str] = set()
    places = []
    for number, part in enumerate(parts, 1):
        statement = re.sub(r"--.*|(core|rag)_\d+", "", part).strip()[:60]
        if statement == "COMMIT;" or (kinds and statement not in seen):
            places.append(number)
        seen.add(statement)
    return places


def test_it_is_interrupted_after_every_kind_of_statement_and_the_next_run_goes_on(
    both: tuple[Database, Database], up: str
) -> None:
    offline, online = both
    online.upgrade(vector_dimension=4)
    parts = statements(up)
    assert len(parts) > 60
    # For one application; what the others leave committed is what differs with them.
    places = breaks(parts, kinds="updated_at" in offline.columns("rag_chunks"))
    assert len(places) > 12
    for number in places:
        # psql objects to an \\if that the break leaves open, and the transaction is rolled back.
        assert "ERROR" not in psql(offline, "".join(parts[:number])).stderr
    run(offline, up)
    assert state(offline) == state(online)


def test_it_goes_on_from_every_revision(begun: tuple[Database, Database, str], up: str) -> None:
    offline, online, revision = begun
    offline.upgrade(revision, vector_dimension=4)
    online.upgrade(vector_dimension=4)
    run(offline, up)
    assert state(offline) == state(online)


def test_killed_in_the_midst_of_the_build_it_waits_for_what_the_server_still_builds(
    adopted: Database, twin: Database, up: str
) -> None:
    with closing(psycopg2.connect(adopted.url)) as holder:
        adopted.upgrade("rag_0002", vector_dimension=4)
        holder.cursor().execute("UPDATE rag_chunks SET content = content")
        process = subprocess.Popen([*PSQL, adopted.url], stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(up)
        process.stdin.close()
        wait_until(lambda: adopted.index_is_valid(f"{INDEX}_building") is False)
        process.kill()
        process.wait()
        again = threading.Thread(target=run, args=(adopted, up))
        again.start()
        wait_until(lambda: polls(adopted))
        assert again.is_alive()
    again.join()
    assert adopted.index_is_valid(INDEX)
    assert adopted.index_is_valid(f"{INDEX}_building") is None
    adopted.downgrade("rag_0002")
    assert adopted.index_is_valid(INDEX) is None


def test_an_invalid_leftover_is_rebuilt_and_said(adopted: Database, up: str) -> None:
    adopted.upgrade("rag_0002", vector_dimension=4)
    for name in (INDEX, f"{INDEX}_building"):
        adopted.execute(f"CREATE INDEX {name} ON rag_chunks USING hnsw (embedding vector_cosine_ops)")
        adopted.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)", name=name)
    said = run(adopted, up)
    assert f"{INDEX} is invalid, left by an interrupted build: rebuilding it" in said
    assert adopted.index_is_valid(INDEX)
    assert adopted.index_is_valid(f"{INDEX}_building") is None


@pytest.mark.parametrize("name", [INDEX, "theirs"])
def test_an_index_of_the_applications_own_is_used_and_never_dropped(
    adopted: Database, up: str, down: str, name: str
) -> None:
    adopted.upgrade("rag_0002", vector_dimension=4)
    adopted.execute(f"CREATE INDEX {name} ON rag_chunks USING hnsw (embedding vector_cosine_ops)")
    run(adopted, up)
    indexes = adopted.execute("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")
    assert indexes == [(name,)]
    run(adopted, write("downgrade", "rag_0004:rag_0002"))
    assert adopted.index_is_valid(name)


def test_an_index_that_a_backfill_deferred_is_left_to_it_and_forgotten_by_a_downgrade(
    adopted: Database, up: str
) -> None:
    adopted.upgrade("rag_0002", vector_dimension=4)
    adopted.execute(
        "INSERT INTO migration_index (target, index_name, definition) VALUES ('rag_chunks.embedding', :name, '')",
        name=INDEX,
    )
    assert f"{INDEX}: a backfill deferred it and will build it" in run(adopted, up)
    assert adopted.index_is_valid(INDEX) is None
    run(adopted, write("downgrade", "rag_0004:rag_0002"))
    assert adopted.scalar("SELECT count(*) FROM migration_index") == 0


@pytest.mark.parametrize(
    ("dimension", "key"),
    [
        (2001, "((embedding)::halfvec(2001)) halfvec_cosine_ops"),
        (4001, "((binary_quantize(embedding))::bit(4001)) bit_hamming_ops"),
    ],
)
def test_more_dimensions_than_an_index_takes_are_indexed_through_halfvec_or_bit(
    db: Database, twin: Database, dimension: int, key: str
) -> None:
    run(db, write("-x", f"dimension={dimension}", "upgrade", "head"))
    twin.upgrade(vector_dimension=dimension)
    assert state(db) == state(twin)
    definition = db.scalar("SELECT pg_get_indexdef(to_regclass(:name))", name=INDEX)
    assert key in definition


@pytest.mark.parametrize(
    ("index", "key"),
    [
        ("hnsw-halfvec", "USING hnsw (((embedding)::halfvec(4)) halfvec_cosine_ops) WITH (m='16'"),
        ("hnsw-bit", "USING hnsw (((binary_quantize(embedding))::bit(4)) bit_hamming_ops) WITH (m='16'"),
        ("ivfflat-halfvec", "USING ivfflat (((embedding)::halfvec(4)) halfvec_cosine_ops) WITH (lists='1')"),
    ],
)
def test_dash_x_index_chooses_what_the_index_holds(db: Database, twin: Database, index: str, key: str) -> None:
    for database in (db, twin):
        database.upgrade("rag_0002", vector_dimension=4)
    run(db, write("-x", f"index={index}", "upgrade", "rag_0002:rag_0003"))
    done = typed("alembic", "-x", f"index={index}", "upgrade", "rag_0003", DATABASE_URL=twin.url)
    assert done.returncode == 0, done.stderr
    assert state(db) == state(twin)
    assert key in db.scalar("SELECT pg_get_indexdef(to_regclass(:name))", name=INDEX)
    for database in (db, twin):
        database.upgrade()
    done = typed("alembic", "check", DATABASE_URL=twin.url)
    assert "No new upgrade operations detected." in done.stdout, done.stderr


def test_halves_of_more_dimensions_than_pgvector_indexes_are_refused_with_what_it_can(db: Database) -> None:
    db.upgrade("rag_0002", vector_dimension=4001)
    refused = psql(db, write("-x", "index=hnsw-halfvec", "upgrade", "rag_0002:rag_0003"))
    online = typed("alembic", "-x", "index=hnsw-halfvec", "upgrade", "rag_0003", DATABASE_URL=db.url)
    for said in (refused.stderr, online.stderr):
        assert "pgvector cannot index vector(4001) as halfvec; it can as bit" in said


def test_dash_x_index_chooses_ivfflat_with_lists_from_the_rows_there_are_when_the_script_runs(db: Database) -> None:
    script = write("-x", "index=ivfflat", "-x", "dimension=4", "upgrade", "head")
    db.upgrade("rag_0002", vector_dimension=4)
    db.execute(
        "INSERT INTO rag_chunks (chunk_id, embedding) "
        "SELECT n, ARRAY[1, random(), random(), random()]::vector FROM generate_series(1, 3500) n"
    )
    run(db, script)
    definition = db.scalar("SELECT pg_get_indexdef('idx_rag_chunks_embedding'::regclass)")
    assert "USING ivfflat (embedding vector_cosine_ops) WITH (lists='3')" in definition


def test_a_run_that_has_finished_is_not_queued_again(db: Database, up: str) -> None:
    db.upgrade(vector_dimension=4)
    db.execute("UPDATE migration_run SET state = 'finished'")
    run(db, up)
    assert db.execute("SELECT state FROM migration_run") == [("finished",)]


def fill(db: Database) -> None:
    """Give every row a value, dated yesterday."""
    db.execute(
        "UPDATE rag_chunks SET embedding = CAST(format('[0.1,-0,1e-30,%s]', hashtext(chunk_id) % 999) AS vector), "
        "embedding_model = 'm'"
    )
    if "updated_at" in db.columns("rag_chunks"):
        db.execute("UPDATE rag_chunks SET updated_at = now() - interval '1 day'")


def test_the_script_takes_back_what_the_downgrade_takes_back_and_keeps_every_value(
    both: tuple[Database, Database], up: str, down: str
) -> None:
    offline, online = both
    for each in both:
        each.upgrade(vector_dimension=4)
        fill(each)
    before, values = state(offline), offline.execute(BITS)
    online.downgrade()
    for _ in range(2):
        run(offline, down)
        assert state(offline) == state(online)
    run(offline, up)
    online.upgrade(vector_dimension=4)
    assert offline.execute(BITS) == values
    assert state(offline) == state(online)
    assert [row for row in state(offline) if isinstance(row, tuple)] == [
        row for row in before if isinstance(row, tuple)
    ]


def test_the_way_back_and_forth_is_interrupted_after_every_kind_of_statement(
    adopted: Database, twin: Database, up: str, down: str
) -> None:
    adopted.upgrade(vector_dimension=4)
    fill(adopted)
    before, values = fingerprint(adopted), adopted.execute(BITS)
    for script in (down, up):
        parts = statements(script)
        for number in breaks(parts):
            assert "ERROR" not in psql(adopted, "".join(parts[:number])).stderr
        run(adopted, script)
        assert ("embedding" in adopted.columns("rag_chunks")) == (script is up)
    assert adopted.execute(BITS) == values
    assert fingerprint(adopted) == before


def test_a_downgrade_goes_on_from_every_revision(begun: tuple[Database, Database, str], down: str) -> None:
    offline, online, revision = begun
    for each in (offline, online):
        each.upgrade(revision, vector_dimension=4)
    run(offline, down)
    online.downgrade()
    assert state(offline) == state(online)


def test_rows_changed_meanwhile_are_null_and_counted(adopted: Database, up: str, down: str) -> None:
    adopted.upgrade(vector_dimension=4)
    fill(adopted)
    run(adopted, down)
    adopted.execute(
        "UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id IN ('chunk-3', 'chunk-5')"
    )
    said = run(adopted, up)
    assert "rag_chunks.embedding: its values are back; 2 rows changed meanwhile and are NULL again" in said
    assert adopted.execute("SELECT chunk_id FROM rag_chunks WHERE embedding IS NULL ORDER BY 1") == [
        ("chunk-3",),
        ("chunk-5",),
    ]


def test_a_script_that_is_interrupted_while_it_takes_values_back_is_finished_online_and_the_other_way_round(
    adopted: Database, up: str
) -> None:
    adopted.upgrade(vector_dimension=4)
    fill(adopted)
    before, values = fingerprint(adopted), adopted.execute(BITS)
    parts = statements(up)
    watching = next(number for number, part in enumerate(parts) if "CREATE OR REPLACE TRIGGER" in part)
    for finish in (lambda: run(adopted, up), lambda: adopted.upgrade(vector_dimension=4)):
        adopted.downgrade()
        psql(adopted, "".join(parts[: watching + 2]))
        assert adopted.execute("SELECT FROM pg_trigger WHERE NOT tgisinternal")
        finish()
        assert adopted.execute(BITS) == values
        assert fingerprint(adopted) == before


def test_a_purge_says_how_much_goes_then_drops_it(db: Database, twin: Database) -> None:
    for each in (db, twin):
        each.upgrade(vector_dimension=4)
        each.execute("INSERT INTO rag_chunks (chunk_id) SELECT 'chunk-' || n FROM generate_series(1, 20) n")
        fill(each)
    said = run(db, write("-x", "purge=true", "downgrade", "head:base"))
    assert "rag_chunks.embedding: dropping 20 values" in said
    assert "rag_chunks: dropping 20 rows" in said
    twin.downgrade(purge=True)
    assert state(db) == state(twin)


def test_what_a_view_needs_stops_a_purge_and_nothing_else(db: Database, down: str) -> None:
    db.upgrade(vector_dimension=4)
    db.execute("CREATE VIEW theirs AS SELECT chunk_id, embedding FROM rag_chunks")
    db.execute("INSERT INTO rag_chunks (chunk_id) VALUES ('a')")
    fill(db)
    stopped = psql(db, write("-x", "purge=true", "downgrade", "head:base"))
    assert stopped.returncode == 3
    assert "rag_chunks.embedding cannot be dropped: something of yours depends on it" in stopped.stderr
    run(db, down)
    assert db.scalar("SELECT count(embedding) FROM theirs") == 1


def test_what_another_section_needs_stays(db: Database, down: str) -> None:
    db.upgrade(vector_dimension=4)
    db.execute("CREATE TABLE amprenta_version_other (version_num text)")
    db.execute("INSERT INTO amprenta_version_other VALUES ('core_0001')")
    run(db, down)
    assert db.columns("migration_run")
    db.execute("DELETE FROM amprenta_version_other")
    db.upgrade(vector_dimension=4)
    run(db, down)
    assert not db.columns("migration_run")


def test_a_worker_that_lets_go_is_waited_for(db: Database, down: str) -> None:
    db.upgrade(vector_dimension=4)
    db.execute(
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, lease_expires_at) "
        "SELECT id, 1, 'a', 'a', '{a}', 'running', clock_timestamp() + interval '1 hour' FROM migration_run"
    )
    downgrade = threading.Thread(target=run, args=(db, down))
    downgrade.start()
    wait_until(lambda: db.scalar("SELECT desired_state FROM migration_run") == "cancelled")
    assert "embedding" in db.columns("rag_chunks")
    db.execute("UPDATE migration_progress SET status = 'done'")
    downgrade.join()
    assert not db.columns("rag_chunks")


def test_a_range_is_for_databases_within_it_only(db: Database) -> None:
    script = write("-x", "dimension=4", "upgrade", "rag_0002:head")
    stopped = psql(db, script)
    assert stopped.returncode == 3
    assert "the database is at revision base; this script is for: rag_0002, rag_0003, rag_0004" in stopped.stderr
    assert not db.columns("rag_chunks")
    db.upgrade("rag_0002", vector_dimension=4)
    run(db, script)
    stopped = psql(db, write("downgrade", "rag_0002:base"))
    assert "the database is at revision rag_0004; this script is for: base, core_0001, rag_0001" in stopped.stderr
    assert db.index_is_valid(INDEX)


def test_a_database_that_is_ahead_of_the_script_is_left_alone(db: Database, up: str) -> None:
    db.upgrade(vector_dimension=4)
    db.execute("UPDATE amprenta_version_rag SET version_num = 'rag_9999'")
    before = state(db)
    stopped = psql(db, up)
    assert stopped.returncode == 3
    assert "the database is at revision rag_9999" in stopped.stderr
    assert state(db) == before


REFUSALS = {
    "no key": "CREATE TABLE rag_chunks (id bigserial PRIMARY KEY)",
    "no unique index": "CREATE TABLE rag_chunks (chunk_id text)",
    "key alone": "CREATE TABLE rag_chunks (namespace text, chunk_id text PRIMARY KEY)",
    "partial index": (
        "CREATE TABLE rag_chunks (chunk_id text); CREATE UNIQUE INDEX ON rag_chunks (chunk_id) WHERE chunk_id > 'a'"
    ),
    "included key": (
        "CREATE TABLE rag_chunks (chunk_id text, o text); CREATE UNIQUE INDEX ON rag_chunks (o) INCLUDE (chunk_id)"
    ),
    "other type": "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding real[])",
    "no dimension": ("CREATE EXTENSION vector; CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, embedding vector)"),
}


@pytest.mark.parametrize("statements", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_upgrade_refuses_the_script_refuses_with_the_same_message_and_hint(
    db: Database, up: str, statements: str
) -> None:
    db.execute(statements)
    stopped = psql(db, up)
    with pytest.raises(AmprentaError) as caught:
        db.upgrade(vector_dimension=4)
    assert_says(stopped, caught.value)


def assert_says(stopped: Completed, error: AmprentaError) -> None:
    """psql ended as the online command did."""
    assert stopped.returncode == 3
    assert f"ERROR:  {error.message}\n" in stopped.stderr
    assert f"HINT:  {error.hint}\n" in stopped.stderr


def test_a_server_without_pgvector_is_refused_with_how_to_get_it(db: Database, up: str) -> None:
    db.execute(f"ALTER DATABASE {db.scalar('SELECT current_database()')} SET extension_control_path = '/nonexistent'")
    stopped = psql(db, up)
    assert stopped.returncode == 3
    assert 'ERROR:  extension "vector" is not available on this server' in stopped.stderr
    assert "HINT:  install pgvector" in stopped.stderr
    assert not db.columns("migration_run")


@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE rag_chunks ADD COLUMN embedding_retired text", "CREATE TABLE rag_chunks_retired (theirs text)"],
)
def test_what_the_downgrade_refuses_the_script_refuses_with_the_same_message_and_hint(
    db: Database, down: str, statement: str
) -> None:
    db.upgrade(vector_dimension=4)
    db.execute(statement)
    stopped = psql(db, down)
    with pytest.raises(AmprentaError) as caught:
        db.downgrade()
    assert_says(stopped, caught.value)


def test_another_dimension_than_the_columns_is_refused_with_how_to_write_the_script(adopted: Database, up: str) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding vector(3)")
    stopped = psql(adopted, up)
    assert "ERROR:  VECTOR_DIMENSION is 4, but rag_chunks.embedding is vector(3)" in stopped.stderr
    assert "HINT:  write the script again with -x dimension=3" in stopped.stderr
    run(adopted, write("-x", "dimension=3", "upgrade", "head"))


@pytest.mark.parametrize("command", [("alembic",), ("amprenta_vectors", "db")])
def test_without_a_dimension_nothing_is_written(command: tuple[str, ...]) -> None:
    done = typed(*command, "upgrade", "head", "--sql")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "rag_chunks.embedding" in done.stderr
    assert "-x dimension=1536" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_packages_own_command_prints_the_same(up: str, down: str) -> None:
    assert typed("amprenta_vectors", "db", "upgrade", "--sql", VECTOR_DIMENSION="4").stdout == up
    assert typed("amprenta_vectors", "db", "downgrade", "--sql", "head:base").stdout == down
    purging = typed("amprenta_vectors", "db", "downgrade", "--sql", "--purge", "head:base").stdout
    assert purging == write("-x", "purge=true", "downgrade", "head:base")


def test_a_downgrade_without_a_range_is_a_usage_error() -> None:
    done = typed("amprenta_vectors", "db", "downgrade", "--sql")
    assert done.returncode == 2
    assert "requires <fromrev>:<torev>" in done.stderr


def test_the_script_waits_for_an_upgrade_that_runs_and_no_longer_than_it_may(db: Database, up: str) -> None:
    impatient = write("-x", "dimension=4", "upgrade", "head", AMPRENTA_MIGRATION_LOCK_TIMEOUT="0.5")
    with migration_lock(create_engine(Settings.load(database_url=db.url)), 1):
        stopped = psql(db, impatient)
        assert stopped.returncode == 3
        assert "another migration of this database has run for more than" in stopped.stderr
        assert not db.columns("migration_run")
        waiting = threading.Thread(target=run, args=(db, up))
        waiting.start()
        wait_until(lambda: polls(db))
        assert waiting.is_alive()
    waiting.join()
    assert db.index_is_valid(INDEX)


def test_an_upgrade_waits_for_the_script(adopted: Database, up: str) -> None:
    adopted.upgrade("rag_0002", vector_dimension=4)
    with closing(psycopg2.connect(adopted.url)) as holder:
        holder.cursor().execute("UPDATE rag_chunks SET content = content")
        script = threading.Thread(target=run, args=(adopted, up))
        script.start()
        wait_until(lambda: adopted.index_is_valid(f"{INDEX}_building") is False)
        with pytest.raises(AmprentaError, match="another migration"):
            adopted.upgrade(vector_dimension=4, migration_lock_timeout=0.5)
    script.join()
    assert adopted.index_is_valid(INDEX)


def test_four_scripts_and_an_upgrade_at_once_do_the_work_once(adopted: Database, up: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        scripts = [pool.submit(psql, adopted, up) for _ in range(4)]
        adopted.upgrade(vector_dimension=4)
        assert [script.result().returncode for script in scripts] == [0] * 4
    assert adopted.index_is_valid(INDEX)
    assert adopted.scalar("SELECT count(*) FROM migration_run") == 1
    assert adopted.execute("SELECT version_num FROM amprenta_version_rag") == [("rag_0004",)]


def test_a_table_in_use_and_the_roles_own_time_limits_delay_the_script_only(adopted: Database, up: str) -> None:
    name = adopted.scalar("SELECT current_database()")
    for limit in ("statement_timeout", "lock_timeout"):
        adopted.execute(f"ALTER DATABASE {name} SET {limit} = '500ms'")
    script = threading.Thread(target=run, args=(adopted, up))
    with closing(psycopg2.connect(adopted.url)) as holder:
        holder.cursor().execute("SELECT 1 FROM rag_chunks")
        script.start()
        tries: set[tuple[Any, ...]] = set()
        wait_until(lambda: tries.update(adopted.waits()) or len(tries) > 1)
        assert script.is_alive()
    script.join()
    assert adopted.index_is_valid(INDEX)


def test_psql_in_one_transaction_stops_before_anything_is_made(db: Database, up: str) -> None:
    done = subprocess.run([*PSQL, "-1", db.url], input=up, capture_output=True, text=True)
    assert done.returncode == 3
    assert "run it without -1" in done.stderr
    assert not db.columns("migration_run")


@contextmanager
def script_of(scripts: list[str]) -> Iterator[Any]:
    """What a revision of an application's own chain is given as ``op`` where its environment writes SQL."""
    text = StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": text})
    with context.begin_transaction():
        yield Operations(context)
    scripts.append(text.getvalue())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schema", [None, ODD], ids=["search path", "schema"])
def test_every_operation_takes_any_name_in_any_environment(
    db: Database, twin: Database, name: str, schema: str | None
) -> None:
    vector, index = f"{name[:20]}v", f"{name[:25]}_i"

    def upgrade(op: Any) -> None:
        op.create_vector_extension()
        op.adopt_table(
            name,
            sa.Column(name, sa.Text, primary_key=True, server_default=name),
            sa.Column("updated_at", sa.TIMESTAMP(timezone=True), server_default=sa.func.now()),
            key=[name],
            schema=schema,
        )
        op.add_vector_column(name, vector, 3, schema=schema)
        op.create_vector_index(index, name, vector, where="'a:b' <> '%'", schema=schema)
        op.ensure_backfill_finished(name, vector, schema=schema)

    def downgrade(op: Any) -> None:
        op.drop_vector_index(index, schema=schema)
        op.drop_kept_column(name, vector, schema=schema)
        op.retire_table(name, schema=schema)
        op.drop_vector_extension()

    scripts: list[str] = []
    for write_revision in (upgrade, downgrade):
        with script_of(scripts) as op:
            write_revision(op)
    table = sa.table(name, sa.column(name), sa.column(vector), schema=schema)
    if schema is not None:
        for each in (db, twin):
            with each.engine.connect() as connection:
                connection.execute(sa.schema.CreateSchema(schema))
    for turn in range(2):
        run(db, scripts[0])
        with revision(twin) as op:
            upgrade(op)
        assert everything(db) == everything(twin)
        for each in (db, twin):
            with each.engine.connect() as connection:
                if turn == 0:
                    connection.execute(table.insert().values({name: "a", vector: "[1,2,3]"}))
                assert connection.execute(sa.select(table)).all() == [("a", "[1,2,3]")]
        run(db, scripts[1])
        with revision(twin) as op:
            downgrade(op)
        assert everything(db) == everything(twin)


def everything(db: Database) -> list[Any]:
    """Tables, columns and indexes in every schema."""
    return list(
        db.execute("""
            SELECT c.relnamespace::regnamespace::text, c.relname::text, a.attname::text,
                   format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid),
                   left(obj_description(c.oid), 20), left(col_description(c.oid, a.attnum), 20),
                   CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid) END
            FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace::regnamespace::text !~ '^(pg_|information_schema)' ORDER BY 1, 2, 3
        """)
    )


def test_an_index_on_a_table_of_the_same_revision_is_made_and_dropped_in_its_transaction(
    db: Database, twin: Database
) -> None:
    def upgrade(op: Any) -> None:
        op.create_vector_extension()
        op.adopt_table("notes", sa.Column("id", sa.BigInteger, primary_key=True))
        op.add_vector_column("notes", "v", 3)
        op.create_vector_index("notes_v", "notes", "v", method="ivfflat", options={"lists": 1}, concurrently=False)

    scripts: list[str] = []
    with script_of(scripts) as op:
        upgrade(op)
    with revision(twin) as op:
        upgrade(op)
    for _ in range(2):
        run(db, scripts[0])
        assert fingerprint(db) == fingerprint(twin)
    with script_of(scripts) as op:
        op.drop_vector_index("notes_v", concurrently=False)
    run(db, scripts[1])
    assert db.index_is_valid("notes_v") is None


def test_the_gate_stops_a_script_with_the_same_message(db: Database) -> None:
    db.upgrade(vector_dimension=3)
    scripts: list[str] = []
    with script_of(scripts) as op:
        op.ensure_backfill_finished("rag_chunks", "embedding", allow=["missing_at_source"])
    run(db, scripts[0])
    for statement in (
        "INSERT INTO rag_chunks (chunk_id, embedding) "
        "SELECT n, CASE WHEN n > 3 THEN vector '[1,2,3]' END FROM generate_series(1, 1005) n",
        "UPDATE migration_run SET source = 'somewhere', state = 'running'",
        "INSERT INTO migration_error (run_id, key, reason, batch, detail) VALUES "
        "(1, '1', 'missing_at_source', 1, ''), (1, '2', 'not_finite', 1, '')",
        "UPDATE migration_run SET state = 'finished'",
    ):
        db.execute(statement)
        with pytest.raises(RunConflict) as caught, db.engine.connect() as connection:
            check_finished(connection, "rag_chunks", "embedding", allow=["missing_at_source"])
        assert_says(psql(db, scripts[0]), caught.value)
    db.execute("UPDATE migration_error SET resolved_at = now() WHERE reason = 'not_finite'")
    db.execute("UPDATE rag_chunks SET embedding = '[1,2,3]' WHERE chunk_id IN ('2', '3')")
    run(db, scripts[0])


@pytest.fixture
def branched(tmp_path: Path) -> Callable[..., str]:
    """A function that writes scripts of an application whose revisions part and meet again: a, then b and c, then d."""
    documented = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "offline.md").read_text(), re.DOTALL)
    assert documented is not None
    env = f"from alembic import context\nimport amprenta_vectors.ddl\n{documented[1]}\nrun_migrations_offline()\n"
    (tmp_path / "env.py").write_text(env)
    (tmp_path / "versions").mkdir()
    for name, parents in {"a": None, "b": "a", "c": "a", "d": ("b", "c")}.items():
        (tmp_path / "versions" / f"{name}.py").write_text(
            f"from alembic import op\nrevision, down_revision = {name!r}, {parents!r}\n"
            f"def upgrade(): op.execute('CREATE TABLE {name} ()')\n"
            f"def downgrade(): op.execute('DROP TABLE {name}')\n"
        )
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}\npath_separator = os\n")
    return lambda *arguments: write("-c", str(tmp_path / "alembic.ini"), *arguments)


@pytest.mark.parametrize("start", ["", "a", "ab", "ac", "abc", "abcd"])
def test_where_revisions_part_and_meet_each_runs_once_from_wherever_the_database_is(
    db: Database, branched: Callable[..., str], start: str
) -> None:
    db.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    for name in start:
        db.execute(f"CREATE TABLE {name} ()")
    heads = {"abc": "bc", "abcd": "d"}.get(start, start[-1:])
    for head in heads:
        db.execute("INSERT INTO alembic_version VALUES (:head)", head=head)
    back = branched("downgrade", "d:a")
    if start:
        run(db, back)
        assert db.execute("SELECT version_num FROM alembic_version") == [("a",)]
    run(db, branched("upgrade", "head"))
    assert db.execute("SELECT version_num FROM alembic_version") == [("d",)]
    run(db, back)
    assert db.execute("SELECT version_num FROM alembic_version") == [("a",)]
    tables = db.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    assert sorted(tables) == [("a",), ("alembic_version",)]
