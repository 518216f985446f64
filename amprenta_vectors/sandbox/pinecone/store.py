"""The records of one index: in memory, and in an SQLite file where one is given."""

from __future__ import annotations

import json
import sqlite3
import threading
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone.records import Record
from amprenta_vectors.sandbox.pinecone.search import Searchable

DEFAULT_NAMESPACE = "__default__"

_MANY = 1000
"""The number of new ids in one write from which sorting again costs less than placing each."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS description (name TEXT, dimension INTEGER, metric TEXT, model TEXT);
CREATE TABLE IF NOT EXISTS kind (kind TEXT, vector_fields TEXT);
CREATE TABLE IF NOT EXISTS namespace (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS record (
    namespace TEXT NOT NULL, id TEXT NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (namespace, id)
);
"""


Kind = Literal["serverless", "pod", "documents"]


@dataclass(frozen=True)
class Description:
    """What an index is: its name, and what all its vectors have in common.

    A ``documents`` index has a field of ``dimension`` values for each of ``vector_fields``.
    """

    name: str
    dimension: int
    metric: str
    model: str | None
    kind: Kind = "serverless"
    vector_fields: tuple[str, ...] = ("embedding",)


def canonical(namespace: str) -> str:
    """Return the namespace's one name here: ``""`` and ``"__default__"`` are the same namespace."""
    return namespace or DEFAULT_NAMESPACE


def listing_key(name: str) -> tuple[str, str]:
    """Return where ``name`` stands in a listing: letters by their lower case.

    Pinecone lists in byte order today. No order is promised to those who read from it, and this one differs both from
    byte order and from what a database's collation makes of it, so whoever relies on an order fails here.
    """
    return name.lower(), name


class Namespace:
    """The records of one namespace, in listing order and ready to be searched."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._order: list[tuple[str, str]] | None = None
        self._searchable: Searchable | None = None

    def put(self, records: list[Record]) -> None:
        """Insert or replace records."""
        if self._order is not None:
            fresh = {record.id for record in records} - self.records.keys()
            if len(fresh) > _MANY:
                self._order = None
            else:
                for id_ in fresh:
                    insort(self._order, listing_key(id_))
        self.records.update((record.id, record) for record in records)
        self._searchable = None

    def remove(self, ids: Iterable[str]) -> None:
        """Delete the records of those ids that are there."""
        for id_ in ids:
            self.records.pop(id_, None)
        self._order = self._searchable = None

    def ids_after(self, last: str | None, prefix: str) -> Iterator[str]:
        """Yield the ids that begin with ``prefix``, in listing order, from the one that follows ``last``."""
        order = self._ordered()
        lower = prefix.lower()
        start = bisect_right(order, listing_key(last)) if last is not None else 0
        start = max(start, bisect_right(order, (lower,)))
        for key, id_ in islice(order, start, None):
            if not key.startswith(lower):
                return
            if id_.startswith(prefix):
                yield id_

    def searchable(self, dimension: int) -> Searchable:
        """Return the records that have ``dimension`` values, ready to be searched."""
        if self._searchable is None:
            self._searchable = Searchable.build(self.records.values(), dimension)
        return self._searchable

    def _ordered(self) -> list[tuple[str, str]]:
        if self._order is None:
            self._order = sorted(map(listing_key, self.records))
        return self._order


class Store:
    """An index's namespaces. Every change holds ``lock`` and is in the file before it is in memory.

    The file belongs to one process. An existing file's own description goes before the one given.
    """

    def __init__(self, path: Path | None, description: Description) -> None:
        self.lock = threading.RLock()
        self.description = description
        self.namespaces: dict[str, Namespace] = {}
        self._path = path
        self._file: sqlite3.Connection | None = None
        self.open()

    def open(self) -> None:
        """Read the file, unless it is open or there is none. Raises `ConfigError` if another process has it."""
        with self.lock:
            if self._path is None or self._file is not None:
                return
            try:
                self._file = _connect(self._path)
            except sqlite3.OperationalError as error:
                raise ConfigError(
                    f"{self._path} cannot be opened: {error}",
                    hint="stop the sandbox that uses it, or name another file",
                ) from error
            self._read(self._file)

    def close(self) -> None:
        """Give the file back. What is in memory stays readable."""
        with self.lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def put(self, namespace: str, records: list[Record]) -> None:
        """Insert or replace records; the namespace is made where it is absent."""
        with self.lock:
            if self._file is not None:
                with self._file:
                    self._file.execute("INSERT OR IGNORE INTO namespace VALUES (?)", (namespace,))
                    self._file.executemany(
                        "INSERT INTO record VALUES (?, ?, ?) "
                        "ON CONFLICT (namespace, id) DO UPDATE SET entry = excluded.entry",
                        ((namespace, record.id, record.entry) for record in records),
                    )
            self.namespaces.setdefault(namespace, Namespace()).put(records)

    def remove(self, namespace: str, ids: list[str]) -> None:
        """Delete records; the namespace stays, as it does in Pinecone."""
        with self.lock:
            if self._file is not None:
                with self._file:
                    self._file.executemany(
                        "DELETE FROM record WHERE namespace = ? AND id = ?", ((namespace, id_) for id_ in ids)
                    )
            self.namespaces[namespace].remove(ids)

    def _read(self, file: sqlite3.Connection) -> None:
        stored = file.execute("SELECT name, dimension, metric, model FROM description").fetchone()
        if stored is None:
            fields = json.dumps(self.description.vector_fields)
            values = {**asdict(self.description), "vector_fields": fields}
            with file:
                file.execute("INSERT INTO description VALUES (:name, :dimension, :metric, :model)", values)
                file.execute("INSERT INTO kind VALUES (:kind, :vector_fields)", values)
        else:
            # A file that was made when there was one kind of index has nothing in this table.
            name, dimension, metric, model = stored
            kind, fields = file.execute("SELECT kind, vector_fields FROM kind").fetchone() or ("serverless", "[]")
            self.description = Description(name, dimension, metric, model, cast(Kind, kind), tuple(json.loads(fields)))
        self.namespaces = {name: Namespace() for (name,) in file.execute("SELECT name FROM namespace")}
        for namespace, id_, entry in file.execute("SELECT namespace, id, entry FROM record"):
            self.namespaces[namespace].records[id_] = Record(id_, entry)


def _connect(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        # Exclusive: a second emulator on the file would serve what this one has long changed.
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        # What is committed survives a kill of this process; only a crash of the machine may lose it.
        file.execute("PRAGMA synchronous = NORMAL")
        file.executescript(_SCHEMA)
    except BaseException:
        file.close()
        raise
    return file
