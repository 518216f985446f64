"""Whether documents have all that ``metadata.json`` says of them, found by another way than `reading` reads it.

Nothing is known here of shapes or of names with a meaning: what stands with an id, under it or in its place, is that
document's, and each value of it has to be somewhere in the document under the name that it has in the file. So what the
reading code overlooks is not overlooked twice; this module imports nothing of it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amprenta_vectors.backends.simple.decrypt import open_fernet


@dataclass(frozen=True, eq=False)
class RawDocument:
    """A document as a row of the table has it, in the clear."""

    text: str | None
    metadata: Mapping[str, Any]


class _Object(list[tuple[str, Any]]):
    """An object of JSON, with the names that it gives twice."""


def find_incomplete(path: Path, key: str | None, documents: Mapping[str, RawDocument]) -> list[str]:
    """Return the ids of which the file at ``path`` says more than ``documents`` have, absent documents included."""
    decrypt = _decrypter(key)
    content = path.read_bytes().decode()
    opened = decrypt(content.strip())
    value = _parsed(content if opened is None else opened)
    return list(dict.fromkeys(_Check(documents, decrypt).visit(value, "", at_root=True)))


class _Check:
    def __init__(self, documents: Mapping[str, RawDocument], decrypt: Callable[[str], str | None]) -> None:
        self._decrypt = decrypt
        self._held = {identity: _Held(identity, document) for identity, document in documents.items()}
        self._texts = {document.text for document in documents.values()}
        self._orders: list[Sequence[str]] = [list(documents)]
        self._lists: list[tuple[str, Sequence[Any], bool]] = []

    def visit(self, value: Any, name: str, *, at_root: bool = False) -> Iterator[str]:
        """Yield the ids of documents that lack something which stands in ``value``."""
        value = self._opened(value)
        if isinstance(value, _Object):
            yield from self._visit_object(value, name)
        elif isinstance(value, list):
            self._lists.append((name, value, at_root))
            named = [self._candidates(entry) for entry in value]
            if value and all(len(candidates) == 1 for candidates in named):
                self._orders.append([candidates[0] for candidates in named])
        if at_root:
            # By now every order that there is has been met.
            for found in self._lists:
                yield from self._visit_list(*found)

    def _visit_object(self, value: _Object, name: str) -> Iterator[str]:
        if not any(own in self._held for own, _ in value):
            for own, held in value:
                yield from self.visit(held, own)
            return
        self._orders.append([own for own, _ in value])
        for own, held in value:
            if own not in self._held or not self._is_held(held, name, self._held[own]):
                yield own

    def _visit_list(self, name: str, entries: Sequence[Any], at_root: bool) -> Iterator[str]:
        """Yield what is missing of a list: an entry is of the document that it names, or of one in its place."""
        named = [self._candidates(entry) for entry in entries]
        of_documents = at_root or self._are_of_documents(entries, named)
        if len(entries) != len(self._held) and not of_documents:
            return
        orders = [order for order in self._orders if len(order) == len(entries)]
        for place, (entry, candidates) in enumerate(zip(entries, named, strict=True)):
            whose = dict.fromkeys([*candidates, *(order[place] for order in orders)])
            found = [self._held[identity] for identity in whose if identity in self._held]
            if entry is not None and not any(self._is_held(entry, name, held) for held in found):
                yield next(iter(whose), str(place))

    def _are_of_documents(self, entries: Sequence[Any], named: Sequence[Sequence[str]]) -> bool:
        """Return whether a list of another length than there are documents is nevertheless of documents."""
        opened = list(map(self._opened, entries))
        if any(isinstance(entry, _Object) for entry in opened):
            return any(named)
        known = sum(isinstance(entry, str) and (entry in self._held or entry in self._texts) for entry in opened)
        return known * 2 >= len(entries) > 0

    def _candidates(self, entry: Any) -> list[str]:
        """Return the ids that an entry of a list names itself by, if it does."""
        opened = self._opened(entry)
        values = [held for _, held in opened] if isinstance(opened, _Object) else [opened]
        ids = [str(held) for held in map(self._opened, values) if isinstance(held, str | int)]
        return [identity for identity in dict.fromkeys(ids) if identity in self._held]

    def _is_held(self, value: Any, name: str, held: _Held, depth: int = 0) -> bool:
        """Return whether ``held`` has ``value``, which stands in ``depth`` objects of its document."""
        if isinstance(value, str):
            return held.has(name, value, depth) or self._is_opened_held(value, name, held, depth)
        if isinstance(value, _Object):
            return all(self._is_held(item, own, held, depth + 1) for own, item in value)
        if isinstance(value, list) and value:
            return all(self._is_held(item, name, held, depth) for item in value)
        return held.has(name, value, depth)

    def _is_opened_held(self, value: str, name: str, held: _Held, depth: int) -> bool:
        plain = self._decrypt(value)
        if plain is None:
            return False
        parsed = _parsed_or_none(plain)
        if isinstance(parsed, list) and self._is_held(parsed, name, held, depth):
            return True
        return self._is_held(plain, name, held, depth)

    def _opened(self, value: Any) -> Any:
        """Return what a token holds, decoded if it is an object or an array; any other value as it is."""
        while isinstance(value, str) and (plain := self._decrypt(value)) is not None:
            parsed = _parsed_or_none(plain)
            value = parsed if isinstance(parsed, list) else plain
        return value


class _Held:
    """The values of one document, each with the names that it stands under."""

    def __init__(self, identity: str, document: RawDocument) -> None:
        self._identity = identity
        self._text = _storable(document.text)
        self._names: dict[str, set[str]] = defaultdict(set)
        self._collect("", dict(document.metadata))

    def has(self, name: str, value: Any, depth: int) -> bool:
        """Return whether the value is the text, the id, or under the name; one that clashes has a longer name.

        The id is no field of an object within the document.
        """
        if isinstance(value, str) and value == self._identity and depth < 2:
            return True
        value, name = _storable(value), _storable(name)
        if isinstance(value, str) and value == self._text:
            return True
        names = self._names.get(json.dumps(value), ())
        return any(own == name or own.startswith(f"{name}__") for own in names)

    def _collect(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for own, held in value.items():
                self._collect(own, held)
        elif isinstance(value, list) and value:
            for held in value:
                self._collect(name, held)
        else:
            self._names[json.dumps(_storable(value))].add(_storable(name))


def _storable(value: Any) -> Any:
    """Return what ``--nul strip`` makes of a value."""
    if isinstance(value, str):
        return value.replace("\0", "")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decrypter(key: str | None) -> Callable[[str], str | None]:
    """Return a function that decrypts a token, and returns None for any other text."""
    fernet = None if key is None else open_fernet(key)

    def decrypt(value: str) -> str | None:
        if fernet is None or not value.startswith("gAAAA"):
            return None
        try:
            plain: bytes = fernet.decrypt(value.encode())
            return plain.decode()
        except Exception:
            # No token after all: it is looked for as the text that it is.
            return None

    return decrypt


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Object)


def _parsed_or_none(text: str) -> Any:
    try:
        return _parsed(text)
    except ValueError:
        return None
