"""The shapes that the two files of a simple vector store have in practice, each converted to columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amprenta_vectors.backends.simple.pickle_reader import PickledArray

IDS = ("ids", "id", "doc_ids", "document_ids")
TEXT = ("text", "page_content", "content", "document", "chunk", "body")
TEXTS = ("texts", "page_contents", "contents", "documents", "chunks")
METADATA = ("metadata", "metadatas", "meta")
VECTOR = ("embedding", "vector", "values")
VECTORS = ("vectors", "embeddings")
DOCUMENT_LISTS = ("documents", "docs", "entries", "items", "data", "metadata", "metadatas")


class ShapeUnknown(Exception):
    """The content has none of the known shapes; the message describes it."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The content of a file, one entry a row. ``ids`` is None if the file has none; ``shape`` says what was found."""

    shape: str
    ids: Sequence[str] | None
    rows: Sequence[Any]


def to_vector_columns(value: Any) -> Columns:
    """Return the vectors of an unpickled ``vectors.pkl``; a row is whatever holds one vector. Raises `ShapeUnknown`."""
    if isinstance(value, PickledArray):
        if value.values.ndim != 2 and value.values.size:
            raise ShapeUnknown(f"an array of {value.values.ndim} dimensions; expected (rows, dimension)")
        return Columns("one array", None, list(value.values))
    if isinstance(value, Mapping):
        rows = _first(value, VECTORS, (list, tuple, PickledArray, dict))
        if rows is None:
            return Columns("a dict by id", *_by_id(value, lambda entry: _vector_of(entry)[1]))
        found = to_vector_columns(rows)
        ids = _ids_of(value) if found.ids is None else found.ids
        return Columns(f"{found.shape} under a name{_and_ids(ids, found.ids)}", ids, found.rows)
    if isinstance(value, list | tuple):
        if value and all(_is_pair(entry) for entry in value):
            return Columns("a list of id and vector", [str(entry[0]) for entry in value], [entry[1] for entry in value])
        if value and all(isinstance(entry, Mapping) for entry in value):
            pairs = [_vector_of(entry) for entry in value]
            return Columns("a list of dicts", _whole(identity for identity, _ in pairs), [row for _, row in pairs])
        return Columns("a list of vectors", None, value)
    raise ShapeUnknown(f"{type(value).__name__}; expected a dict by id, a list of vectors or one array")


def to_document_columns(value: Any) -> Columns:
    """Return the documents of a decoded ``metadata.json`` as ``(text or None, metadata)``. Raises `ShapeUnknown`."""
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
            ids = _ids_of(value) if found.ids is None else found.ids
            return Columns(found.shape + _and_ids(ids, found.ids), ids, found.rows)
        if isinstance(held, Mapping) and held and all(isinstance(entry, Mapping) for entry in held.values()):
            return Columns(f"a dict by id under {name!r}", *_by_id(held, _document_of))
    if all(isinstance(entry, Mapping | str) for entry in value.values()):
        return Columns("a dict by id", *_by_id(value, _document_of))
    raise ShapeUnknown(f"an object of {', '.join(map(repr, list(value)[:5]))}, none of which holds documents")


def _columnar(value: Mapping[str, Any]) -> Columns | None:
    """Read texts and metadata that are in lists, or dicts, of their own; None for any other shape."""
    texts = next((value[name] for name in TEXTS if _is_list_of(value.get(name), str)), None)
    if texts is None:
        return _keyed(value)
    fields = next((value[name] for name in METADATA if _is_list_of(value.get(name), Mapping)), None)
    if fields is None:
        fields = [{}] * len(texts)
    if len(fields) != len(texts):
        raise ShapeUnknown(f"{len(texts)} texts with {len(fields)} entries of metadata")
    ids = _ids_of(value)
    rows = [(text, dict(entry)) for text, entry in zip(texts, fields, strict=True)]
    return Columns(f"lists of texts and metadata{_and_ids(ids, None)}", ids, rows)


def _keyed(value: Mapping[str, Any]) -> Columns | None:
    """Read texts by id, with metadata by id beside them; None for any other shape."""
    texts = next((value[name] for name in TEXTS if isinstance(value.get(name), Mapping)), None)
    if texts is None or not all(isinstance(text, str) for text in texts.values()):
        return None
    fields: Mapping[str, Any] = next((value[name] for name in METADATA if isinstance(value.get(name), Mapping)), {})
    rows = [(text, dict(fields.get(identity) or {})) for identity, text in texts.items()]
    return Columns("dicts of texts and metadata by id", list(texts), rows)


def _listed(entries: Sequence[Any], shape: str) -> Columns:
    ids = _whole(_named(entry, IDS) if isinstance(entry, Mapping) else None for entry in entries)
    return Columns(shape, ids, [_document_of(entry) for entry in entries])


def _document_of(entry: Any) -> tuple[str | None, dict[str, Any]]:
    """Return text and metadata of one document: its own metadata, and whatever else stands beside text and id."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, Mapping):
        return None, {}
    inner: Mapping[str, Any] = next((entry[name] for name in METADATA if isinstance(entry.get(name), Mapping)), {})
    text_name = next((name for name in TEXT if isinstance(entry.get(name), str)), None)
    used = {text_name, *IDS, *(name for name in METADATA if isinstance(entry.get(name), Mapping))}
    metadata = {name: held for name, held in entry.items() if name not in used} | dict(inner)
    if text_name is not None:
        return entry[text_name], metadata
    inside = next((name for name in TEXT if isinstance(inner.get(name), str)), None)
    return (None, metadata) if inside is None else (metadata.pop(inside), metadata)


def _vector_of(entry: Any) -> tuple[Any, Any]:
    """Return the id, None if there is none, and what holds the vector."""
    if not isinstance(entry, Mapping):
        return None, entry
    return _named(entry, IDS), _first(entry, VECTOR, (list, tuple, PickledArray))


def _by_id(value: Mapping[Any, Any], read: Callable[[Any], Any]) -> tuple[list[str], list[Any]]:
    return [str(name) for name in value], [read(entry) for entry in value.values()]


def _ids_of(value: Mapping[str, Any]) -> Sequence[str] | None:
    held = next((value[name] for name in IDS if isinstance(value.get(name), list)), None)
    return None if held is None else [str(identity) for identity in held]


def _whole(ids: Iterable[Any]) -> list[str] | None:
    """Return the ids if every entry has one, else None."""
    found = list(ids)
    return None if not found or any(identity is None for identity in found) else [str(identity) for identity in found]


def _first(value: Mapping[Any, Any], names: Iterable[str], kinds: tuple[type, ...]) -> Any:
    return next((value[name] for name in names if isinstance(value.get(name), kinds)), None)


def _named(value: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((value[name] for name in names if isinstance(value.get(name), str | int)), None)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _and_ids(ids: Sequence[str] | None, before: Sequence[str] | None) -> str:
    return ", ids apart" if ids is not None and before is None else ""
