"""The files of a simple vector store are rewritten in the shape they have, both or neither, and by one at a time."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cryptography.fernet import Fernet
from test_simple_store import DOCUMENTS, FIELDS, HAS_IDS, HAVE_IDS, IDS, ROWS, TEXTS, VECTORS, write

from amprenta_vectors.backends.simple.backup import Backup, backup_of, last_backup_of
from amprenta_vectors.backends.simple.cipher import MetadataCipher
from amprenta_vectors.backends.simple.files import SimpleFiles
from amprenta_vectors.backends.simple.folder import COMMITTED, NEXT, locked
from amprenta_vectors.backends.simple.reading import LegacyRecord, read_store
from amprenta_vectors.backends.simple.store import SimpleStore
from amprenta_vectors.errors import ConfigError, RowError, SourceError
from amprenta_vectors.stores.protocol import Record

KEY = Fernet.generate_key().decode()
NEW = LegacyRecord(np.array([7, 8.25], np.float32), "δέλτα", {"page": 4, "tags": ["x", "y"]})
REPLACED = LegacyRecord(np.array([-1, 0.5], np.float32), "beta 2", {"page": 22})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def holds(folder: Path, key: str | None = None) -> dict[str, Any]:
    store = read_store(folder, key)
    assert not store.unpaired
    return {name: (item.vector.tolist(), item.text, item.metadata) for name, item in store.records.items()}


def as_held(record: LegacyRecord) -> Any:
    return record.vector.tolist(), record.text, record.metadata


BEFORE = {name: (row, text, fields) for name, row, text, fields in zip(IDS, ROWS, TEXTS, FIELDS, strict=True)}
AFTER = {"a": BEFORE["a"], "b": as_held(REPLACED), "new": as_held(NEW)}


def kinds(value: Any) -> Any:
    """A value's types all the way down, of lists and dicts by id those of the first."""
    if isinstance(value, dict):
        names = sorted(set(value) - {*IDS, "new"})
        by_id = [kinds(held) for name, held in value.items() if name not in names][:1]
        return {name: kinds(value[name]) for name in names if name not in ("page", "tags")}, by_id
    if isinstance(value, list | tuple):
        return type(value), [kinds(held) for held in value if not isinstance(held, int | float)][:1]
    return (type(value), value.dtype, value.ndim) if isinstance(value, np.ndarray) else type(value)


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("vectors", VECTORS)
def test_every_shape_is_written_as_it_was_found_or_refused(vectors: str, documents: str, tmp_path: Path) -> None:
    found = VECTORS[vectors][0], DOCUMENTS[documents][0]
    folder = write(tmp_path / "store", *found)
    files, before = SimpleFiles(folder, None), bytes_of(folder)
    if not (vectors in HAS_IDS or documents in HAVE_IDS):
        with pytest.raises(ConfigError, match="keeps no ids"):
            files.change({"c", "b"}, [("b", REPLACED), ("new", NEW)])
        assert bytes_of(folder) == before
        return
    files.change({"c", "b"}, [("b", REPLACED), ("new", NEW)])
    assert holds(folder) == AFTER
    written = pickle.loads((folder / "vectors.pkl").read_bytes()), json.loads((folder / "metadata.json").read_bytes())
    assert kinds(written[0]) == kinds(found[0])
    assert kinds(written[1]) == kinds(json.loads(json.dumps(found[1])))
    assert sorted(os.listdir(folder)) == ["metadata.json", "vectors.pkl"]


@pytest.mark.parametrize("vectors", [{}, [], np.empty((0, 2), np.float32)], ids=["dict", "list", "array"])
@pytest.mark.parametrize(
    "documents", [{}, [], {"ids": [], "texts": [], "metadatas": []}], ids=["dict", "list", "lists"]
)
def test_an_empty_store_takes_its_first_document(vectors: Any, documents: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "store", vectors, documents)
    files = SimpleFiles(folder, None)
    files.change((), [("new", NEW)])
    assert holds(folder) == {"new": as_held(NEW)}
    files.change({"new"}, [])
    assert holds(folder) == {}
    files.change((), [("new", NEW)])
    assert holds(folder) == {"new": as_held(NEW)}


def sealed(value: Any) -> str:
    return Fernet(KEY).encrypt((value if isinstance(value, str) else json.dumps(value)).encode()).decode()


def is_sealed(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("gAAAA")


PLAIN = DOCUMENTS["dict by id"][0]
ENCRYPTED: dict[str, Any] = {
    "the file": sealed(PLAIN).encode(),
    "the file as a JSON string": sealed(PLAIN),
    "under a name": {"encrypted": True, "data": sealed(PLAIN)},
    "each entry": {name: sealed(entry) for name, entry in PLAIN.items()},
    "each metadata": {name: {**entry, "metadata": sealed(entry["metadata"])} for name, entry in PLAIN.items()},
    "each text": {name: {**entry, "text": sealed(entry["text"])} for name, entry in PLAIN.items()},
    "entries of a list": [sealed({"id": name, **entry}) for name, entry in PLAIN.items()],
}


@pytest.mark.parametrize("way", ENCRYPTED)
def test_what_is_encrypted_stays_so_and_what_is_added_is_encrypted_likewise(way: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "store", VECTORS["dict of lists"][0], ENCRYPTED[way])
    before = (folder / "metadata.json").read_bytes()
    SimpleFiles(folder, KEY).change({"c", "b"}, [("b", REPLACED), ("new", NEW)])
    assert holds(folder, KEY) == AFTER
    content = (folder / "metadata.json").read_bytes()
    hidden = "δέλτα" if way == "each text" else '"tags"'
    assert hidden not in content.decode()
    with pytest.raises(ConfigError, match="VECTOR_STORE_ENCRYPTION_KEY is not set"):
        read_store(folder, None)
    if way.startswith(("each", "entries")):
        # What stays is not encrypted anew.
        found, old = json.loads(content), json.loads(before)
        place = 0 if isinstance(found, list) else "a"
        assert found[place] == old[place]


def tokens_of(value: Any) -> list[bool]:
    """Of each text or value of metadata, whether it is a token; ids are what they are."""
    if isinstance(value, dict):
        return [is_token for name, held in value.items() if name != "id" for is_token in tokens_of(held)]
    if isinstance(value, list):
        return [is_token for held in value for is_token in tokens_of(held)]
    return [is_sealed(value)] if isinstance(value, str) else []


PARTLY: dict[str, Any] = {
    "not the first": {**PLAIN, "b": {**PLAIN["b"], "text": sealed("beta")}},
    "one of the first's metadata": {**PLAIN, "a": {"text": "alpha", "metadata": {"page": 1, "mail": sealed("x")}}},
    "a list": [{"id": "a", "content": "alpha"}, {"id": "b", "content": "beta"}, {"id": "c", "content": sealed("c")}],
    "texts apart": {"ids": IDS, "texts": [TEXTS[0], sealed(TEXTS[1]), TEXTS[2]], "metadatas": FIELDS},
    "flat": [{"id": n, "content": sealed(t) if n == "c" else t} for n, t in zip(IDS, TEXTS, strict=True)],
}


@pytest.mark.parametrize("way", PARTLY)
def test_where_anything_is_encrypted_all_that_is_added_is(way: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "store", VECTORS["dict of lists"][0], PARTLY[way])
    files = SimpleFiles(folder, KEY)
    new = LegacyRecord(NEW.vector, NEW.text, {"page": 4, "tags": ["x"], "mail": "y", "deep": {"z": 1}})
    files.change((), [("new", new)])
    assert holds(folder, KEY)["new"] == as_held(new)
    found = json.loads((folder / "metadata.json").read_bytes())
    if "texts" in found:
        found = {name: held[-1] for name, held in found.items() if name != "ids"}
    tokens = tokens_of(found[-1] if isinstance(found, list) else found.get("new", found))
    assert tokens == [True] * 4


def test_a_store_that_was_emptied_is_written_encrypted_where_there_is_a_key(tmp_path: Path) -> None:
    for key in (KEY, None):
        folder = write(tmp_path / str(key), VECTORS["dict of lists"][0], PLAIN)
        files = SimpleFiles(folder, key)
        files.change(set(IDS), [])
        files.change((), [("new", NEW)])
        assert holds(folder, key) == {"new": as_held(NEW)}
        assert ("δέλτα" in (folder / "metadata.json").read_text()) is (key is None)


def test_a_new_store_is_encrypted_where_there_is_a_key(tmp_path: Path) -> None:
    for key, readable in ((KEY, False), (None, True)):
        folder = tmp_path / str(readable)
        SimpleFiles(folder, key).change((), [("new", NEW)])
        assert holds(folder, key) == {"new": as_held(NEW)}
        assert ("δέλτα" in (folder / "metadata.json").read_text()) is readable


def test_what_a_shape_has_no_place_for_is_refused_and_nothing_has_changed(tmp_path: Path) -> None:
    vectors = VECTORS["dict of lists"][0]
    beside = {"ids": IDS, "texts": TEXTS, "metadatas": FIELDS, "pages": [1, 2, 3]}
    halves = dict(zip(IDS, np.array(ROWS, np.float16), strict=True))
    for number, (found, documents, why) in enumerate(
        [
            (vectors, beside, "a list 'pages' of something of each document"),
            (vectors, {"ids": IDS, "texts": TEXTS}, "no place for metadata"),
            (vectors, dict(zip(IDS, TEXTS, strict=True)), "no place for metadata"),
            (halves, PLAIN, "read as something else"),
            (ROWS, {"documents": PLAIN, "more": 1}, None),
            ([*ROWS, [1, 2]], [{"id": name, **entry} for name, entry in PLAIN.items()], "do not pair up"),
        ]
    ):
        folder = write(tmp_path / str(number), found, documents)
        before = bytes_of(folder)
        odd = LegacyRecord(np.array([0.1, 8.25], np.float32), "delta", {"page": 4})
        if why is None:
            SimpleFiles(folder, None).change((), [("new", odd)])
            continue
        with pytest.raises(ConfigError, match=why) as caught:
            SimpleFiles(folder, None).change((), [("new", odd)])
        assert "migrate_simple_store" in caught.value.hint
        assert bytes_of(folder) == before
        assert not (folder / NEXT).exists()


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from amprenta_vectors.backends.simple.reading import LegacyRecord
from amprenta_vectors.backends.simple import files as simple_files
name, at = sys.argv[2], int(sys.argv[3])
calls = 0
def dying(step):
    def call(*arguments):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)
    return call
os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)
record = LegacyRecord(np.array([1, 2], np.float32), "text " + name, {})
for number in range(int(sys.argv[4])):
    files = simple_files.SimpleFiles(Path(sys.argv[1]), None)
    files.change((), [(f"{name} {number}", record)])
"""


def write_in_a_process(folder: Path, name: str, *, dies_at: int = -1, documents: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(dies_at), str(documents)])


def test_a_process_killed_at_any_step_leaves_both_files_as_they_were_or_as_meant(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", VECTORS["one array"][0], DOCUMENTS["list with ids"][0])
    outcomes = []
    for step in range(1, 20):
        before = set(SimpleFiles(folder, None).read().records)
        killed = write_in_a_process(folder, f"new {step}", dies_at=step).wait()
        after = SimpleFiles(folder, None).read()
        assert not after.unpaired
        assert set(after.records) in (before, {*before, f"new {step} 0"})
        assert not (folder / COMMITTED).exists()
        outcomes.append((killed == -9, len(after.records) - len(before)))
        if not killed:
            break
    # Killed before the change, killed after it, and not killed.
    assert {(True, 0), (True, 1), (False, 1)} == set(outcomes)


def test_a_change_between_its_two_replacements_is_read_and_copied_as_made(tmp_path: Path) -> None:
    folder = write(tmp_path / "root" / "u" / "store", VECTORS["one array"][0], DOCUMENTS["columns"][0])
    swapped = write(folder / COMMITTED, np.array(ROWS)[::-1], {"texts": TEXTS[::-1], "metadatas": FIELDS, "ids": IDS})
    (swapped / "vectors.pkl").replace(folder / "vectors.pkl")
    store = read_store(folder, None)
    found = [(record.vector.tolist(), record.text) for record in store.records.values()]
    assert found == list(zip(ROWS[::-1], TEXTS[::-1], strict=True))
    copy, _ = Backup(tmp_path / "root", datetime.now(UTC)).add(folder)
    assert (copy / "metadata.json").read_bytes() == (folder / COMMITTED / "metadata.json").read_bytes()
    assert (folder / COMMITTED).exists()


def test_a_command_has_one_backup_folder_and_none_is_shared_with_another(tmp_path: Path) -> None:
    root, begun = tmp_path / "root [1]", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    stores = [write(root / user / "store", VECTORS["one array"][0], DOCUMENTS["columns"][0]) for user in "abc"]
    first, second = Backup(root, begun), Backup(root, begun)
    copies = [first.add(store) for store in stores]
    assert {copy.parents[1].name for copy, _ in copies} == {"root [1]_backup_20260102_030405"}
    assert second.add(stores[0]) == (copies[0][0], False)
    (stores[0] / "metadata.json").write_text("{}")
    changed, is_new = second.add(stores[0])
    assert is_new
    assert changed.parents[1].name == "root [1]_backup_20260102_030405_2"
    assert (copies[0][0] / "metadata.json").read_text() != "{}"
    assert last_backup_of(root, stores[0]) == changed


def test_a_copy_is_of_when_it_was_made_and_not_of_when_its_command_began(tmp_path: Path) -> None:
    root, now = tmp_path / "root", datetime.now(UTC)
    folder = write(root / "u" / "store", VECTORS["one array"][0], DOCUMENTS["columns"][0])
    copy, _ = Backup(root, now - timedelta(hours=2)).add(folder)
    assert backup_of(root, folder, now - timedelta(hours=1)) is None
    assert backup_of(root, folder, now + timedelta(hours=1)) == copy


def test_a_reader_waits_for_a_writer_and_a_backup_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "root" / "u" / "store", VECTORS["one array"][0], DOCUMENTS["columns"][0])
    done: list[str] = []
    work: list[Callable[[], object]] = [
        lambda: read_store(folder, None),
        lambda: Backup(tmp_path / "root", datetime.now(UTC)).add(folder),
    ]
    for each in work:
        with locked(folder, alone=True):
            thread = Thread(target=lambda each=each: done.append(str(each())))
            thread.start()
            thread.join(0.1)
            assert not done
        thread.join()
        assert done.pop()


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    running = [write_in_a_process(folder, str(number), documents=10) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(holds(folder)) == 30


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"file.* cannot be read or written"):
        SimpleFiles(tmp_path / "file" / "store", None).change((), [("new", NEW)])


def test_the_files_keep_who_may_read_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", VECTORS["dict of lists"][0], PLAIN)
    for name in ("vectors.pkl", "metadata.json"):
        (folder / name).chmod(0o600)
    SimpleFiles(folder, None).change((), [("new", NEW)])
    assert {(folder / name).stat().st_mode & 0o777 for name in ("vectors.pkl", "metadata.json")} == {0o600}


# The store upon them.


def to_key(identity: str) -> str:
    return f"key of {identity}"


def record(identity: str, vector: Any, text: str = "text", **metadata: Any) -> Record:
    return Record(to_key(identity), np.asarray(vector, np.float32), text, {**metadata, "original_id": identity})


@pytest.fixture
def store(tmp_path: Path) -> SimpleStore:
    return SimpleStore(tmp_path / "alice" / "vector_store_x", to_key)


def test_a_store_that_is_not_there_is_empty_and_made_by_the_first_write(store: SimpleStore) -> None:
    assert store.query([1, 2]) == []
    assert store.count() == 0
    assert store.stored_vector() is None
    store.delete(["key of a"])
    assert store.upsert([]) == 0
    assert store.upsert([record("a", [1, 2], n=1)]) == 1
    assert store.fetch(["key of a", "a", "absent"])["key of a"].metadata == {"n": 1, "original_id": "a"}
    assert store.stored_vector() is not None


def test_hits_are_the_nearest_that_match_and_equal_ones_in_the_order_of_their_keys(store: SimpleStore) -> None:
    vectors = np.random.default_rng(3).standard_normal((50, 8), dtype=np.float32)
    vectors[10:20] = vectors[0]
    store.upsert([record(f"{i:02d}", vector, f"text {i}", n=i) for i, vector in reversed(list(enumerate(vectors)))])
    asked = vectors[0] * 3
    hits = store.query(asked, top_k=30, filter={"n": {"$gte": 10}})
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked)
    assert [hit.key for hit in hits[:10]] == [to_key(str(i)) for i in range(10, 20)]
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines[10:])[::-1][:30].tolist(), abs=1e-6)
    assert [hit.text for hit in store.query(asked, filter={"text": "text 7"})] == ["text 7"]
    assert len(store.query(asked, top_k=100)) == 50


def test_vectors_without_a_direction_or_of_another_length_are_no_hits(tmp_path: Path) -> None:
    rows = {"a": [1.0, 2.0], "b": [0.0, 0.0], "c": [float("nan"), 1.0], "d": [1.0, 2.0, 3.0]}
    folder = write(tmp_path / "s", rows, {name: {"text": name, "metadata": {}} for name in rows})
    store = SimpleStore(folder, to_key)
    assert [hit.text for hit in store.query([1, 2])] == ["a"]
    assert store.count() == 3


def test_the_files_are_read_again_when_somebody_else_changed_them(store: SimpleStore, tmp_path: Path) -> None:
    store.upsert([record("a", [1, 2])])
    other = SimpleStore(tmp_path / "alice" / "vector_store_x", to_key)
    assert other.count() == 1
    store.upsert([record("b", [1, 2])])
    assert other.count() == 2
    other.delete(["key of a", "key of a"])
    assert list(store.fetch(["key of a", "key of b"])) == ["key of b"]


def test_a_threshold_leaves_out_what_is_not_as_near(tmp_path: Path) -> None:
    store = SimpleStore(tmp_path / "s", to_key, threshold=0.5)
    store.upsert([record("near", [1, 0.1]), record("far", [0, 1])])
    assert [hit.key for hit in store.query([1, 0])] == ["key of near"]


def test_what_cannot_be_kept_is_refused_by_its_key_and_nothing_is_written(store: SimpleStore) -> None:
    good = record("good", [1, 2])
    for bad, why in (
        (Record("key of x", np.ones(2, np.float32), "t", {"original_id": "y"}), "not made of its original_id, 'y'"),
        (Record("no key", np.ones(2, np.float32), "t", {}), "not made of its original_id"),
        (record("x", [1, 2, 3]), "wrong_dimension"),
        (record("x", [0, 0]), "zero"),
        (record("x", [1, 2], n=float("nan")), "JSON has not"),
        (record("x", [1, 2], n=object()), "no JSON"),
        (record("x", [1, 2], "\ud800"), "a character that no file can hold"),
        (record("x", [1, 2], n="\ud800"), "a character that no file can hold"),
    ):
        with pytest.raises(RowError, match=why):
            store.upsert([good, bad])
        assert store.count() == 0


def test_metadata_that_comes_encrypted_is_written_as_the_files_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", VECTORS["dict of lists"][0], PLAIN)
    store = SimpleStore(folder, to_key, key=KEY)
    coming = MetadataCipher(KEY).encrypt({"page": 9}) | {"original_id": "new"}
    store.upsert([Record(to_key("new"), np.ones(2, np.float32), "new", coming)])
    assert json.loads((folder / "metadata.json").read_bytes())["new"]["metadata"] == {"page": 9}
