"""Reads and pairs the ``vectors.pkl`` and ``metadata.json`` of one simple vector store; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.backends.simple.decrypt import read_metadata
from amprenta_vectors.backends.simple.fields import Document, Layer
from amprenta_vectors.backends.simple.folder import METADATA_FILE, VECTORS_FILE, locked, path_of, read_file
from amprenta_vectors.backends.simple.pickle_reader import PickledArray, PickledUuid, read_pickle
from amprenta_vectors.backends.simple.shapes import Columns, ShapeUnknown, to_document_columns, to_vector_columns
from amprenta_vectors.errors import SourceError, SourceNotFound

_MOST_TIMES = 8
_ALWAYS = 65_536
DEEPEST = 100
"""Objects and lists in one another that metadata may have: what handles it calls itself for each."""


@dataclass(frozen=True, eq=False)
class LegacyRecord:
    """A document of a store. ``vector`` is ``(dimension,)`` float32."""

    vector: NDArray[np.float32]
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, eq=False)
class LegacyStore:
    """The documents of a folder, by id in the order of its vectors. ``unpaired`` says of each other id what is wrong.

    ``shape`` describes, for a person, what the two files hold.
    """

    folder: Path
    records: dict[str, LegacyRecord]
    unpaired: dict[str, str]
    shape: str

    @property
    def ids(self) -> list[str]:
        """Every id of either file, paired ones first."""
        return [*self.records, *self.unpaired]

    def dimensions(self) -> Counter[int]:
        """Return how many vectors there are of each number of dimensions."""
        return Counter(len(record.vector) for record in self.records.values())


def read_store(folder: Path, key: str | None) -> LegacyStore:
    """Read and pair the two files of ``folder``; ``key`` decrypts metadata that is encrypted.

    A change that another process is making is waited for, and a change that a process committed but did not finish is
    read as made. Raises `SourceNotFound`, `SourceError` and its `PickleRefused`, `ConfigError` and
    `CredentialsRefused`, each naming the file.
    """
    with locked(folder, alone=False):
        return read_held_store(folder, key)


def read_held_store(folder: Path, key: str | None) -> LegacyStore:
    """Read as `read_store` does, in a folder that the caller holds."""
    vectors_path, metadata_path = path_of(folder, VECTORS_FILE), path_of(folder, METADATA_FILE)
    path = vectors_path
    try:
        vectors = _with_arrays(to_vector_columns(read_pickle(read_file(folder, VECTORS_FILE), str(vectors_path))))
        path = metadata_path
        decoded, encryption = read_metadata(read_file(folder, METADATA_FILE), metadata_path, key)
        documents = to_document_columns(decoded)
    except FileNotFoundError as error:
        raise SourceNotFound(
            f"{error.filename} is not there", hint="a store has both files: take the missing one from a backup"
        ) from None
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}", hint="let this user read it") from None
    except RecursionError:
        raise SourceError(
            f"{path} holds data in one another too deeply", hint="it is damaged: take it from a backup"
        ) from None
    except ShapeUnknown as error:
        raise SourceError(f"{path} holds {error}", hint="docs/documents.md lists the shapes that are read") from None
    values = PlainValues(vectors_path, vectors_path.stat().st_size)
    records, unpaired = _pair(folder, vectors, documents, values)
    _set_apart(folder, records, unpaired)
    taken = dict.fromkeys(each.text_field or "the entry itself" for each in documents.rows if each.text is not None)
    shape = f"vectors: {vectors.shape}; metadata: {documents.shape}, {encryption}; text: {' or '.join(taken) or 'none'}"
    return LegacyStore(folder, records, unpaired, shape)


def _pair(
    folder: Path, vectors: Columns, documents: Columns, values: PlainValues
) -> tuple[dict[str, LegacyRecord], dict[str, str]]:
    """Pair by id if a file has ids, else by place if both have as many entries; a guess would mix up texts."""
    counts = f"{len(vectors.rows)} vectors in {VECTORS_FILE} and {len(documents.rows)} documents in {METADATA_FILE}"
    unpaired: dict[str, str] = {}
    for name, columns in ((VECTORS_FILE, vectors), (METADATA_FILE, documents)):
        if columns.ids is not None and len(columns.ids) != len(columns.rows):
            raise SourceError(
                f"{folder / name} has {len(columns.ids)} ids for {len(columns.rows)} entries",
                hint="take both files of the store from one backup",
            )
    ids = vectors.ids or documents.ids
    if vectors.ids is None or documents.ids is None:
        if len(vectors.rows) != len(documents.rows):
            why = f"{folder}: {counts}, and nothing says which belong together"
            longer = max(len(vectors.rows), len(documents.rows))
            named = ids if ids is not None and len(ids) == longer else range(longer)
            return {}, {str(identity): why for identity in named}
        ids = ids or [str(place) for place in range(len(vectors.rows))]
        texts = _by_id(folder / METADATA_FILE, ids, documents.rows, unpaired)
    else:
        texts = _by_id(folder / METADATA_FILE, documents.ids, documents.rows, unpaired)
        ids = vectors.ids
    beside: dict[str, Sequence[Layer]] = dict(zip(ids, vectors.beside or (), strict=vectors.beside is not None))
    records: dict[str, LegacyRecord] = {}
    for identity, vector in _by_id(folder / VECTORS_FILE, ids, vectors.rows, unpaired).items():
        if identity not in texts:
            why = f"{folder / VECTORS_FILE} has its vector, {METADATA_FILE} has no document of this id"
            unpaired.setdefault(identity, why)
            continue
        document: Document = texts.pop(identity)
        if vector is None:
            unpaired[identity] = f"{folder / VECTORS_FILE}: its entry is no vector of numbers"
        elif document.text is None:
            unpaired[identity] = f"{folder / METADATA_FILE}: its entry has no text under a usual name"
        else:
            try:
                layers = [(place, values.plain(fields)) for place, fields in beside.get(identity, ())]
                metadata = document.with_layers(layers).metadata_of(identity)
            except ValueError as error:
                unpaired[identity] = f"{folder / VECTORS_FILE}: its entry has {error}, which no metadata can hold"
            else:
                if is_deeper(metadata, DEEPEST):
                    why = f"its metadata is more than {DEEPEST} objects and lists in one another"
                    unpaired[identity] = f"{folder / METADATA_FILE}: {why}"
                else:
                    records[identity] = LegacyRecord(vector, document.text, metadata)
    for identity in texts:
        why = f"{folder / METADATA_FILE} has its document, {VECTORS_FILE} has no vector of this id"
        unpaired.setdefault(identity, why)
    return records, unpaired


def _set_apart(folder: Path, records: dict[str, LegacyRecord], unpaired: dict[str, str]) -> None:
    """Move ids that no database can hold to ``unpaired``, under names that can be written down."""
    odd = [identity for identity in (*records, *unpaired) if "\0" in identity or not is_encodable(identity)]
    for identity in odd:
        records.pop(identity, None)
        unpaired.pop(identity, None)
        name = identity.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
        unpaired[name] = f"{folder}: its id has a character that cannot be written down"


def is_encodable(text: str) -> bool:
    """Return whether a text is free of lone surrogates, which JSON and pickles may hold and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_arrays(columns: Columns) -> Columns:
    """Return the rows as ``(dimension,)`` float32, None for what is no vector; the numbers are freed as it goes."""
    rows = columns.rows if isinstance(columns.rows, list) else list(columns.rows)
    # A pickle may have one list in a million places. No row still to come can have the id of a freed one.
    made: dict[int, NDArray[np.float32] | None] = {}
    for place, row in enumerate(rows):
        if id(row) not in made:
            made[id(row)] = _to_vector(row)
        rows[place] = made[id(row)]
    return replace(columns, rows=rows)


def _by_id(path: Path, ids: Sequence[str], rows: Sequence[Any], unpaired: dict[str, str]) -> dict[str, Any]:
    """Return rows by id, without the ids that come twice: no row is surely theirs."""
    numbers = Counter(ids)
    unpaired |= {identity: f"{path} has this id {n} times" for identity, n in numbers.items() if n > 1}
    return {identity: row for identity, row in zip(ids, rows, strict=True) if numbers[identity] == 1}


def is_deeper(value: Any, most: int) -> bool:
    """Return whether there are more than ``most`` objects and lists in one another."""
    level = [value]
    for _ in range(most + 1):
        level = [
            held
            for each in level
            for held in (each.values() if isinstance(each, dict) else each)
            if isinstance(held, dict | list)
        ]
        if not level:
            return False
    return True


class PlainValues:
    """Values of a pickle as JSON has them; what is referred to in many places is written in all of them.

    So all together may be no more than a few times the size of the file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._left = _MOST_TIMES * size + _ALWAYS

    def plain(self, value: Any) -> Any:
        """Return a value. Raises `ValueError` naming the type of what JSON has not, `SourceError` for too much."""
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        if self._left < 0:
            raise SourceError(
                f"{self._path} has fields that together are more than {_MOST_TIMES} times its size",
                hint="take it from a backup, and find out who wrote this one",
            )
        if isinstance(value, Mapping):
            if not all(isinstance(name, str) for name in value):
                raise ValueError("a name that is no text")
            return {self.plain(name): self.plain(held) for name, held in value.items()}
        if isinstance(value, PickledArray):
            return self.plain(value.values.tolist())
        if isinstance(value, list | tuple):
            return [self.plain(held) for held in value]
        if isinstance(value, PickledUuid):
            return str(value)
        if value is None or isinstance(value, str | int | float):
            return value
        raise ValueError(f"a value of type {type(value).__name__}")


def _to_vector(row: Any) -> NDArray[np.float32] | None:
    if isinstance(row, list | tuple) and len(row) == 1 and isinstance(row[0], list | tuple | PickledArray):
        row = row[0]
    if isinstance(row, PickledArray):
        row = row.values
    elif not isinstance(row, np.ndarray) and not (
        isinstance(row, list | tuple) and all(isinstance(value, int | float) for value in row)
    ):
        return None
    with np.errstate(over="ignore"):
        try:
            array = np.asarray(row, np.float32)
        except (ValueError, OverflowError):
            return None
    # An embedding client that is asked for one text gives one row.
    array = array[0] if array.ndim == 2 and len(array) == 1 else array
    return array if array.ndim == 1 and array.size else None
