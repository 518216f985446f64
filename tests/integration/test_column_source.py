"""Embeddings that lie in the same database in another form: inspected, moved, indexed, verified and reconciled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import LEASE_SECONDS, execute, on_the_wire, to_vectors
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import until

from amprenta_vectors.backends.column.formats import Lists
from amprenta_vectors.batch import Vectors
from amprenta_vectors.cli import main
from amprenta_vectors.pg.errors import sqlstate

ROWS = 300
VECTORS = to_vectors(ROWS)
DECLARED = """
[tables.articles]
table = "articles"
key = "id"
dimension = 8
source = "column"
old = {{ {old} }}
{more}
"""
Run = Callable[..., Result]


def as_json(vector: Vectors) -> str:
    return json.dumps([float(value) for value in vector])


def as_csv(vector: Vectors) -> str:
    return ", ".join(str(float(value)) for value in vector)


def as_numpy_prints(vector: Vectors) -> str:
    return (
        "[ "
        + "  ".join(repr(float(value)) for value in vector[:4])
        + "\n  "
        + " ".join(repr(float(value)) for value in vector[4:])
        + "]"
    )


def as_literal(vector: Vectors) -> str:
    return "{" + ",".join(str(float(value)) for value in vector) + "}"


def in_brackets(vector: Vectors) -> str:
    return "[" + ",".join(str(float(value)) for value in vector) + "]"


def as_bytes(dtype: str) -> Callable[[Vectors], bytes]:
    return lambda vector: vector.astype(dtype).tobytes()


def to_sparse(vector: Vectors) -> str:
    return "{" + ",".join(f"{place}:{float(value)}" for place, value in enumerate(vector, 1)) + "}/8"


OUT_OF_RANGE = "22003"
FORMS: dict[str, tuple[str, Callable[[Vectors], Any], str]] = {
    "json text": ("text", as_json, ""),
    "comma-separated": ("varchar", as_csv, ""),
    "printed by numpy": ("text", as_numpy_prints, ""),
    "an array's text": ("text", as_literal, ""),
    "json": ("json", as_json, ""),
    "jsonb": ("jsonb", as_json, ""),
    "json in a json string": ("jsonb", lambda vector: json.dumps(as_json(vector)), ""),
    "real[]": ("real[]", as_literal, ""),
    "double precision[]": ("double precision[]", as_literal, ""),
    "numeric[]": ("numeric[]", as_literal, ""),
    "a domain on an array": ("embedded", as_literal, ""),
    "a domain on json": ("documented", as_json, ""),
    "vector": ("vector", in_brackets, ""),
    "sparsevec": ("sparsevec(8)", to_sparse, ""),
    "float32-le": ("bytea", as_bytes("<f4"), "float32-le"),
    "float32-be": ("bytea", as_bytes(">f4"), "float32-be"),
    "float64-le": ("bytea", as_bytes("<f8"), "float64-le"),
    "float64-be": ("bytea", as_bytes(">f8"), "float64-be"),
}
"""A column's type, how a vector is written into it, and what its bytes are."""


@pytest.fixture
def run(upgraded_url: str, tmp_path: Path) -> Run:
    """Run a command on a table ``articles`` that the test has made."""

    def run(*arguments: str, old: str = 'column = "old"', more: str = "", url: str = upgraded_url) -> Result:
        (tmp_path / "amprenta.toml").write_text(DECLARED.format(old=old, more=more))
        environment = {
            "DATABASE_URL": url,
            "AMPRENTA_CONFIG": str(tmp_path / "amprenta.toml"),
            "AMPRENTA_TABLE": "articles",
            "AMPRENTA_BATCH_SIZE": "40",
            "AMPRENTA_REPORT": str(tmp_path / "reports"),
        }
        return CliRunner().invoke(main, arguments, env=environment)

    return run


def make(engine: sa.Engine, type_: str, values: Sequence[Any], columns: str = "embedding vector(8)") -> None:
    execute(engine, f"CREATE TABLE articles (id bigint PRIMARY KEY, old {type_}, {columns})")
    put(engine, "articles", type_, values)


def put(engine: sa.Engine, table: str, type_: str, values: Sequence[Any]) -> None:
    insert = sa.text(f"INSERT INTO {table} (id, old) VALUES (:id, CAST(:old AS {type_}))")
    with engine.begin() as connection:
        connection.execute(insert, [{"id": number, "old": value} for number, value in enumerate(values)])


def stored(engine: sa.Engine) -> dict[int, bytes]:
    rows = execute(engine, "SELECT id, vector_send(embedding) FROM articles WHERE embedding IS NOT NULL")
    return {row[0]: bytes(row[1]) for row in rows}


def expected(vectors: Vectors, but: Sequence[int] = ()) -> dict[int, bytes]:
    return {number: on_the_wire(vector) for number, vector in enumerate(vectors) if number not in but}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_arrives_bit_for_bit_and_is_verified_and_the_old_column_stays(
    engine: sa.Engine, run: Run, tmp_path: Path, form: str
) -> None:
    type_, write, elements = FORMS[form]
    old = 'column = "old"' + (f', elements = "{elements}"' if elements else "")
    execute(engine, "CREATE DOMAIN embedded AS real[]; CREATE DOMAIN documented AS jsonb")
    make(engine, type_, [*map(write, VECTORS), None])
    before = execute(engine, "SELECT id, old::text FROM articles ORDER BY id")
    result = run("backfill", old=old)
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(VECTORS)
    assert execute(engine, "SELECT id, old::text FROM articles ORDER BY id") == before
    assert "300" in result.output
    [page] = (tmp_path / "reports").glob("*.html")
    assert "the application reads articles.old again" in page.read_text()
    assert "VECTOR_BACKEND=column" not in page.read_text()
    verified = run("verify", old=old)
    assert verified.exit_code == 0, verified.output
    assert f"{ROWS}" in verified.output


def test_a_limit_that_nothing_is_charged_by_is_warned_of(engine: sa.Engine, run: Run) -> None:
    make(engine, "real[]", [vector.tolist() for vector in VECTORS])
    warned = run("backfill", "--max-cost", "5", "--token-price", "1")
    assert warned.exit_code == 0, warned.output
    assert "AMPRENTA_MAX_COST limits nothing" in warned.output
    assert "limits nothing" not in run("verify").output


BROKEN = {
    3: "[1,2,3",
    4: "[[1,2,3,4],[5,6,7,8]]",
    5: "[1,2,3,NaN,5,6,7,8]",
    6: "not a vector",
    7: "[1,2,3,4,5,6,7,1e400]",
}


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_broken_value_is_quarantined_by_its_key_and_the_others_arrive(
    engine: sa.Engine, run: Run, keys_from: str
) -> None:
    values = [BROKEN.get(number) or in_brackets(vector) for number, vector in enumerate(VECTORS)]
    make(engine, "text", values)
    execute(engine, "ALTER TABLE articles ADD CONSTRAINT unlucky CHECK (id <> 13 OR embedding IS NULL)")
    result = run("backfill", "--keys-from", keys_from)
    assert result.exit_code == 3, result.output
    assert stored(engine) == expected(VECTORS, but=[*BROKEN, 13])
    listed = json.loads(run("errors", "--json").output)["errors"]
    unreadable = dict.fromkeys(map(str, BROKEN), "unreadable_record")
    assert {error["key"]: error["reason"] for error in listed} == {**unreadable, "13": "write_refused"}
    execute(engine, "ALTER TABLE articles DROP CONSTRAINT unlucky")
    for number in BROKEN:
        execute(engine, "UPDATE articles SET old = :old WHERE id = :id", id=number, old=in_brackets(VECTORS[number]))
    assert run("retry-failed").exit_code == 0
    assert stored(engine) == expected(VECTORS)
    assert run("verify").exit_code == 0


def test_lists_of_several_lengths_are_refused_with_their_counts_and_taken_by_the_hint(
    engine: sa.Engine, run: Run
) -> None:
    values = ["[1,2,3]" if number < 20 else in_brackets(vector) for number, vector in enumerate(VECTORS)]
    make(engine, "jsonb", values)
    refused = run("backfill")
    assert refused.exit_code == 2
    assert "20 of 3, 280 of 8" in refused.output
    assert "--dimension 8" in refused.output
    taken = run("backfill", "--dimension", "8")
    assert taken.exit_code == 0, taken.output
    assert "20 lists of another dimension than 8 are left out" in taken.output
    assert stored(engine) == expected(VECTORS, but=range(20))
    assert run("errors").output.count("wrong_dimension") == 0
    assert run("verify", "--dimension", "8").exit_code == 0
    other = run("backfill", "--dimension", "3")
    assert other.exit_code == 2
    assert "--dimension 8" in other.output


def test_inspecting_says_what_the_column_holds_before_there_is_a_new_one(engine: sa.Engine, run: Run) -> None:
    values = [*map(as_csv, VECTORS[:10]), *map(in_brackets, VECTORS[10:20]), "[1,2,3]", "[1,NaN]", "", None]
    make(engine, "text", values, columns="title text")
    result = run("sources", "inspect")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        " column: articles.old",
        "   type: text",
        "   form: 1,2 (10), [1,2] (11)",
        " values: 23",
        "without: 1 rows have no value",
        "dimensions:",
        "  3: 1",
        "  8: 20",
        "cannot be read: 2, such as",
        "  21: [1,NaN]",
        "  22: ",
        "amprenta-vectors backfill --dimension 8 takes those of 8 and leaves the others out",
    ]
    found = json.loads(run("sources", "inspect", "--json").output)
    assert found["dimensions"] == {"3": 1, "8": 20}
    assert found["unreadable"] == {"count": 2, "examples": {"21": "[1,NaN]", "22": ""}}


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
def test_inspecting_bytes_says_what_they_are_and_the_line_it_says_works(
    engine: sa.Engine, run: Run, dtype: str
) -> None:
    names = {"f4": "float32", "f8": "float64", "f2": "float16"}
    named = f"{names[dtype[1:]]}-{'le' if dtype[0] == '<' else 'be'}"
    make(engine, "bytea", [as_bytes(dtype)(vector) for vector in VECTORS])
    refused = run("backfill")
    assert refused.exit_code == 2
    assert "elements =" in refused.output
    assert f'elements = "{named}"' in run("sources", "inspect").output
    result = run("backfill", old=f'column = "old", elements = "{named}"')
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(VECTORS.astype(dtype).astype(np.float32))


def test_bytes_cut_short_are_quarantined_with_their_length(engine: sa.Engine, run: Run) -> None:
    values = [as_bytes("<f4")(vector) for vector in VECTORS]
    values[7] = values[7][:-1]
    make(engine, "bytea", values)
    old = 'column = "old", elements = "float32-le"'
    result = run("backfill", old=old)
    assert result.exit_code == 3, result.output
    assert stored(engine) == expected(VECTORS, but=[7])
    assert "31 bytes; expected a multiple of 4" in run("errors", old=old).output


def elsewhere(engine: sa.Engine, key: str = "article bigint", more: str = "") -> None:
    """Make ``articles`` without an old column, and ``kept.vectors`` with one."""
    execute(engine, "CREATE TABLE articles (id bigint PRIMARY KEY, embedding vector(8))")
    execute(engine, f"INSERT INTO articles (id) SELECT generate_series(0, {ROWS - 1})")
    execute(engine, "CREATE SCHEMA kept")
    execute(engine, f"CREATE TABLE kept.vectors ({key}, old real[] {more})")
    insert = sa.text("INSERT INTO kept.vectors VALUES (:id, CAST(:old AS real[]))")
    with engine.begin() as connection:
        connection.execute(insert, [{"id": n, "old": as_literal(vector)} for n, vector in enumerate(VECTORS)])


ELSEWHERE = 'column = "old", table = "vectors", schema = "kept", key = "article"'


def test_another_table_is_joined_by_its_key_and_what_belongs_to_no_row_is_told(engine: sa.Engine, run: Run) -> None:
    elsewhere(engine, more=", PRIMARY KEY (article)")
    execute(engine, "DELETE FROM articles WHERE id < 3")
    result = run("backfill", old=ELSEWHERE)
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(VECTORS, but=range(3))
    assert "3 rows of kept.vectors have a key that no row of articles has" in result.output
    assert "without a row: 3" in run("sources", "inspect", old=ELSEWHERE).output
    assert run("verify", old=ELSEWHERE).exit_code == 0


def test_a_key_of_two_rows_is_quarantined_and_the_others_arrive(engine: sa.Engine, run: Run) -> None:
    elsewhere(engine, more="")
    execute(engine, "CREATE INDEX ON kept.vectors (article)")
    execute(engine, "INSERT INTO kept.vectors SELECT * FROM kept.vectors WHERE article IN (5, 50)")
    result = run("backfill", old=ELSEWHERE)
    assert result.exit_code == 3, result.output
    assert stored(engine) == expected(VECTORS, but=[5, 50])
    assert "2 rows of kept.vectors have this key" in run("errors", old=ELSEWHERE).output
    assert "2 keys have several rows" in run("sources", "inspect", old=ELSEWHERE).output


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ('column = "nope"', "articles has no column nope; it has"),
        ('column = "id"', "expected a column that nothing else here names, found 'id'"),
        ('column = "old", table = "nope"', "there is no table nope"),
        ('column = "old", key = "id"', "old.key: expected old.table with it"),
        ('column = "old", elements = "float32-le"', "old.elements is for a column of bytea"),
        ('column = "old", elements = "float31"', "old.elements: expected"),
        ('col = "old"', "old.column: expected a value, found none"),
        ('column = "old", colour = "x"', "old.colour"),
        ('column = "title"', "expected text, json, jsonb, bytea, real[]"),
    ],
)
def test_a_declaration_that_does_not_fit_says_what_does(engine: sa.Engine, run: Run, old: str, said: str) -> None:
    make(engine, "text", ["[1,2,3,4,5,6,7,8]"], columns="title date, embedding vector(8)")
    for command in (["backfill"], ["sources", "inspect"]):
        result = run(*command, old=old)
        assert result.exit_code == 2, result.output
        assert said in result.output, result.output


def test_what_was_written_to_the_old_column_since_is_found_by_reconcile(engine: sa.Engine, run: Run) -> None:
    more = 'hash = "hash"'
    make(engine, "jsonb", list(map(as_json, VECTORS)), columns="embedding vector(8), hash bigint")
    assert run("backfill", more=more).exit_code == 0
    new = to_vectors(3, seed=9)
    for number, vector in enumerate(new):
        execute(engine, "UPDATE articles SET old = CAST(:old AS jsonb) WHERE id = :id", id=number, old=as_json(vector))
    execute(engine, "INSERT INTO articles (id, old) VALUES (900, CAST(:old AS jsonb))", old=as_json(new[0]))
    assert run("verify", more=more).exit_code == 1
    result = run("reconcile", more=more)
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(np.vstack([new, VECTORS[3:]])) | {900: on_the_wire(new[0])}
    assert run("verify", more=more).exit_code == 0


def test_a_second_run_finds_nothing_though_rows_without_a_value_stay_empty(engine: sa.Engine, run: Run) -> None:
    make(engine, "text", [*map(in_brackets, VECTORS[:50]), None, None])
    assert run("backfill").exit_code == 0
    again = run("backfill", "--resume")
    assert again.exit_code == 0
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE vector_table = 'articles'") == [(1,)]


NOTES = """
[tables.articles]
table = "notes"
key = ["day", "number"]
key_map = "split"
separator = "#"
scope = "tenant"
embedding = "vec"
dimension = 8
storage = "halfvec"
source = "column"
old = {{ {old} }}
{more}
"""


def test_scope_composite_keys_and_half_precision_of_another_table(
    engine: sa.Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "DECLARED", NOTES)
    key = "tenant text, day date, number integer"
    execute(engine, f"CREATE TABLE notes ({key}, vec halfvec(8), PRIMARY KEY (tenant, day, number))")
    execute(engine, f"CREATE TABLE old_notes ({key}, v double precision[], PRIMARY KEY (tenant, day, number))")
    doubles = VECTORS.astype(np.float64) / 3
    insert = sa.text("INSERT INTO old_notes VALUES (:tenant, DATE '2026-01-01' + :day, :number, :v)")
    rows = [
        {"tenant": "ab"[number % 2], "day": number // 10, "number": number, "v": doubles[number].tolist()}
        for number in range(ROWS)
    ]
    with engine.begin() as connection:
        connection.execute(insert, rows)
    execute(engine, "INSERT INTO notes SELECT tenant, day, number FROM old_notes")
    old = 'column = "v", table = "old_notes"'
    result = run("backfill", "--namespace", "a", old=old)
    assert result.exit_code == 0, result.output
    assert execute(engine, "SELECT tenant, count(*) FROM notes WHERE vec IS NOT NULL GROUP BY 1") == [("a", ROWS // 2)]
    assert run("backfill", "--all-namespaces", "--resume", old=old).exit_code == 0
    found = execute(engine, "SELECT number, vec::real[] FROM notes ORDER BY number")
    assert [row[0] for row in found] == list(range(ROWS))
    halves = np.array([row[1] for row in found])
    # To the nearest of 32 bits, then to the nearest of 16: half a unit in the last place of the latter, and no more.
    assert (np.abs(halves - doubles) <= np.abs(doubles) * 2.0**-11 * (1 + 2.0**-12) + 2.0**-25).all()
    assert run("verify", "--all-namespaces", old=old).exit_code == 0
    refused = run("backfill", "--namespace", "c", old=old)
    assert refused.exit_code == 2
    assert "it has: a (150), b (150)" in refused.output


def test_a_killed_run_goes_on_and_writes_each_row_once(
    engine: sa.Engine, run: Run, upgraded_url: str, tmp_path: Path
) -> None:
    make(engine, "text", list(map(in_brackets, VECTORS)), columns="embedding vector(8), writes integer DEFAULT 0")
    execute(
        engine,
        "CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.writes := OLD.writes + 1; PERFORM pg_sleep(0.005); RETURN NEW; END $$",
    )
    execute(engine, "CREATE TRIGGER counted BEFORE UPDATE ON articles FOR EACH ROW EXECUTE FUNCTION counted()")
    (tmp_path / "amprenta.toml").write_text(DECLARED.format(old='column = "old"', more=""))
    environment = os.environ | {
        "DATABASE_URL": upgraded_url,
        "AMPRENTA_CONFIG": str(tmp_path / "amprenta.toml"),
        "AMPRENTA_TABLE": "articles",
        "AMPRENTA_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    command = [sys.executable, "-m", "amprenta_vectors", "backfill", "--batch-size", "20", "--workers", "2"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: 20 <= len(stored(engine)) < ROWS)
        process.kill()
    assert len(stored(engine)) < ROWS
    result = run("backfill", "--resume")
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(VECTORS)
    assert execute(engine, "SELECT DISTINCT writes FROM articles") == [(1,)]


def test_what_is_there_already_stays_and_the_run_fills_the_rest(engine: sa.Engine, run: Run) -> None:
    make(engine, "real[]", list(map(as_literal, VECTORS)))
    own = to_vectors(1, seed=5)[0]
    execute(engine, "UPDATE articles SET embedding = CAST(:v AS vector) WHERE id = 4", v=in_brackets(own))
    result = run("backfill")
    assert result.exit_code == 1, result.output
    assert "different" in result.output
    assert stored(engine) == expected(VECTORS) | {4: on_the_wire(own)}
    assert run("backfill", "--force").exit_code == 0
    assert stored(engine) == expected(VECTORS)


STRANGE = [
    "",
    " ",
    "NULL",
    "null",
    "{}",
    '"',
    "\\",
    '\\"',
    "a,b",
    "{a,b}",
    "'",
    "%s",
    ":x",
    "%(x)s",
    "\n",
    "\u00e9\U0001f600",
    "\x7f",
]


def test_a_key_that_has_to_be_quoted_is_planned_and_filled_like_any_other(engine: sa.Engine, run: Run) -> None:
    execute(engine, "CREATE TABLE articles (id text PRIMARY KEY, old text, embedding vector(8))")
    insert = sa.text("INSERT INTO articles (id, old) VALUES (:id, :old)")
    with engine.begin() as connection:
        connection.execute(insert, [{"id": key, "old": as_json(VECTORS[n])} for n, key in enumerate(STRANGE)])
    assert run("backfill").exit_code == 0
    assert stored(engine) == {key: on_the_wire(VECTORS[n]) for n, key in enumerate(STRANGE)}
    planned = execute(engine, "SELECT sum(keys_done), min(first_key), max(last_key) FROM migration_progress")
    listed = execute(engine, "SELECT count(*), min(id), max(id) FROM articles")
    assert planned == listed


@pytest.mark.parametrize("blanks", ["", 30 * " "])
@pytest.mark.parametrize("type_", ["json", "jsonb"])
def test_a_null_of_json_is_no_value_however_much_room_it_takes(
    engine: sa.Engine, run: Run, type_: str, blanks: str
) -> None:
    values = [*map(as_json, VECTORS), None, f"{blanks}null{blanks}", '"null"', "0", "[]", '""']
    make(engine, type_, values)
    assert run("backfill", "--max-bad-share", "1").exit_code == 3
    assert stored(engine) == expected(VECTORS)
    first_bad = len(VECTORS) + 2
    keys = execute(engine, "SELECT key FROM migration_quarantine ORDER BY key")
    assert keys == [(str(number),) for number in range(first_bad, len(values))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8),
    around=st.sampled_from(["[{}]", "{{{}}}", "{}", " [ {} ] ", "\n{}\n"]),
    between=st.sampled_from([",", ", ", " ,\t", " ", "  \n", 80 * " ", ", " + 80 * " "]),
)
def test_however_a_list_is_spelt_every_number_of_32_bits_comes_back(
    engine: sa.Engine, numbers: list[float], around: str, between: str
) -> None:
    text = around.format(between.join(repr(number) for number in numbers))
    form = Lists("text")
    value = sa.literal(text, sa.Text)
    with engine.connect() as connection:
        asked = sa.select(form.dimension(value), sa.func.vector_send(form.vector(value, 8)))
        dimension, sent = connection.execute(asked).one()
    assert dimension == 8
    assert bytes(sent) == on_the_wire(np.array(numbers, np.float32))


@given(text=st.text(alphabet=' ,.[]{}0123456789eE+-NaInf"ntul', max_size=40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_has_a_dimension_can_be_cast_to_it_or_has_a_number_out_of_range(engine: sa.Engine, text: str) -> None:
    form = Lists("text")
    value = sa.literal(text, sa.Text)
    with engine.connect() as connection:
        dimension = connection.execute(sa.select(form.dimension(value))).scalar_one()
        if dimension is None:
            return
        state = None
        try:
            connection.execute(sa.select(form.vector(value, dimension)))
        except sa.exc.DBAPIError as error:
            state = sqlstate(error)
    assert state in (None, OUT_OF_RANGE)


def test_a_role_that_row_security_blinds_on_the_other_table_is_refused(
    engine: sa.Engine, run: Run, upgraded_url: str
) -> None:
    elsewhere(engine, more=", PRIMARY KEY (article)")
    execute(engine, "CREATE ROLE blinded LOGIN")
    execute(engine, "GRANT ALL ON ALL TABLES IN SCHEMA public TO blinded; GRANT USAGE ON SCHEMA kept TO blinded")
    execute(engine, "GRANT SELECT ON kept.vectors TO blinded; ALTER TABLE kept.vectors ENABLE ROW LEVEL SECURITY")
    url = sa.make_url(upgraded_url).set(username="blinded").render_as_string(hide_password=False)
    try:
        for command in (["backfill"], ["sources", "inspect"]):
            result = run(*command, old=ELSEWHERE, url=url)
            assert result.exit_code == 2, result.output
            assert "row security hides rows of kept.vectors from this role" in result.output
        assert stored(engine) == {}
    finally:
        execute(engine, "DROP OWNED BY blinded; DROP ROLE blinded")


@pytest.mark.parametrize("type_", ["halfvec", "integer[]"])
def test_what_is_coarser_than_a_vector_comes_as_it_is(engine: sa.Engine, run: Run, type_: str) -> None:
    # Without -0, which no integer is.
    whole = np.round(VECTORS * 100).astype(np.float32) + 0.0
    make(engine, type_, [(in_brackets if type_ == "halfvec" else as_integers)(vector) for vector in whole])
    assert run("backfill").exit_code == 0
    assert stored(engine) == expected(whole)
    assert run("verify").exit_code == 0


def as_integers(vector: Vectors) -> str:
    return "{" + ",".join(str(int(value)) for value in vector) + "}"


def test_a_view_that_casts_the_key_of_a_partitioned_table_is_another_table(engine: sa.Engine, run: Run) -> None:
    execute(engine, 'CREATE SCHEMA "100% old"')
    execute(engine, "CREATE TABLE articles (id bigint PRIMARY KEY, embedding vector(8))")
    execute(engine, f"INSERT INTO articles SELECT generate_series(0, {ROWS - 1})")
    execute(engine, "CREATE TABLE parts (article numeric, old jsonb) PARTITION BY RANGE (article)")
    execute(engine, "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100)")
    execute(engine, "CREATE TABLE high PARTITION OF parts DEFAULT")
    insert = sa.text("INSERT INTO parts VALUES (:id, CAST(:old AS jsonb))")
    with engine.begin() as connection:
        connection.execute(insert, [{"id": n, "old": as_json(vector)} for n, vector in enumerate(VECTORS)])
    refused = run("backfill", old='column = "old", table = "parts", key = "article"')
    assert refused.exit_code == 2
    assert "no index finds one by the other" in refused.output
    view = '"100% old"."The View\'s"'
    execute(engine, f'CREATE VIEW {view} AS SELECT article::bigint AS "My Id", old AS "V%" FROM parts')
    old = 'column = "V%", table = "The View\'s", schema = "100% old", key = "My Id"'
    result = run("backfill", old=old)
    assert result.exit_code == 0, result.output
    assert stored(engine) == expected(VECTORS)
    assert run("verify", old=old).exit_code == 0


def test_the_rows_of_a_partitioned_table_are_filled(engine: sa.Engine, run: Run) -> None:
    columns = "id bigint PRIMARY KEY, old text, embedding vector(8)"
    execute(engine, f"CREATE TABLE articles ({columns}) PARTITION BY RANGE (id)")
    execute(engine, "CREATE TABLE low PARTITION OF articles FOR VALUES FROM (0) TO (100)")
    execute(engine, "CREATE TABLE high PARTITION OF articles DEFAULT")
    put(engine, "articles", "text", list(map(as_csv, VECTORS)))
    assert run("backfill").exit_code == 0
    assert stored(engine) == expected(VECTORS)


def test_a_roles_own_time_out_does_not_end_the_count_of_a_column(
    engine: sa.Engine, run: Run, upgraded_url: str
) -> None:
    make(engine, "text", list(map(in_brackets, VECTORS[:3])))
    # A value that takes longer to look at than the role may ask for.
    execute(
        engine,
        "CREATE VIEW slow AS SELECT id, CASE WHEN pg_sleep(0.2) IS NOT NULL THEN old END AS old FROM articles OFFSET 0",
    )
    url = upgraded_url + ("&" if "?" in upgraded_url else "?") + "options=-c%20statement_timeout%3D100ms"
    result = run("sources", "inspect", old='column = "old", table = "slow"', url=url)
    assert result.exit_code == 0, result.output
    assert "8: 3" in result.output
