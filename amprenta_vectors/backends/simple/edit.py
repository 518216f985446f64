"""Removes documents from, and adds them to, the two files of a simple vector store, in the shape they have."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from amprenta_vectors.backends.simple.decrypt import is_token
from amprenta_vectors.backends.simple.decrypt_fields import sealed_value
from amprenta_vectors.backends.simple.fields import IDS, METADATA, TEXT, TEXTS
from amprenta_vectors.backends.simple.pickle_reader import PickledArray
from amprenta_vectors.backends.simple.reading import LegacyRecord
from amprenta_vectors.backends.simple.shapes import (
    DOCUMENT_LISTS,
    VECTOR,
    VECTORS,
    to_document_columns,
    to_vector_columns,
)

Entry = tuple[str, LegacyRecord]
Encrypt = Callable[[str], str]
"""Makes a token of a text."""


class ShapeUnchangeable(Exception):
    """A shape that can be read but not written without a guess; the message says why."""


@dataclass(frozen=True)
class _Place:
    """Where a file has something of each document: under ``path``, a list, an array or a dict by id."""

    path: tuple[str, ...]
    what: Literal["vector", "document", "id", "text", "metadata"]


def edit_vectors(value: Any, ids: Sequence[str], gone: Collection[str], added: Sequence[Entry]) -> Any:
    """Return an unpickled ``vectors.pkl`` without the vectors of ``gone`` and with those of ``added``.

    ``ids`` are the ids of its rows, in their order. Raises `ShapeUnchangeable`.
    """
    for place in _vector_places(value, ()):
        value = _edited(value, value, place, ids, gone, added, None)
    return value


def edit_documents(
    value: Any, stored: Any, ids: Sequence[str], gone: Collection[str], added: Sequence[Entry], encrypt: Encrypt | None
) -> Any:
    """Return ``stored``, a decoded ``metadata.json``, without the documents of ``gone`` and with those of ``added``.

    ``value`` is ``stored`` decrypted. What stays is not encrypted anew. The text and metadata of what is added are
    encrypted if anything in the file is, or if the file is empty; without ``encrypt`` never. Raises
    `ShapeUnchangeable`.
    """
    places = _document_places(value)
    _check_nothing_beside(value, places)
    if ids and not _has_token(stored):
        encrypt = None
    for place in places:
        stored = _edited(value, stored, place, ids, gone, added, encrypt)
    return stored


def _vector_places(value: Any, path: tuple[str, ...]) -> list[_Place]:
    if not isinstance(value, Mapping):
        return [_Place(path, "vector")]
    name = next((name for name in VECTORS if isinstance(value.get(name), list | tuple | PickledArray | dict)), None)
    if name is None:
        return [_Place(path, "vector")]
    places = _vector_places(value[name], (*path, name))
    if to_vector_columns(value[name]).ids is None:
        places += _id_places(value, path)
    _check_nothing_beside(value, places)
    return places


def _document_places(value: Any) -> list[_Place]:
    if isinstance(value, list):
        return [_Place((), "document")]
    text = _first_name(value, TEXTS, lambda held: _is_list_of(held, str))
    metadata = _first_name(value, METADATA, lambda held: _is_list_of(held, Mapping))
    if text is not None and (value[text] or metadata is not None):
        if metadata is None:
            raise ShapeUnchangeable("it has no place for metadata")
        return [_Place((text,), "text"), _Place((metadata,), "metadata"), *_id_places(value, ())]
    texts = _first_name(value, TEXTS, lambda held: isinstance(held, Mapping) and _is_list_of([*held.values()], str))
    if texts is not None:
        fields = _first_name(value, METADATA, lambda held: isinstance(held, Mapping))
        if fields is None:
            raise ShapeUnchangeable("it has no place for metadata")
        return [_Place((texts,), "text"), _Place((fields,), "metadata")]
    name = _first_name(value, DOCUMENT_LISTS, lambda held: _is_list_of(held, Mapping) or _holds_mappings(held))
    if name is None:
        return [_Place((), "document")]
    apart = isinstance(value[name], list) and to_document_columns(value[name]).ids is None
    return [_Place((name,), "document"), *(_id_places(value, ()) if apart else [])]


def _id_places(value: Mapping[str, Any], path: tuple[str, ...]) -> list[_Place]:
    name = _first_name(value, IDS, lambda held: isinstance(held, list))
    return [] if name is None else [_Place((*path, name), "id")]


def _check_nothing_beside(value: Any, places: Sequence[_Place]) -> None:
    """Raise `ShapeUnchangeable` if a list holds something else of each document."""
    if not isinstance(value, Mapping) or not places[0].path:
        return
    known = {place.path[0] for place in places}
    lengths = {len(value[name]) for name in known if isinstance(value[name], list)}
    for name, held in value.items():
        if name not in known and isinstance(held, list) and held and len(held) in lengths:
            raise ShapeUnchangeable(f"it has a list {name!r} of something of each document")


def _edited(
    value: Any,
    stored: Any,
    place: _Place,
    ids: Sequence[str],
    gone: Collection[str],
    added: Sequence[Entry],
    encrypt: Encrypt | None,
) -> Any:
    """Return a copy of ``stored`` with other rows in the container at ``place``; ``value`` is ``stored`` decrypted."""
    if place.path:
        name, *rest = place.path
        inner = _Place(tuple(rest), place.what)
        return {**stored, name: _edited(value[name], stored[name], inner, ids, gone, added, encrypt)}
    if isinstance(stored, PickledArray):
        left = stored.values[[position for position, identity in enumerate(ids) if identity not in gone]]
        rows = [np.asarray(record.vector, stored.values.dtype) for _, record in added]
        return PickledArray(np.vstack([*left, *rows]) if len(left) or rows else left)
    make = _MAKERS.get(place.what, _like)
    if isinstance(stored, Mapping):
        model = next(iter(value.values()), _MODELS[place.what])
        stored_model = next(iter(stored.values()), model)
        kept = {name: held for name, held in stored.items() if str(name) not in gone}
        return kept | {entry[0]: _sealed(place, stored_model, make(model, entry), encrypt) for entry in added}
    model = next(iter(value), _MODELS[place.what])
    stored_model = next(iter(stored), model)
    rows = [held for identity, held in zip(ids, stored, strict=True) if identity not in gone]
    rows += [_sealed(place, stored_model, make(model, entry), encrypt) for entry in added]
    return type(stored)(rows)


def _like(model: Any, entry: Entry) -> Any:
    """Return the entry of a document in the form that ``model``, another document's entry, has."""
    identity, record = entry
    match model:
        case PickledArray():
            return PickledArray(np.asarray(record.vector, model.values.dtype))
        case str():
            if record.metadata:
                raise ShapeUnchangeable("it has no place for metadata")
            return record.text
        case Mapping():
            return _mapping_like(model, entry)
        case [str(), vector] if not isinstance(vector, str):
            return type(model)((identity, _like(vector, entry)))
        case _:
            return type(model)(record.vector.tolist())


def _mapping_like(model: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    identity, record = entry
    named = _first_name(model, IDS, lambda held: isinstance(held, str | int))
    made: dict[str, Any] = {} if named is None else {named: identity}
    vector = _first_name(model, VECTOR, lambda held: isinstance(held, list | tuple | PickledArray))
    text = _first_name(model, TEXT, lambda held: isinstance(held, str))
    inner = _first_name(model, METADATA, lambda held: isinstance(held, Mapping))
    if text is None and inner is None and vector is not None:
        return {**made, vector: _like(model[vector], entry)}
    metadata = dict(record.metadata)
    if text is None:
        inside = _first_name(model[inner] if inner else {}, TEXT, lambda held: isinstance(held, str))
        if inside is None:
            raise ShapeUnchangeable("its first document has no text")
        metadata[inside] = record.text
    else:
        made[text] = record.text
    return made | (metadata if inner is None else {inner: metadata})


def _sealed(place: _Place, model: Any, made: Any, encrypt: Encrypt | None) -> Any:
    """Return ``made``, which will stand beside ``model``, with its text and metadata encrypted."""
    if encrypt is None or (place.what == "id" and not is_token(model)):
        return made
    if is_token(model) or not isinstance(made, dict):
        return _to_token(made, encrypt)
    if place.what == "metadata":
        return {name: _to_value_token(held, encrypt) for name, held in made.items()}
    models = model if isinstance(model, Mapping) else {}
    return {name: _sealed_field(name, models.get(name), held, encrypt) for name, held in made.items()}


def _sealed_field(name: str, model: Any, held: Any, encrypt: Encrypt) -> Any:
    if name in METADATA and isinstance(held, dict):
        if is_token(model):
            return _to_token(held, encrypt)
        return {inner: _to_value_token(value, encrypt) for inner, value in held.items()}
    return held if name in IDS and not is_token(model) else _to_value_token(held, encrypt)


def _to_token(made: Any, encrypt: Encrypt) -> Any:
    """Return the token of a document or of metadata as a whole, or of a text."""
    return encrypt(json.dumps(made, ensure_ascii=False)) if isinstance(made, dict) else _to_value_token(made, encrypt)


def _to_value_token(value: Any, encrypt: Encrypt) -> Any:
    """Return the token of a value; a number stays, because the old application would read a text in its place."""
    return encrypt(sealed_value(value)) if isinstance(value, str | list | dict) else value


def _has_token(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_token, value.values()))
    return any(map(_has_token, value)) if isinstance(value, list) else is_token(value)


_MODELS: dict[str, Any] = {
    "vector": [0.0],
    "document": {"id": "", "text": "", "metadata": {}},
    "id": "",
    "text": "",
    "metadata": {},
}
"""The form of an entry in a file that has no other entry to follow."""

_MAKERS: dict[str, Callable[[Any, Entry], Any]] = {
    "id": lambda model, entry: entry[0],
    "text": lambda model, entry: entry[1].text,
    "metadata": lambda model, entry: dict(entry[1].metadata),
}


def _first_name(value: Mapping[str, Any], names: Sequence[str], holds: Callable[[Any], bool]) -> str | None:
    return next((name for name in names if name in value and holds(value[name])), None)


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Mapping) for item in value.values())
