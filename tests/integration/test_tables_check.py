"""``amprenta-vectors tables check``: every way in which a table is not as declared, and the SQL that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main

DECLARED = """
[tables.notes]
schema = "My Schema"
table = "My Notes"
key = ["Doc Id", "page"]
key_map = "split"
separator = "#"
scope = "tenant"
embedding = "vec"
text = "body"
metadata = "meta"
model = "made by"
dimension = 8
storage = "halfvec"
distance = "l2"
sparse = "words"
sparse_dimension = 100
"""
MADE = [
    'CREATE SCHEMA "My Schema"',
    """CREATE TABLE "My Schema"."My Notes" (
        "Doc Id" uuid NOT NULL, page integer NOT NULL, tenant text NOT NULL, vec halfvec(8), body varchar(9), meta json,
        "made by" text, words sparsevec(100), CONSTRAINT own UNIQUE (page, tenant, "Doc Id")
    )""",
    'CREATE INDEX vec_index ON "My Schema"."My Notes" USING ivfflat (vec halfvec_l2_ops)',
]
TABLE = '"My Schema"."My Notes"'

Check = Callable[..., Result]


@pytest.fixture
def check(upgraded_url: str, tmp_path: Path) -> Check:
    """Runs the command on what is declared."""

    def run(*arguments: str, declared: str = DECLARED) -> Result:
        config = tmp_path / "own.toml"
        config.write_text(declared)
        environment = {"DATABASE_URL": upgraded_url, "AMPRENTA_CONFIG": str(config)}
        return CliRunner().invoke(main, ["tables", "check", *arguments], env=environment)

    return run


def make(engine: sa.Engine) -> None:
    for statement in MADE:
        execute(engine, statement)


def statements_of(output: str) -> list[str]:
    """The SQL that the findings say to type."""
    return re.findall(r"^    (.*;)$", output, re.MULTILINE)


def type_in(engine: sa.Engine, statements: list[str]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_table_that_is_as_declared_exits_0(check: Check, engine: sa.Engine) -> None:
    make(engine)
    done = check("notes")
    assert (done.exit_code, done.output) == (0, "notes: My Schema.My Notes.vec halfvec(8), l2: as declared\n")


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        ("ALTER TABLE {} DROP COLUMN page CASCADE", "column page", "none"),
        ("ALTER TABLE {} DROP COLUMN tenant CASCADE", "column tenant", "none"),
        ("ALTER TABLE {} DROP COLUMN vec", "column vec halfvec(8)", "none"),
        ("ALTER TABLE {} DROP COLUMN body", "column body text or character varying or character", "none"),
        ("ALTER TABLE {} DROP COLUMN words", "column words sparsevec(100)", "none"),
        ('ALTER TABLE {} DROP COLUMN "made by"', 'column "made by" text', "none"),
        ("ALTER TABLE {} ALTER COLUMN body TYPE bytea USING NULL", "column body text", "bytea"),
        ("ALTER TABLE {} ALTER COLUMN meta TYPE bytea USING NULL", "column meta jsonb or json or text", "bytea"),
        (
            'DROP INDEX "My Schema".vec_index; ALTER TABLE {} ALTER COLUMN vec TYPE vector(8)',
            "column vec halfvec(8)",
            "vector(8)",
        ),
        (
            'DROP INDEX "My Schema".vec_index; ALTER TABLE {} ALTER COLUMN vec TYPE halfvec(9)',
            "column vec halfvec(8)",
            "halfvec(9)",
        ),
        ("ALTER TABLE {} ALTER COLUMN words TYPE sparsevec(99)", "column words sparsevec(100)", "sparsevec(99)"),
        ("ALTER TABLE {} ALTER COLUMN tenant DROP NOT NULL", "column tenant NOT NULL", "NULL is allowed"),
        ("ALTER TABLE {} DROP CONSTRAINT own", 'a unique index on exactly (tenant, "Doc Id", page)', "none"),
        (
            "ALTER TABLE {} DROP CONSTRAINT own, ADD UNIQUE (page, tenant)",
            'a unique index on exactly (tenant, "Doc Id", page)',
            "one on (page, tenant)",
        ),
        (
            'ALTER TABLE {} DROP CONSTRAINT own; CREATE UNIQUE INDEX own ON {} (tenant, "Doc Id", page) WHERE page > 0',
            'a unique index on exactly (tenant, "Doc Id", page)',
            "none",
        ),
        ('DROP INDEX "My Schema".vec_index', "an hnsw or ivfflat index on vec with halfvec_l2_ops", "none"),
        (
            'DROP INDEX "My Schema".vec_index; CREATE INDEX other ON {} USING hnsw (vec halfvec_cosine_ops)',
            "an hnsw or ivfflat index on vec with halfvec_l2_ops",
            "other with halfvec_cosine_ops",
        ),
        (
            'DROP INDEX "My Schema".vec_index; CREATE INDEX part ON {} USING hnsw (vec halfvec_l2_ops) WHERE page > 0',
            "an hnsw or ivfflat index on vec with halfvec_l2_ops",
            "part with halfvec_l2_ops, partial",
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"My Schema\".vec_index'::regclass",
            "an hnsw or ivfflat index on vec with halfvec_l2_ops",
            '"My Schema".vec_index, which is not valid',
        ),
        ("DROP TABLE {}", f"table {TABLE}", "none"),
        ("DROP TABLE {}; CREATE VIEW {} AS SELECT 1 AS one", f"table {TABLE}", "a view or foreign table"),
    ],
)
def test_what_is_not_as_declared_is_named_and_the_sql_to_type_mends_it(
    check: Check, engine: sa.Engine, change: str, expected: str, found: str
) -> None:
    make(engine)
    execute(engine, change.replace("{}", TABLE))
    done = check("notes")
    assert done.exit_code == 2
    assert f"expected {expected}" in done.output
    assert f"found {found}\n" in done.output
    if "view" in found:
        execute(engine, f"DROP VIEW {TABLE}")
    # A column that is made anew brings its index and its place in the key with the next round.
    for _ in range(4):
        type_in(engine, statements_of(check("notes").output))
        if check("notes").exit_code == 0:
            break
    assert check("notes").exit_code == 0, check("notes").output


def test_without_a_name_every_table_declared_is_checked_and_one_that_is_wrong_decides(
    check: Check, engine: sa.Engine
) -> None:
    make(engine)
    other = '[tables.other]\ntable = "other"\nkey = "id"\ndimension = 3\n'
    done = check(declared=DECLARED + other)
    assert done.exit_code == 2
    assert "notes: My Schema.My Notes.vec halfvec(8), l2: as declared" in done.output
    assert "other: other.embedding vector(3), cosine: 1 to mend" in done.output
    assert "CREATE TABLE other (id text, embedding vector(3), PRIMARY KEY (id));" in done.output
    assert check("notes", declared=DECLARED + other).exit_code == 0


def test_a_column_that_an_insert_cannot_fill_is_a_note_and_no_refusal(check: Check, engine: sa.Engine) -> None:
    make(engine)
    execute(engine, f"ALTER TABLE {TABLE} ADD COLUMN owner integer NOT NULL")
    done = check("notes")
    assert done.exit_code == 0
    assert (
        "note: expected a default for owner NOT NULL, for --keys-from source to insert rows; found none" in done.output
    )
    assert f"ALTER TABLE {TABLE} ALTER COLUMN owner SET DEFAULT" in done.output


def test_an_index_that_a_load_has_deferred_is_a_note(check: Check, engine: sa.Engine) -> None:
    make(engine)
    execute(engine, 'DROP INDEX "My Schema".vec_index')
    execute(
        engine,
        "INSERT INTO migration_index (target, index_name, definition) "
        "VALUES ('My Schema.My Notes.vec', 'vec_index', '')",
    )
    done = check("notes")
    assert done.exit_code == 0
    assert "found vec_index, deferred until the load is done" in done.output


def test_past_2000_dimensions_the_index_is_of_the_cast_to_halfvec(check: Check, engine: sa.Engine) -> None:
    wide = '[tables.wide]\ntable = "wide"\nkey = "id"\ndimension = 3072\n'
    execute(engine, "CREATE TABLE wide (id text PRIMARY KEY, embedding vector(3072))")
    done = check("wide", declared=wide)
    assert done.exit_code == 2
    type_in(engine, statements_of(done.output))
    assert check("wide", declared=wide).exit_code == 0


def test_a_look_up_wants_an_index_of_its_own(check: Check, engine: sa.Engine) -> None:
    declared = '[tables.t]\ntable = "t"\nkey = "id"\ndimension = 3\nkey_map = "lookup"\nlookup = "pid"\n'
    execute(engine, "CREATE TABLE t (id int PRIMARY KEY, pid text, embedding vector(3))")
    execute(engine, "CREATE INDEX ON t USING hnsw (embedding vector_cosine_ops)")
    # These serve no look-up.
    execute(engine, "CREATE INDEX ON t (id, pid)")
    execute(engine, "CREATE INDEX ON t (pid) WHERE id > 7")
    done = check("t", declared=declared)
    assert (done.exit_code, statements_of(done.output)) == (2, ["CREATE INDEX CONCURRENTLY ON t (pid);"])
    type_in(engine, statements_of(done.output))
    assert check("t", declared=declared).exit_code == 0


def test_a_database_without_the_extension_says_so(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text('[tables.t]\ntable = "t"\nkey = "id"\ndimension = 3\n')
    environment = {"DATABASE_URL": database_url, "AMPRENTA_CONFIG": str(config)}
    done = CliRunner().invoke(main, ["tables", "check"], env=environment)
    assert done.exit_code == 2
    assert "CREATE EXTENSION vector" in done.output


def test_without_any_declaration_it_says_where_one_would_be(
    upgraded_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["tables", "check"], env={"DATABASE_URL": upgraded_url})
    assert done.exit_code == 0
    assert "there is no amprenta.toml here" in done.output


def test_a_name_that_is_not_declared_is_answered_with_those_that_are(check: Check) -> None:
    for name in ("rag_chunks", "nots"):
        done = check(name)
        assert done.exit_code == 2
        assert "declared there: notes" in done.output
