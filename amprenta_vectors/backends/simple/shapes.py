"""The shapes that the two files of a simple vector store have in practice, each converted to columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from amprenta_vectors.backends.simple.fields import (
    AGAIN,
    IDS,
    METADATA,
    TEXTS,
    Document,
    Layer,
    layers_beside,
    to_document,
)
from amprenta_vectors.backends.simple.pickle_reader import PickledArray, PickledUuid

VECTOR = ("embedding", "vector", "values")
VECTORS = ("vectors", "embeddings")
_Id = str | int | PickledUuid
_OF_VECTORS = "vectors"
"""The layer of fields that stand in the file of vectors."""
DOCUMENT_LISTS = ("documents", "docs", "entries", "items", "data", "metadata", "metadatas")


class ShapeUnknown(Exception):
    """The content has none of the known shapes; the message describes it."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The content of a file, one entry a row. ``ids`` is None where the file has none; ``shape`` says what was found.

    ``beside`` are the fields that a file of vectors has of each row, if any.
    """

    shape: str
    ids: Sequence[str] | None
    rows: Sequence[Any]
    beside: Sequence[Sequence[Layer]] | None = None


def to_vector_columns(value: Any) -> Columns:
    """Return the vectors of an unpickled ``vectors.pkl``; a row is whatever holds one vector. Raises `ShapeUnknown`."""
    if isinstance(value, PickledArray):
        if value.values.ndim != 2 and value.values.size:
            raise ShapeUnknown(f"an array of {value.values.ndim} dimensions; expected (rows, dimension)")
        return Columns("one array", None, list(value.values))
    if isinstance(value, Mapping):
        name = _first_name(value, VECTORS, (list, tuple, PickledArray, dict))
        if name is None:
            entries = list(map(_vector_of, value.values()))
            return _with_entries(Columns("a dict by id", [str(name) for name in value], []), entries)
        found = to_vector_columns(value[name])
        ids, ids_name = (found.ids, None) if found.ids is not None else _ids_of(value)
        beside = layers_beside(value, (name, ids_name), ids, len(found.rows), _OF_VECTORS)
        if found.beside is not None:
            beside = [[*own, *more] for own, more in zip(found.beside, beside, strict=True)]
        shape = f"{found.shape} under a name{_and_ids(ids, found.ids)}"
        return Columns(shape, ids, found.rows, beside if any(beside) else None)
    if isinstance(value, list | tuple):
        if value and all(_is_pair(entry) for entry in value):
            return Columns("a list of id and vector", [str(entry[0]) for entry in value], [entry[1] for entry in value])
        if value and all(isinstance(entry, Mapping) for entry in value):
            entries = list(map(_vector_of, value))
            ids = _whole(identity for identity, _, _ in entries)
            return _with_entries(Columns("a list of dicts", ids, []), entries)
        return Columns("a list of vectors", None, value)
    raise ShapeUnknown(f"{type(value).__name__}; expected a dict by id, a list of vectors or one array")


def to_document_columns(value: Any) -> Columns:
    """Return the documents of a decoded ``metadata.json``; a row is a `Document`. Raises `ShapeUnknown`."""
    if isinstance(value, list):
        return _listed(value, "a list of documents")
    if not isinstance(value, Mapping):
        raise ShapeUnknown(f"{type(value).__name__}; expected an object or an array")
    columns = _columnar(value)
    if columns is not None:
        return columns
    for name in DOCUMENT_LISTS:
        held = value.get(name)
        if isinstance(held, list) and all(isinstance(entry, Mapping) for entry in held):
            found = _listed(held, f"a list of documents under {name!r}")
            ids, ids_name = (found.ids, None) if found.ids is not None else _ids_of(value)
            shape = found.shape + _and_ids(ids, found.ids)
            return _with_beside(Columns(shape, ids, found.rows), value, (name, ids_name))
        if isinstance(held, Mapping) and held and all(isinstance(entry, Mapping) for entry in held.values()):
            return _with_beside(_documents_by_id(held, f"a dict by id under {name!r}"), value, (name,))
    if all(isinstance(entry, Mapping | str) for entry in value.values()):
        return _documents_by_id(value, "a dict by id")
    names = ", ".join(repr(name[:60]) for name in list(value)[:5])
    raise ShapeUnknown(f"an object of {names}, none of which holds documents")


def _columnar(value: Mapping[str, Any]) -> Columns | None:
    """Return texts in a list, or by id, with whatever else there is of each likewise; None for other shapes."""
    name = next((name for name in TEXTS if _is_list_of_texts(value.get(name))), None)
    if name is None:
        return _keyed(value)
    texts = value[name]
    for other in METADATA:
        if isinstance(value.get(other), list) and len(value[other]) != len(texts):
            raise ShapeUnknown(f"{len(texts)} texts with {len(value[other])} entries of metadata")
    ids, ids_name = _ids_of(value)
    shape = f"lists of texts and metadata{_and_ids(ids, None)}"
    rows = [Document(text, text_field=name) for text in texts]
    return _with_beside(Columns(shape, ids, rows), value, (name, ids_name))


def _keyed(value: Mapping[str, Any]) -> Columns | None:
    """Return texts by id, with whatever else there is of each by id; None for other shapes."""
    name = next((name for name in TEXTS if isinstance(value.get(name), Mapping)), None)
    if name is None or not all(isinstance(text, str) for text in value[name].values()):
        return None
    # What has metadata and no text is a document all the same.
    fields = [value[other] for other in METADATA if isinstance(value.get(other), Mapping)]
    ids = dict.fromkeys(chain(value[name], *fields))
    rows = [Document(value[name].get(identity), text_field=name) for identity in ids]
    found = Columns("dicts of texts and metadata by id", [_said_once(identity, ids) for identity in ids], rows)
    return _with_beside(found, value, (name,), list(ids))


def _listed(entries: Sequence[Any], shape: str) -> Columns:
    ids = _whole(_named(entry, IDS) if isinstance(entry, Mapping) else None for entry in entries)
    return Columns(shape, ids, list(map(to_document, entries)))


def _documents_by_id(value: Mapping[str, Any], shape: str) -> Columns:
    return Columns(shape, [_said_once(name, value) for name in value], list(map(to_document, value.values())))


def _said_once(name: str, names: Mapping[str, Any]) -> str:
    """Return the id as the file gave it, so that one given twice, with two documents, belongs to neither."""
    own = name.removesuffix(AGAIN)
    return own if own in names else name


def _with_beside(
    columns: Columns, value: Mapping[str, Any], known: Sequence[str | None], ids: Sequence[str] | None = None
) -> Columns:
    """Return ``columns`` with what ``value`` has of each document beside it; a second text is a field."""
    layers = layers_beside(value, known, ids or columns.ids, len(columns.rows))
    return replace(columns, rows=[row.with_layers(more) for row, more in zip(columns.rows, layers, strict=True)])


def _vector_of(entry: Any) -> tuple[Any, Any, list[Layer]]:
    """Return the id of an entry, if it has one, what stands for its vector, and its other fields."""
    if not isinstance(entry, Mapping):
        return None, entry, []
    name = _first_name(entry, VECTOR, (list, tuple, PickledArray))
    inner = next((held for held in METADATA if isinstance(entry.get(held), Mapping)), None)
    rest = {own: held for own, held in entry.items() if own not in (name, inner)}
    layers = [(_OF_VECTORS, fields) for fields in ({} if inner is None else entry[inner], rest) if fields]
    return _named(entry, IDS), None if name is None else entry[name], layers


def _with_entries(columns: Columns, entries: Sequence[tuple[Any, Any, list[Layer]]]) -> Columns:
    beside = [layers for _, _, layers in entries]
    return replace(columns, rows=[row for _, row, _ in entries], beside=beside if any(beside) else None)


def _ids_of(value: Mapping[str, Any]) -> tuple[Sequence[str] | None, str | None]:
    """Return ids in a list of their own, and its name."""
    name = _first_name(value, IDS, (list,))
    return (None, None) if name is None else (_to_ids(value[name]), name)


def _to_ids(listed: Sequence[Any]) -> list[str]:
    """Return ids as texts. Raises `ShapeUnknown` for lists and the like, whose text may be larger than any file."""
    odd = next((identity for identity in listed if not isinstance(identity, _Id | float | bytes | None)), None)
    if odd is not None:
        raise ShapeUnknown(f"ids of which one is no text and no number: {type(odd).__name__}")
    return [str(identity) for identity in listed]


def _whole(ids: Iterable[Any]) -> list[str] | None:
    """Return the ids if every entry has one, else None."""
    found = list(ids)
    return None if not found or any(identity is None for identity in found) else [str(identity) for identity in found]


def _first_name(value: Mapping[Any, Any], names: Iterable[str], kinds: tuple[type, ...]) -> str | None:
    return next((name for name in names if isinstance(value.get(name), kinds)), None)


def _named(value: Mapping[str, Any], names: Iterable[str]) -> Any:
    held = (value.get(name) for name in names)
    return next((item for item in held if isinstance(item, _Id) and not isinstance(item, bool)), None)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str | PickledUuid)


def _is_list_of_texts(value: Any) -> bool:
    """Return whether a value is a list of texts, some of which may be missing."""
    if not isinstance(value, list):
        return False
    return all(isinstance(entry, str | None) for entry in value) and (not value or any(value) or "" in value)


def _and_ids(ids: Sequence[str] | None, before: Sequence[str] | None) -> str:
    return ", ids apart" if ids is not None and before is None else ""
