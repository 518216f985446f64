"""Which fields a document has, wherever its files keep them: none is lost, and where two clash both arrive."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

IDS = ("id", "ids", "doc_ids", "document_ids")
TEXT = ("text", "page_content", "content", "document", "chunk", "body")
TEXTS = ("texts", "page_contents", "contents", "documents", "chunks")
METADATA = ("metadata", "metadatas", "meta")

ORIGINAL_ID = "original_id"
"""The metadata field that keeps the id which a document had in its store."""
AGAIN = "__again"
"""The ending of the name of a field that an object of JSON has for the second time, with another value."""

Fields = Mapping[str, Any]
Layer = tuple[str, Fields]
"""The name of the place where fields stand, and the fields."""


@dataclass(frozen=True, eq=False)
class Document:
    """One document of a file: its text, where it has one, and its fields, layer by layer."""

    text: str | None
    layers: tuple[Layer, ...] = ()
    text_field: str = ""
    """The field that the text was found in; empty if the entry itself is the text."""

    def with_layers(self, layers: Iterable[Layer]) -> Document:
        """Return the document with further layers after its own."""
        return replace(self, layers=(*self.layers, *layers))

    def metadata_of(self, identity: str) -> dict[str, Any]:
        """Return every field of the document whose id is ``identity``, as `merge` brings them together.

        Outside of its metadata its id and text are left out where they are what the row has under names of its own.
        """
        layers = [
            layer if layer[0] in METADATA else (layer[0], self._unsaid(layer[1], identity)) for layer in self.layers
        ]
        metadata = merge([("id", {ORIGINAL_ID: identity}), *layers])
        del metadata[ORIGINAL_ID]
        return metadata

    def _unsaid(self, fields: Fields, identity: str) -> Fields:
        ours = {**dict.fromkeys(IDS, identity), **dict.fromkeys((*TEXT, *TEXTS), self.text)}
        return {name: value for name, value in fields.items() if value is None or value != ours.get(name)}


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """Return all fields of all layers by name.

    Where two have one name and another value, the earlier layer's keeps the name; the other's is followed by ``__`` and
    its layer, as often as it takes until the name is free. So ``page`` beside a ``metadata`` that has another
    ``page`` becomes ``page__beside``.
    """
    found: dict[str, Any] = {}
    for place, fields in layers:
        for own, value in fields.items():
            name = own
            while name in found and not is_same(found[name], value):
                name += f"__{place}"
            found[name] = value
    return found


def from_json(content: str | bytes) -> Any:
    """Decode JSON; of a name that an object gives twice, with two values, the second is followed by `AGAIN`."""
    return json.loads(content, object_pairs_hook=_to_object)


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return (
        found if len(found) == len(pairs) else merge((AGAIN.removeprefix("__"), {name: held}) for name, held in pairs)
    )


def is_same(one: object, other: object) -> bool:
    """Return whether JSON writes both alike, whatever the order of their fields: 1, 1.0 and true are three values."""
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def to_document(entry: Any) -> Document:
    """Return the document of an entry: a text, or an object with a text in it or in its metadata.

    Its metadata is the first object under one of `METADATA`; whatever else it has stands beside.
    """
    if isinstance(entry, str):
        return Document(entry)
    if not isinstance(entry, Mapping):
        return Document(None)
    inner_name = next((name for name in METADATA if isinstance(entry.get(name), Mapping)), None)
    inner: dict[str, Any] = {} if inner_name is None else dict(entry[inner_name])
    text_name = next((name for name in TEXT if isinstance(entry.get(name), str)), None)
    beside = {name: held for name, held in entry.items() if name not in (inner_name, text_name)}
    layers = ((inner_name or METADATA[0], inner), ("beside", beside))
    if text_name is not None:
        return Document(entry[text_name], layers, text_name)
    inside = next((name for name in TEXT if isinstance(inner.get(name), str)), None)
    if inside is None:
        return Document(None, layers)
    return Document(inner.pop(inside), layers, f"{inner_name}.{inside}")


def layers_beside(
    value: Mapping[str, Any],
    known: Sequence[str | None],
    ids: Sequence[str] | None,
    count: int,
    layer: str = "beside",
) -> list[list[Layer]]:
    """Return what ``value``, a whole file, has of each of ``count`` documents under names that are not ``known``.

    That is a list of as many entries, by place, or an object whose names are all among ``ids``.
    """
    layers: list[list[Layer]] = [[] for _ in range(count)]
    places = {identity: place for place, identity in enumerate(ids or ())}
    for name, held in value.items():
        if name in known:
            continue
        if isinstance(held, list | tuple) and len(held) == count:
            for place, item in enumerate(held):
                layers[place] += _layers_of(name, item, layer)
        elif isinstance(held, Mapping) and held and all(identity in places for identity in held):
            for identity, item in held.items():
                layers[places[identity]] += _layers_of(name, item, layer)
    return layers


def _layers_of(name: str, item: Any, layer: str) -> list[Layer]:
    """Return the layer of one item; metadata is spread out, and absent metadata gives no layer."""
    if name not in METADATA:
        return [(layer, {name: item})]
    if isinstance(item, Mapping):
        return [(name if layer == "beside" else layer, item)]
    return [] if item is None else [(layer, {name: item})]
