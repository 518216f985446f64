"""Tables of one's own: other names, keys, storages and columns, each filled, verified and passed by the gate."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import API_KEY, INDEX_NAME, execute, on_the_wire, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import RowError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.factory import open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.protocol import Record

StartEmulator = Callable[..., PineconeEmulator]
UUIDS = [str(uuid.UUID(int=number * 0x1234567890ABCDEF1234567)) for number in range(1, 31)]
NUMBERS = [str(number * 1_000_000_007) for number in range(30)]
NAMES = [f"chunk-{number:03d}" for number in range(30)]
NAMESPACE_UUID = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True)
class Kind:
    """A table, its description, and the key column by column that the record of each id must get."""

    table: str
    """The table as SQL writes it."""
    columns: str
    description: str
    ids: Sequence[str]
    keys: Sequence[tuple[str, ...]]
    key_columns: str
    embedding: str = "embedding"
    halfvec: bool = False
    insert: str | None = None
    """How the application makes a row without an embedding; by default with its key alone."""


def one(values: Sequence[str]) -> list[tuple[str, ...]]:
    return [(value,) for value in values]


def uuid5(name: str) -> str:
    return str(uuid.uuid5(NAMESPACE_UUID, name))


KINDS = {
    "names that need quoting": Kind(
        '"My Schema"."My Chunks"',
        '"Chunk Id" text, "Name Space" text, "Vec" vector(8), "Body" text, "Meta" jsonb, "Model" text, '
        'PRIMARY KEY ("Name Space", "Chunk Id")',
        """
        schema = "My Schema"
        table = "My Chunks"
        key = "Chunk Id"
        scope = ["Name Space"]
        embedding = "Vec"
        text = "Body"
        metadata = "Meta"
        model = "Model"
        dimension = 8
        """,
        NAMES,
        one(NAMES),
        '"Chunk Id"',
        '"Vec"',
        insert='INSERT INTO "My Schema"."My Chunks" ("Chunk Id", "Name Space") VALUES (:k0, \'\')',
    ),
    "percent and quote": Kind(
        '"100% ""own"""',
        '"i%d" text PRIMARY KEY, embedding vector(8)',
        """
        table = '100% "own"'
        key = "i%d"
        dimension = 8
        """,
        NAMES,
        one(NAMES),
        '"i%d"',
    ),
    "longest names": Kind(
        "t" * 63,
        f"{'k' * 63} text PRIMARY KEY, {'v' * 63} vector(8)",
        f"""
        table = "{"t" * 63}"
        key = "{"k" * 63}"
        embedding = "{"v" * 63}"
        dimension = 8
        """,
        NAMES,
        one(NAMES),
        "k" * 63,
        "v" * 63,
    ),
    "uuid": Kind(
        "documents",
        "id uuid PRIMARY KEY, embedding vector(8)",
        """
        table = "documents"
        key = "id"
        dimension = 8
        """,
        UUIDS,
        one(UUIDS),
        "id",
    ),
    "bigint": Kind(
        "items",
        "id bigint PRIMARY KEY, embedding vector(8)",
        """
        table = "items"
        key = "id"
        dimension = 8
        """,
        NUMBERS,
        one(NUMBERS),
        "id",
    ),
    "numeric, which has several spellings too": Kind(
        "priced",
        "id numeric(12, 2) PRIMARY KEY, embedding vector(8)",
        """
        table = "priced"
        key = "id"
        dimension = 8
        """,
        [f"{number}.50" for number in range(30)],
        one([f"{number}.50" for number in range(30)]),
        "id",
    ),
    "halfvec": Kind(
        "halves",
        "id text PRIMARY KEY, embedding halfvec(8)",
        """
        table = "halves"
        key = "id"
        dimension = 8
        storage = "halfvec"
        """,
        NAMES,
        one(NAMES),
        "id",
        halfvec=True,
    ),
    "composite": Kind(
        "pages",
        "document text, page integer, embedding vector(8), PRIMARY KEY (document, page)",
        """
        table = "pages"
        key = ["document", "page"]
        key_map = "split"
        separator = "#"
        dimension = 8
        """,
        [f"doc#{number % 7}#{number}" for number in range(30)],
        [(f"doc#{number % 7}", str(number)) for number in range(30)],
        "document, page",
    ),
    "source key and number": Kind(
        "numbered",
        "source uuid, number smallint, embedding vector(8), PRIMARY KEY (source, number)",
        """
        table = "numbered"
        key = ["source", "number"]
        key_map = "numbered"
        dimension = 8
        """,
        UUIDS,
        [(key, "0") for key in UUIDS],
        "source, number",
    ),
    "uuid5": Kind(
        "hashed",
        "id uuid PRIMARY KEY, embedding vector(8), text text",
        f"""
        table = "hashed"
        key = "id"
        key_map = "uuid5"
        uuid_namespace = "{NAMESPACE_UUID}"
        dimension = 8
        text = "text"
        """,
        NAMES,
        one([uuid5(name) for name in NAMES]),
        "id",
    ),
    "look-up": Kind(
        "known",
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pinecone_id text UNIQUE, embedding vector(8)",
        """
        table = "known"
        key = "id"
        key_map = "lookup"
        lookup = "pinecone_id"
        dimension = 8
        """,
        NAMES,
        one(NAMES),
        "pinecone_id",
        insert="INSERT INTO known (pinecone_id) VALUES (:k0)",
    ),
}


def environment_of(tmp_path: Path, url: str, emulator: PineconeEmulator, description: str) -> dict[str, str]:
    config = tmp_path / "own.toml"
    config.write_text(f"[tables.own]\n{description}")
    return {
        "DATABASE_URL": url,
        "AMPRENTA_CONFIG": str(config),
        "AMPRENTA_TABLE": "own",
        "AMPRENTA_RETRY_SECONDS": "5",
        "AMPRENTA_BATCH_SIZE": "7",
        "AMPRENTA_WORKERS": "2",
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": emulator.host,
        "PINECONE_GRPC_HOST": emulator.grpc_host,
    }


def run(environment: Mapping[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=dict(environment))


def make_table(engine: sa.Engine, kind: Kind) -> None:
    execute(engine, 'CREATE SCHEMA IF NOT EXISTS "My Schema"')
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE {kind.table} ({kind.columns})", execution_options={"no_parameters": True}
        )


def add_rows(engine: sa.Engine, kind: Kind) -> None:
    names = ", ".join(f":k{position}" for position in range(len(kind.keys[0])))
    statement = kind.insert or f"INSERT INTO {kind.table} ({kind.key_columns}) VALUES ({names})"
    for key in kind.keys:
        # Text literals of no type, as an application would type them.
        values = {f"k{position}": part for position, part in enumerate(key)}
        bound = sa.text(statement).bindparams(
            *(sa.bindparam(name, value, sa.String()) for name, value in values.items())
        )
        with engine.begin() as connection:
            connection.execute(bound)


def stored(engine: sa.Engine, kind: Kind) -> dict[tuple[str, ...], bytes]:
    send = "halfvec_send" if kind.halfvec else "vector_send"
    keys = ", ".join(f"CAST({name} AS text)" for name in kind.key_columns.split(", "))
    statement = f"SELECT {send}({kind.embedding}), {keys} FROM {kind.table} WHERE {kind.embedding} IS NOT NULL"
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).all()
    return {tuple(key): bytes(vector) for vector, *key in rows}


def expected(kind: Kind, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> dict[tuple[str, ...], bytes]:
    def send(row: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
        return struct.pack(">hh", 8, 0) + row.astype(">f2").tobytes() if kind.halfvec else on_the_wire(row)

    return {key: send(row) for key, row in zip(kind.keys, vectors, strict=True)}


CASES = [
    (name, keys_from) for name in KINDS for keys_from in ("table", "source") if (name, keys_from) != ("uuid5", "table")
]


@pytest.mark.parametrize(("name", "keys_from"), CASES)
def test_a_table_of_ones_own_is_filled_verified_indexed_and_passed_by_the_gate(
    name: str, keys_from: str, upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind, vectors = KINDS[name], to_vectors(30)
    pinecone = emulator()
    pinecone.load("", kind.ids, vectors, [{"text": f"text of {key}", "page": 1} for key in kind.ids])
    make_table(engine, kind)
    if keys_from == "table" or name == "look-up":
        add_rows(engine, kind)
    environment = environment_of(tmp_path, upgraded_url, pinecone, kind.description)

    built = run(environment, "index", "build")
    assert built.exit_code == 0, built.output
    done = run(environment, "backfill", "--keys-from", keys_from)
    assert (done.exit_code, "every vector is equal" in done.output) == (0, True), f"{done.output}{done.exception!r}"
    assert stored(engine, kind) == expected(kind, vectors)

    for command in (["verify"], ["gate"], ["index", "rebuild"], ["index", "drop"], ["index", "build"], ["status"]):
        again = run(environment, *command)
        assert again.exit_code == 0, again.output
    again = run(environment, "tables", "check", "own")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("name", ["names that need quoting", "percent and quote", "longest names"])
def test_every_other_command_takes_any_name(
    name: str, upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind = KINDS[name]
    pinecone = emulator()
    load(pinecone, kind.ids, to_vectors(30))
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    target = environment["AMPRENTA_TABLE"]
    commands = [
        ["backfill", "--dry-run", "--keys-from", "source"],
        ["backfill", "--dry-run", "--offline"],
        ["tables", "check", target],
        ["backfill", "--keys-from", "source", "--limit", "7", "--defer-index"],
        ["backfill", "--restart", "--keys-from", "source"],
        ["errors"],
        ["retry-failed"],
        ["status"],
        ["report", "3"],
    ]
    for command in commands:
        done = run(environment, *command)
        # The check finds that the index is missing.
        assert done.exit_code == (2 if command[0] == "tables" else 0), f"{command} {done.output}{done.exception!r}"


@pytest.mark.parametrize("name", [name for name in KINDS if name != "source key and number"])
def test_a_table_of_ones_own_is_queried_by_the_ids_of_the_source(
    name: str,
    upgraded_url: str,
    engine: sa.Engine,
    emulator: StartEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, vectors = KINDS[name], to_vectors(30)
    pinecone = emulator()
    load(pinecone, kind.ids, vectors)
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    if name == "look-up":
        add_rows(engine, kind)
    assert run(environment, "backfill", "--keys-from", "source", "--no-verify").exit_code == 0
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    store = open_pgvector_store(Settings.load())
    ids = [key for (key,) in kind.keys] if name == "uuid5" else list(kind.ids)
    assert [store.query(row, top_k=1)[0].key for row in vectors[:5]] == ids[:5]
    # What is a numeric is for PostgreSQL to say, which refuses the whole question.
    strange = ["77.25"] if "numeric" in name else ["no such key", "a#b#c"]
    fetched = store.fetch([*ids[3:6], *strange])
    tolerance = 1e-3 if kind.halfvec else 0
    assert list(fetched) == ids[3:6]
    assert all(np.allclose(fetched[ids[n]].vector, vectors[n], rtol=tolerance, atol=0) for n in (3, 4, 5))
    assert list(store.scores(vectors[0], [ids[7], *strange])) == [ids[7]]
    store.delete([ids[0], *strange])
    assert store.count() == 29
    assert store.upsert([Record(ids[0], vectors[0]), Record(ids[1], vectors[2])]) == 2
    assert store.count() == 30
    assert store.query(vectors[0], top_k=1)[0].key == ids[0]
    store.close()
    compared = run(environment, "benchmark", "--queries", "3", "--top-k", "5", "--json")
    assert compared.exit_code == 0, f"{compared.output}{compared.exception!r}"
    if name not in ("uuid5", "look-up"):
        assert json.loads(compared.output)["overlap"] > 0.8


@pytest.mark.parametrize("name", ["names that need quoting", "halfvec", "composite", "uuid5", "look-up"])
def test_a_row_that_a_table_of_ones_own_lost_is_named_by_its_id_at_the_source(
    name: str, upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind = KINDS[name]
    pinecone = emulator()
    load(pinecone, kind.ids, to_vectors(30))
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    if name == "look-up":
        add_rows(engine, kind)
    assert run(environment, "backfill", "--keys-from", "source", "--no-verify").exit_code == 0
    for lost in ([], [kind.ids[4]]):
        if lost:
            keys = dict(zip(kind.ids, kind.keys, strict=True))[lost[0]]
            columns = kind.key_columns.split(", ")
            same = " AND ".join(f"CAST({column} AS text) = :k{place}" for place, column in enumerate(columns))
            execute(engine, f"DELETE FROM {kind.table} WHERE {same}", **{f"k{n}": key for n, key in enumerate(keys)})
        compared = run(environment, "compare", "--queries", "3", "--top-k", "30", "--json")
        assert compared.exit_code == (1 if lost else 0), f"{compared.output}{compared.exception!r}"
        missing = {why: found["keys"] for why, found in json.loads(compared.output)["missing"].items() if found["hits"]}
        assert missing == ({"lost": lost} if lost else {})


def test_a_key_of_another_spelling_is_fetched_under_the_name_it_was_asked_for_by(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinecone = emulator()
    load(pinecone, ["x"], to_vectors(1))
    environment = own(KINDS["uuid"], upgraded_url, pinecone, tmp_path, engine)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    store = open_pgvector_store(Settings.load())
    shouted, braced = UUIDS[0].upper(), f"{{{UUIDS[1]}}}"
    store.upsert([Record(shouted, to_vectors(1)[0]), Record(braced, to_vectors(2)[1])])
    assert sorted(stored(engine, KINDS["uuid"])) == sorted(one(UUIDS[:2]))
    assert set(store.fetch([shouted, UUIDS[0], braced])) == {shouted, UUIDS[0], braced}
    with pytest.raises(RowError, match="no-uuid"):
        store.upsert([Record("no-uuid", to_vectors(1)[0])])
    store.close()


def test_past_2000_dimensions_queries_use_the_index_and_give_exact_distances(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = to_vectors(60, 2304)
    pinecone = emulator(dimension=2304)
    load(pinecone, [str(number) for number in range(60)], vectors)
    kind = Kind(
        "wide",
        "id integer PRIMARY KEY, embedding vector(2304)",
        'table = "wide"\nkey = "id"\ndimension = 2304\n',
        (),
        (),
        "id",
    )
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    assert run(environment, "index", "build").exit_code == 0
    assert run(environment, "tables", "check").exit_code == 0
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    store = open_pgvector_store(Settings.load())
    found, exact = store.query(vectors[7], top_k=5), store.query(vectors[7], top_k=5, exact=True)
    assert [(hit.key, hit.score) for hit in found] == [(hit.key, hit.score) for hit in exact]
    with engine.begin() as connection:
        # So few rows would be read one by one.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        compiled = (
            store._column(store.models.now(), None).resolve(connection).nearest(None, by="halfvec").compile(engine)
        )
        cursor: Any = connection.connection.cursor()
        values = {**compiled.params, "vector": str(vectors[7].tolist()), "top_k": 5, "candidates": 20}
        cursor.execute("EXPLAIN " + str(compiled), values)
        assert "Index Scan using idx_wide_embedding_hnsw" in str(cursor.fetchall())
    store.close()


def own(kind: Kind, upgraded_url: str, pinecone: PineconeEmulator, tmp_path: Path, engine: sa.Engine) -> dict[str, str]:
    make_table(engine, kind)
    return environment_of(tmp_path, upgraded_url, pinecone, kind.description)


def quarantined(engine: sa.Engine) -> dict[str, str]:
    return dict(execute(engine, "SELECT key, reason FROM migration_quarantine WHERE resolved_at IS NULL"))


def load(pinecone: PineconeEmulator, ids: Sequence[str], vectors: Any) -> None:
    pinecone.load("", ids, vectors)


def test_keys_that_are_hashes_come_from_the_source_only(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    pinecone = emulator()
    load(pinecone, ["a"], to_vectors(1))
    environment = own(KINDS["uuid5"], upgraded_url, pinecone, tmp_path, engine)
    refused = run(environment, "backfill", "--keys-from", "table")
    assert refused.exit_code == 2
    assert "cannot be turned back into ids of the source" in refused.output
    assert "hint: --keys-from source" in refused.output
    assert execute(engine, "SELECT 1 FROM migration_run WHERE source IS NOT NULL") == []


def test_every_spelling_of_a_uuid_finds_its_row_and_is_verified_as_that_uuid(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    plain = UUIDS[:4]
    ids = [plain[0].upper(), f"{{{plain[1]}}}", plain[2].replace("-", ""), plain[3]]
    vectors = to_vectors(5)
    pinecone = emulator()
    load(pinecone, [*ids, "no-uuid"], vectors)
    kind = KINDS["uuid"]
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 3, done.output
    assert stored(engine, kind) == {(key,): on_the_wire(row) for key, row in zip(plain, vectors, strict=False)}
    assert quarantined(engine) == {"no-uuid": "no_target_key"}
    assert "no-uuid" in done.output
    assert "no_target_key: 'no-uuid' is no uuid" in done.output

    execute(engine, "DELETE FROM documents WHERE id = CAST(:id AS uuid)", id=plain[0])
    execute(
        engine,
        "UPDATE documents SET embedding = array_fill(1, ARRAY[8])::vector WHERE id = CAST(:id AS uuid)",
        id=plain[1],
    )
    found = run(environment, "verify").output
    assert f"missing: {ids[0]!r}" in found
    assert f"different: {ids[1]!r}: row {plain[1]}" in found


def test_an_id_that_is_no_number_or_another_spelling_of_one_is_quarantined_and_the_run_goes_on(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    ids, vectors = ["42", "042", "abc", "-7", "9" * 30, "4 2", "0"], to_vectors(7)
    pinecone = emulator()
    load(pinecone, ids, vectors)
    kind = KINDS["bigint"]
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 3, done.output
    written = {(ids[place],): on_the_wire(vectors[place]) for place in (0, 3, 6)}
    assert stored(engine, kind) == written
    assert quarantined(engine) == dict.fromkeys(("042", "abc", "9" * 30, "4 2"), "no_target_key")
    # They are told apart from what is lost: nothing else is missing.
    assert run(environment, "gate", "--allow", "no_target_key").exit_code == 0


def test_what_only_postgresql_can_tell_is_refused_by_row_and_compared_without_an_error(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind = KINDS["numeric, which has several spellings too"]
    ids, vectors = ["1.50", "2.5", "x", "1e99"], to_vectors(4)
    pinecone = emulator()
    load(pinecone, ids, vectors)
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 3, f"{done.output}{done.exception!r}"
    assert stored(engine, kind) == {("1.50",): on_the_wire(vectors[0]), ("2.50",): on_the_wire(vectors[1])}
    assert quarantined(engine) == {"x": "write_refused", "1e99": "write_refused"}
    found = run(environment, "verify")
    assert "2 missing, 0 extra, 0 different" in found.output, f"{found.output}{found.exception!r}"


def test_one_source_key_fills_every_row_that_holds_it_and_one_that_none_holds_is_quarantined(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind = Kind(
        "copies",
        "id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant text, source_id text, embedding vector(8), "
        "UNIQUE (tenant, id)",
        """
        table = "copies"
        key = "id"
        scope = "tenant"
        key_map = "lookup"
        lookup = "source_id"
        dimension = 8
        """,
        (),
        (),
        "source_id, tenant",
    )
    vectors = to_vectors(3)
    pinecone = emulator()
    load(pinecone, ["a", "b", "c"], vectors)
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    execute(
        engine,
        "INSERT INTO copies (source_id, tenant) VALUES ('a', ''), ('a', ''), ('b', ''), ('b', 'other'), (NULL, '')",
    )
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 3, f"{done.output}{done.exception!r}"
    rows = execute(engine, "SELECT source_id, tenant, vector_send(embedding) FROM copies ORDER BY 1, 2")
    a, b = (on_the_wire(row) for row in vectors[:2])
    got = [(key, tenant, vector and bytes(vector)) for key, tenant, vector in rows]
    assert got == [("a", "", a), ("a", "", a), ("b", "", b), ("b", "other", None), (None, "", None)]
    assert quarantined(engine) == {"c": "no_target_key"}

    execute(engine, "UPDATE copies SET embedding = NULL")
    again = run(environment, "backfill", "--keys-from", "table", "--no-verify")
    assert again.exit_code == 0, f"{again.output}{again.exception!r}"
    assert execute(engine, "SELECT count(embedding) FROM copies") == [(3,)]


def test_rows_that_were_quarantined_are_taken_again_once_their_table_takes_them(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind, vectors = KINDS["composite"], to_vectors(30)
    pinecone = emulator()
    load(pinecone, kind.ids, vectors)
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    execute(engine, "ALTER TABLE pages ADD CONSTRAINT few CHECK (page < 25)")
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 3, f"{done.output}{done.exception!r}"
    assert quarantined(engine) == dict.fromkeys(kind.ids[25:], "write_refused")
    execute(engine, "ALTER TABLE pages DROP CONSTRAINT few")
    again = run(environment, "retry-failed")
    assert again.exit_code == 0, f"{again.output}{again.exception!r}"
    assert stored(engine, kind) == expected(kind, vectors)
    assert quarantined(engine) == {}


def test_an_id_that_no_row_held_is_taken_again_once_one_does(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind, vectors = KINDS["look-up"], to_vectors(2)
    pinecone = emulator()
    load(pinecone, ["a", "b"], vectors)
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    execute(engine, "INSERT INTO known (pinecone_id) VALUES ('a')")
    assert run(environment, "backfill", "--keys-from", "source").exit_code == 3
    assert quarantined(engine) == {"b": "no_target_key"}
    execute(engine, "INSERT INTO known (pinecone_id) VALUES ('b')")
    again = run(environment, "retry-failed")
    assert again.exit_code == 0, f"{again.output}{again.exception!r}"
    assert stored(engine, kind) == {(key,): on_the_wire(row) for key, row in zip("ab", vectors, strict=True)}


def test_the_namespace_goes_to_the_scope_column_that_has_no_value_of_its_own(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    kind = Kind(
        "scoped",
        "id text, tenant integer, kind text, embedding vector(8), PRIMARY KEY (tenant, kind, id)",
        """
        table = "scoped"
        key = "id"
        scope = ["tenant", "kind"]
        scope_values = { kind = "faq" }
        dimension = 8
        """,
        (),
        (),
        "tenant, kind, id",
    )
    vectors = to_vectors(2)
    pinecone = emulator()
    for number, namespace in enumerate(("7", "12")):
        pinecone.load(namespace, ["a"], vectors[number : number + 1])
    environment = own(kind, upgraded_url, pinecone, tmp_path, engine)
    done = run(environment, "backfill", "--keys-from", "source", "--all-namespaces")
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    assert stored(engine, kind) == {
        ("7", "faq", "a"): on_the_wire(vectors[0]),
        ("12", "faq", "a"): on_the_wire(vectors[1]),
    }
    pinecone.load("not a number", ["a"], vectors[:1])
    refused = run(environment, "backfill", "--namespace", "not a number")
    assert refused.exit_code == 2
    assert "column scoped.tenant is integer; the namespace or scope value is 'not a number'" in refused.output


def test_without_a_text_column_the_text_stays_in_the_metadata(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1), [{"text": "words", "page": 3}])
    kind = Kind("noted", "id text PRIMARY KEY, embedding vector(8), meta json", "", (), (), "id")
    description = 'table = "noted"\nkey = "id"\ndimension = 8\nmetadata = "meta"\n'
    make_table(engine, kind)
    environment = environment_of(tmp_path, upgraded_url, pinecone, description)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    assert execute(engine, "SELECT meta FROM noted") == [({"text": "words", "page": 3},)]


def test_the_text_is_taken_from_the_field_that_the_table_names(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1), [{"body": "words", "text": "not these"}])
    kind = Kind("told", "id text PRIMARY KEY, embedding vector(8), content text", "", (), (), "id")
    description = 'table = "told"\nkey = "id"\ndimension = 8\ntext = "content"\nmetadata_text_field = "body"\n'
    make_table(engine, kind)
    environment = environment_of(tmp_path, upgraded_url, pinecone, description)
    done = run(environment, "backfill", "--keys-from", "source")
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    assert execute(engine, "SELECT content FROM told") == [("words",)]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for open_store in (open_pgvector_store, open_pinecone_store):
        store = open_store(Settings.load())
        assert store.fetch(["a"])["a"].text == "words"
        store.close()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            "id text PRIMARY KEY, embedding vector(7)",
            "amprenta.toml says wrong.embedding is vector(8); it is vector(7)",
        ),
        ("id text PRIMARY KEY, embedding halfvec(8)", "is vector(8); it is halfvec(8)"),
        ("embedding vector(8)", "table wrong has no column id"),
        ("id text, embedding vector(8)", "no unique index on exactly (id)"),
        ("id text PRIMARY KEY", "table wrong has no column embedding"),
    ],
)
def test_a_table_that_is_not_as_declared_is_refused_and_the_command_that_tells_more_is_named(
    columns: str, expected: str, upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    execute(engine, f"CREATE TABLE wrong ({columns})")
    pinecone = emulator()
    load(pinecone, ["a"], to_vectors(1))
    environment = environment_of(tmp_path, upgraded_url, pinecone, 'table = "wrong"\nkey = "id"\ndimension = 8\n')
    refused = run(environment, "backfill", "--keys-from", "source")
    assert refused.exit_code == 2
    assert expected in refused.output
    assert ("tables check own" in refused.output) or "CREATE UNIQUE INDEX" in refused.output
