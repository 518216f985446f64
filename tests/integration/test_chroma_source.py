"""A real Chroma, in its folder and on its server, as a source: every record once, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import errors_of, execute, expected, run_job, stored, to_ids, to_job, to_vectors
from chroma_tools import COLLECTION, ChromaServer, fill, own_client

from amprenta_vectors.backends.chroma import source as chroma
from amprenta_vectors.backends.chroma.client import chroma_errors, open_collection
from amprenta_vectors.backends.chroma.source import ChromaSource, open_chroma_origin
from amprenta_vectors.backends.opening import notice_before_opening
from amprenta_vectors.backends.protocol import Source, TokenRefused
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import (
    ConfigError,
    CredentialsRefused,
    SourceError,
    SourceNotFound,
    TransientError,
)
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.embedding_servers import Answer, EmbeddingServer
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.keymaps import LookUp, open_key_map
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS

UUIDS = [str(uuid5(UUID(int=7), str(number))) for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vector_db"


@pytest.fixture
def server(folder: Path) -> Iterator[ChromaServer]:
    """A server on the folder, which a test fills before it starts it."""
    running = ChromaServer(folder)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """A server with two collections of one record, which the tests that take it leave as it is."""
    folder = tmp_path_factory.mktemp("chroma") / "vector_db"
    for name in ("articles", COLLECTION):
        fill(folder, ["a"], to_vectors(1), name=name)
    running = ChromaServer(folder)
    running.start()
    yield running
    running.kill()


def settings_for(place: Path | ChromaServer, **more: Any) -> Settings:
    if isinstance(place, Path):
        return Settings.load(chroma_path=place, **more)
    return Settings.load(chroma_host="127.0.0.1", chroma_port=place.port, **more)


@pytest.fixture
def opened() -> Iterator[Callable[..., ChromaSource]]:
    """A function that opens a collection as a source; all are closed after the test."""
    origins = []

    def open_source(
        place: Path | ChromaServer, *, with_metadata: bool = True, table: Any = RAG_CHUNKS, **more: Any
    ) -> ChromaSource:
        origins.append(open_chroma_origin(settings_for(place, **more)))
        return origins[-1].open(table, "", with_metadata=with_metadata)

    yield open_source
    for origin in origins:
        origin.close()


def listed(source: Source, token: str | None = None) -> list[str]:
    return [key for keys, _ in source.iter_keys(token) for key in keys]


def by_key(source: Source, keys: list[str]) -> dict[str, bytes]:
    batch = source.fetch(keys)
    return {key: vector.tobytes() for key, vector in zip(batch.source_keys, batch.vectors, strict=True)}


# What it reads.


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_a_folder_tells_dimension_distance_count_and_every_record(
    folder: Path, opened: Callable[..., ChromaSource], space: str
) -> None:
    ids, vectors = to_ids(25), to_vectors(25)
    fill(folder, ids, vectors, [{"n": n} for n in range(25)], [f"text {n}" for n in range(25)], space=space)
    source = opened(folder)
    described = source.description
    assert (described.kind, described.dimension, described.distance, described.count) == ("chroma", 8, space, 25)
    assert described.identity == f"{COLLECTION}@{folder}"
    assert listed(source) == ids
    batch = source.fetch(["chunk-000003", "absent", "chunk-000001", "chunk-000003"])
    assert sorted(batch.source_keys) == ["chunk-000001", "chunk-000003"]
    row = batch.source_keys.index("chunk-000003")
    assert batch.vectors.dtype == np.float32
    # Chroma's own arithmetic under cosine may change the last bit.
    assert batch.vectors[row] == pytest.approx(vectors[3], rel=1e-6)
    assert batch.texts is not None
    assert batch.metadata is not None
    assert (batch.texts[row], batch.metadata[row]) == ("text 3", {"n": 3})


@pytest.mark.parametrize("space", ["l2", "ip"])
def test_vectors_keep_every_bit_where_chroma_keeps_them_whole(
    folder: Path, opened: Callable[..., ChromaSource], space: str
) -> None:
    ids, vectors = to_ids(300), to_vectors(300, 768)
    fill(folder, ids, vectors, space=space)
    assert by_key(opened(folder), ids) == {key: row.tobytes() for key, row in zip(ids, vectors, strict=True)}


def test_folder_and_server_give_the_same_bytes_at_every_reading(
    folder: Path, server: ChromaServer, opened: Callable[..., ChromaSource]
) -> None:
    ids = to_ids(1500)
    fill(folder, ids, to_vectors(1500, 32))
    first = by_key(opened(folder, with_metadata=False), ids)
    assert len(first) == 1500
    server.start()
    served = opened(server, with_metadata=False)
    assert listed(served) == ids
    assert by_key(served, ids) == first
    assert served.description.identity == f"{COLLECTION}@127.0.0.1:{server.port}"


def test_more_ids_than_sqlite_has_variables_are_asked_for_in_parts(
    folder: Path, opened: Callable[..., ChromaSource]
) -> None:
    fill(folder, to_ids(1200), to_vectors(1200))
    found = opened(folder, with_metadata=False).fetch([f"chunk-{number:06d}" for number in range(40_000)])
    assert len(found) == 1200


def test_several_threads_share_a_source(
    folder: Path, server: ChromaServer, opened: Callable[..., ChromaSource]
) -> None:
    ids = to_ids(400)
    fill(folder, ids, to_vectors(400))
    for place in (folder, server):
        if place is server:
            server.start()
        source = opened(place)
        parts = [ids[start : start + 20] for start in range(0, 400, 20)] * 3
        with ThreadPoolExecutor(8) as pool:
            batches = list(pool.map(source.fetch, parts))
        assert [sorted(batch.source_keys) for batch in batches] == parts


def test_an_empty_collection_has_the_tables_dimension_and_no_keys(
    folder: Path, opened: Callable[..., ChromaSource]
) -> None:
    fill(folder, [], to_vectors(0))
    source = opened(folder)
    assert (source.description.dimension, listed(source)) == (RAG_CHUNKS.dimension, [])
    assert len(source.fetch(["a"])) == 0


# Listing while records come and go.


@pytest.fixture
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma, "PAGE", 10)


@pytest.mark.usefixtures("_small_pages")
def test_a_listing_goes_on_from_its_token(folder: Path, opened: Callable[..., ChromaSource]) -> None:
    ids = to_ids(35)
    fill(folder, ids, to_vectors(35))
    source = opened(folder)
    keys, token = next(iter(source.iter_keys()))
    assert (list(keys), listed(source, token)) == (ids[:10], ids[10:])


@pytest.mark.usefixtures("_small_pages")
@pytest.mark.parametrize("deleted", [range(1), range(9), range(3, 19), [25, 29], range(19)])
def test_records_that_are_deleted_while_it_lists_hide_no_others(
    folder: Path, opened: Callable[..., ChromaSource], deleted: range
) -> None:
    ids = to_ids(60)
    fill(folder, ids, to_vectors(60))
    source = opened(folder)
    found: list[str] = []
    for number, (keys, _) in enumerate(source.iter_keys()):
        found += keys
        if number == 1:
            writer(source).delete(ids=[ids[place] for place in deleted])
    assert set(found) >= set(ids) - {ids[place] for place in deleted}
    assert len(found) == len(set(found))


def writer(source: ChromaSource) -> Any:
    """The application's own hand in the same collection."""
    return source._collection.handle


@pytest.mark.usefixtures("_small_pages")
@pytest.mark.parametrize("again", [False, True])
def test_a_token_whose_record_is_gone_or_was_added_again_is_refused(
    folder: Path, opened: Callable[..., ChromaSource], again: bool
) -> None:
    ids, vectors = to_ids(25), to_vectors(25)
    fill(folder, ids, vectors)
    source = opened(folder)
    _, token = next(iter(source.iter_keys()))
    writer(source).delete(ids=[ids[9]])
    if again:
        writer(source).add(ids=[ids[9]], embeddings=vectors[9:10])
    with pytest.raises(TokenRefused):
        listed(source, token)


def test_a_backfill_whose_source_loses_and_gains_records_has_all_that_stayed(
    folder: Path, engine: sa.Engine, opened: Callable[..., ChromaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma, "PAGE", 20)
    ids, vectors = to_ids(200), to_vectors(200)
    fill(folder, ids, vectors)
    source = opened(folder)
    listing = source._listed
    gone: list[str] = []

    def listed_while_it_changes(place: int, most: int) -> list[str]:
        if place >= 39 and not gone:
            # The last key of a page among them: its token is refused, and the listing starts over.
            gone.extend([*ids[:15], ids[39]])
            writer(source).delete(ids=gone)
        return listing(place, most)

    monkeypatch.setattr(source, "_listed", listed_while_it_changes)
    run_job(engine, to_job(engine, source, batch_size=20))
    assert set(stored(engine)) >= set(ids) - set(gone)
    assert len(gone) == 16


# A folder stays as it is.


def content(folder: Path) -> dict[str, Any]:
    """Every row of the database but Chroma's list of writers, and every other file's hash."""
    with sqlite3.connect(f"file:{folder / 'chroma.sqlite3'}?mode=ro", uri=True) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {
            name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"')))
            for name in names
            if name not in ("acquire_write", "embedding_fulltext_search")
        }
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "chroma.sqlite3"]
    return {**rows, **{str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}


def test_reading_changes_no_byte_of_the_folder_and_leaves_no_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = to_ids(1100)
    fill(folder, ids, to_vectors(1100), [{"a": 1}] * 1100)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    origin = open_chroma_origin(Settings.load(chroma_path=folder))
    [copy] = temporary.iterdir()
    assert copy.stat().st_mode & 0o077 == 0
    source = origin.open(RAG_CHUNKS, "", with_metadata=True)
    source.fetch(listed(source))
    origin.close()
    with pytest.raises(SourceNotFound):
        open_chroma_origin(Settings.load(chroma_path=folder, chroma_collection="nope"))
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert not list(temporary.iterdir())


def test_a_copy_that_has_no_room_is_refused_and_its_size_and_time_are_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, ["a"], to_vectors(1))
    settings = Settings.load(chroma_path=folder, source="chroma")
    notice = notice_before_opening(settings, RAG_CHUNKS)
    assert notice is not None
    assert re.search(rf"{folder} is read from a copy in .*: [0-9.]+ MB, about 1 s", notice)
    full = shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ConfigError, match="has 0 free") as caught:
        open_chroma_origin(settings)
    assert "TMPDIR" in caught.value.hint


def test_a_link_to_nothing_beside_the_files_is_left_out_of_the_copy(folder: Path) -> None:
    fill(folder, ["a"], to_vectors(1))
    (folder / "nothing").symlink_to(folder / "gone")
    settings = Settings.load(chroma_path=folder, source="chroma")
    assert notice_before_opening(settings, RAG_CHUNKS)
    origin = open_chroma_origin(settings)
    assert listed(origin.open(RAG_CHUNKS, "", with_metadata=True)) == ["a"]
    origin.close()


def test_a_file_that_goes_while_the_folder_is_copied_is_a_reason_to_copy_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, ["a"], to_vectors(1))
    journal = folder / "zz-journal"
    journal.touch()
    copies: list[str] = []
    copy = shutil.copytree

    def copy_late(source: str, *args: Any, **options: Any) -> Any:
        # It calls itself for each folder within, with all arguments by place.
        if not args[1:]:
            copies.append(source)
            options["copy_function"] = lambda path, to: (journal.unlink(missing_ok=True), shutil.copy2(path, to))
        return copy(source, *args, **options)

    monkeypatch.setattr(shutil, "copytree", copy_late)
    open_chroma_origin(Settings.load(chroma_path=folder)).close()
    assert len(copies) == 2


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(SourceNotFound, match=r"holds no Chroma: there is no chroma\.sqlite3") as caught:
            open_chroma_origin(Settings.load(chroma_path=path))
        assert "CHROMA_PATH" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_an_older_chroma_is_not_migrated(folder: Path) -> None:
    fill(folder, ["a"], to_vectors(1))
    database = sqlite3.connect(folder / "chroma.sqlite3")
    with database:
        database.execute("DELETE FROM migrations WHERE rowid = (SELECT max(rowid) FROM migrations)")
    database.close()
    before = content(folder)
    with pytest.raises(SourceError, match="Unapplied migrations") as caught:
        open_chroma_origin(Settings.load(chroma_path=folder))
    assert "a copy" in caught.value.hint
    assert content(folder) == before


def test_a_file_that_is_no_database_is_an_error(folder: Path) -> None:
    folder.mkdir()
    (folder / "chroma.sqlite3").write_text("nothing of the kind" * 500)
    with pytest.raises(SourceError, match="not a database"):
        open_chroma_origin(Settings.load(chroma_path=folder))


def test_a_folder_that_this_process_has_open_otherwise_says_what_to_do(folder: Path) -> None:
    fill(folder, ["a"], to_vectors(1))
    with own_client(folder), pytest.raises(ConfigError, match="with other settings") as caught:
        open_collection(Settings.load(chroma_path=folder))
    assert "CHROMA_HOST" in caught.value.hint


def test_nothing_is_told_to_anybody(folder: Path, opened: Callable[..., ChromaSource]) -> None:
    fill(folder, ["a"], to_vectors(1))
    client = opened(folder)._collection.client
    assert client._system.settings.anonymized_telemetry is False


# What is not there, and what goes away.


def test_a_collection_that_does_not_exist_is_answered_with_those_that_do(folder: Path, served: ChromaServer) -> None:
    for name in ("articles", COLLECTION):
        fill(folder, ["a"], to_vectors(1), name=name)
    for place in (folder, served):
        with pytest.raises(SourceNotFound, match=f"no collection 'nope'; it has: articles, {COLLECTION}") as caught:
            open_chroma_origin(settings_for(place, chroma_collection="nope"))
        assert "CHROMA_COLLECTION" in caught.value.hint


def test_a_namespace_is_an_error_because_a_collection_has_none(folder: Path) -> None:
    fill(folder, ["a"], to_vectors(1))
    origin = open_chroma_origin(Settings.load(chroma_path=folder))
    assert dict(origin.namespaces()) == {"": 1}
    with pytest.raises(SourceNotFound, match="has no namespaces"):
        origin.open(RAG_CHUNKS, "other", with_metadata=False)
    origin.close()


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    absent = ChromaServer(folder)
    with pytest.raises(TransientError, match=f"opening Chroma at 127.0.0.1:{absent.port}: no answer") as caught:
        open_chroma_origin(settings_for(absent))
    assert "CHROMA_PORT" in caught.value.hint


def test_a_server_that_hangs_is_left_in_time(
    served: ChromaServer, opened: Callable[..., ChromaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.backends.chroma.client.REQUEST_SECONDS", 0.2)
    source = opened(served)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source._collection.client._server._api_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TransientError, match="ReadTimeout"):
            source.fetch(["a"])


def test_a_server_that_goes_away_midway_is_waited_for(
    folder: Path,
    server: ChromaServer,
    engine: sa.Engine,
    opened: Callable[..., ChromaSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chroma, "PAGE", 20)
    ids, vectors = to_ids(200), to_vectors(200)
    fill(folder, ids, vectors, space="l2")
    server.start()
    source = opened(server)
    fetch, once = source.fetch, threading.Lock()

    def fetch_without_a_server(keys: Any) -> Any:
        if once.acquire(blocking=False):
            server.kill()
            with pytest.raises(TransientError):
                fetch(keys)
            server.start()
            raise TransientError("as the fetch said")
        return fetch(keys)

    monkeypatch.setattr(source, "fetch", fetch_without_a_server)
    run_job(engine, to_job(engine, source, batch_size=20))
    assert stored(engine) == expected(ids, vectors)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(401, b"who are you"), CredentialsRefused),
        (Answer(403, {"error": "AuthError", "message": "no"}), CredentialsRefused),
        (Answer(404, {"error": "NotFoundError", "message": "gone"}), SourceNotFound),
        (Answer(429, {"error": "RateLimitError", "message": "slowly"}), TransientError),
        (Answer(500, {"error": "InternalError", "message": "locked"}), TransientError),
        (Answer(502, b"<html>Bad Gateway</html>"), TransientError),
        (Answer(200, b"{cut"), TransientError),
        (Answer(0), TransientError),
        (Answer(400, {"error": "InvalidArgumentError", "message": "a secret text"}), SourceError),
    ],
)
def test_what_a_server_answers_decides(
    answer: Answer, error: type[Exception], opened: Callable[..., ChromaSource], served: ChromaServer
) -> None:
    source = opened(served)
    with EmbeddingServer() as other:
        other.faults.append(answer)
        source._collection.client._server._api_url = other.host
        with pytest.raises(error) as caught:
            source.fetch(["a"])
    assert "secret" not in str(caught.value)


def test_an_error_that_is_nobodys_answer_is_passed_on() -> None:
    with pytest.raises(ZeroDivisionError), chroma_errors("dividing"):
        raise ZeroDivisionError


# Ids of products.


@pytest.fixture
def products(engine: sa.Engine) -> LookUp:
    """Forty products, and the key map that finds them."""
    execute(engine, "CREATE TABLE IF NOT EXISTS products (id uuid PRIMARY KEY, name text)")
    execute(engine, "ALTER TABLE products ADD COLUMN IF NOT EXISTS embedding vector(8)")
    execute(engine, "INSERT INTO products (id, name) SELECT unnest(CAST(:keys AS uuid[])), 'a product'", keys=UUIDS)
    with engine.connect() as connection:
        key_map = open_key_map(resolve_table(connection, PRODUCTS), {}, engine)
    assert isinstance(key_map, LookUp)
    return key_map


SPELLED = [
    *UUIDS[:5],
    *(key.upper() for key in UUIDS[5:10]),
    *(f"product_{key}" for key in UUIDS[10:15]),
    *(f"product_{key.replace('-', '')}" for key in UUIDS[15:20]),
    *(f"shop:{{{key}}}" for key in UUIDS[20:25]),
    *(f"row {number}" for number in range(25, 30)),
]
TOLD = [{"a": 1}] * 25 + [{"product_id": key.upper()} for key in UUIDS[25:30]]
UNMATCHED = ["product_17", f"product{UUIDS[3]}", f"product_{UUIDS[3]}0", "row without a product"]


def test_ids_find_their_products_by_the_stated_rule_and_the_others_are_listed(
    folder: Path,
    engine: sa.Engine,
    products: LookUp,
    opened: Callable[..., ChromaSource],
) -> None:
    elsewhere = str(uuid5(UUID(int=7), "of no row"))
    unmatched = [*UNMATCHED, f"product_{elsewhere}"]
    ids = [*SPELLED, *unmatched, f"again_{UUIDS[0]}"]
    vectors = to_vectors(len(ids))
    metadata = [*TOLD, *([{"b": 2}] * (len(unmatched) - 1)), {"product_id": UUIDS[9]}, {"b": 2}]
    fill(folder, ids, vectors, metadata, space="l2")
    source = opened(folder, table=PRODUCTS, with_metadata=False)
    summary = run_job(engine, to_job(engine, source, table=PRODUCTS, key_map=products))
    found = dict(execute(engine, "SELECT id::text, vector_send(embedding) FROM products WHERE embedding IS NOT NULL"))
    assert {key: bytes(vector) for key, vector in found.items()} == expected(UUIDS[:30], vectors[:30])
    quarantined = errors_of(engine, summary.run.id)
    assert quarantined == dict.fromkeys([*unmatched, f"again_{UUIDS[0]}"], Reason.NO_TARGET)
    details = dict(execute(engine, "SELECT key, detail FROM migration_quarantine"))
    assert details[f"again_{UUIDS[0]}"] == f"{UUIDS[0]!r} is another spelling of the same key"


def test_a_products_key_finds_its_record_again(
    folder: Path, products: LookUp, opened: Callable[..., ChromaSource]
) -> None:
    fill(folder, SPELLED, to_vectors(30), TOLD)
    source = opened(folder, table=PRODUCTS, with_metadata=False)
    of_ids = by_key(source, SPELLED)
    batch = source.fetch(UUIDS)
    assert sorted(batch.source_keys) == sorted(UUIDS[:30])
    assert by_key(source, UUIDS) == {key: of_ids[name] for key, name in zip(UUIDS, SPELLED, strict=False)}
    assert products.apply(batch).keys == [(key,) for key in batch.source_keys]


def test_the_rule_is_for_tables_that_ask_for_it(folder: Path, opened: Callable[..., ChromaSource]) -> None:
    fill(folder, SPELLED, to_vectors(30), TOLD)
    assert len(opened(folder).fetch(UUIDS)) == 5


def test_a_token_is_text_that_a_run_can_keep(folder: Path, opened: Callable[..., ChromaSource]) -> None:
    fill(folder, to_ids(1001), to_vectors(1001))
    assert [token and json.loads(token) for _, token in opened(folder).iter_keys()] == [[1000, "chunk-000999"], None]
