"""Tokens within ``metadata.json``, each decrypted to what belongs in its place: a text, a document, metadata or a list.

A text may look like JSON, so what a token holds is decoded only where the place asks for it. A value of a document is
the text that it is; where a list, an object or a number was encrypted by `sealed_value`, it says so itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from amprenta_vectors.backends.simple.fields import IDS, METADATA, TEXT, TEXTS, from_json, to_document
from amprenta_vectors.backends.simple.shapes import DOCUMENT_LISTS

_JSON = "\x1e"
"""How a value begins that is JSON and no text: the record separator, as in RFC 7464."""

Open = Callable[[Any], str | None]
"""A function that returns the value in a token; None for a text that is no token."""


def sealed_value(value: Any) -> str:
    """Return the text to encrypt for a value of a document, from which `decrypt_file` makes the same value."""
    if isinstance(value, str) and not value.startswith(_JSON):
        return value
    return f"{_JSON}{json.dumps(value, ensure_ascii=False)}\n"


def decrypt_file(value: Any, open_token: Open) -> Any:
    """Return the content of a file with every token in it decrypted."""
    if isinstance(value, list):
        return [_document(entry, open_token) for entry in value]
    if not isinstance(value, dict):
        return _value(value, open_token)
    return {name: _column(name, held, open_token) for name, held in value.items()}


def _column(name: str, value: Any, open_token: Open) -> Any:
    """Decrypt what the file has under a name: all documents if the name says so, else one."""
    if name not in (*DOCUMENT_LISTS, *TEXTS, *METADATA, *IDS):
        return _document(value, open_token)
    plain = open_token(value)
    if plain is not None:
        value = _decoded(plain, dict | list)
    entry = _document
    if name in METADATA:
        entry = _metadata
    elif name in IDS or (name in TEXTS and name not in DOCUMENT_LISTS):
        entry = _value
    if isinstance(value, list):
        return [entry(held, open_token) for held in value]
    if isinstance(value, dict) and to_document(value).text is None:
        return {own: entry(held, open_token) for own, held in value.items()}
    return _document(value, open_token)


def _document(value: Any, open_token: Open) -> Any:
    """Decrypt a document: an object if a token holds one with a text in it, else a text."""
    plain = open_token(value)
    if plain is not None:
        decoded = _decoded(plain, dict)
        if not isinstance(decoded, dict) or not _has_text(decoded, open_token):
            return _value(value, open_token)
        value = decoded
    if not isinstance(value, dict):
        return _value(value, open_token)
    return {name: (_metadata if name in METADATA else _value)(held, open_token) for name, held in value.items()}


def _metadata(value: Any, open_token: Open) -> Any:
    """Decrypt metadata, or a document if the file calls its documents metadata."""
    plain = open_token(value)
    if plain is not None:
        value = _decoded(plain, dict)
    if isinstance(value, dict) and any(name in value for name in (*TEXT, *METADATA)):
        return _document(value, open_token)
    return _value(value, open_token)


def _value(value: Any, open_token: Open) -> Any:
    if isinstance(value, dict):
        return {name: _value(held, open_token) for name, held in value.items()}
    if isinstance(value, list):
        return [_value(held, open_token) for held in value]
    plain = open_token(value)
    if plain is None:
        return value
    return _decoded(plain[1:], object, plain) if plain.startswith(_JSON) else plain


def _has_text(value: Mapping[str, Any], open_token: Open) -> bool:
    if to_document(value).text is not None:
        return True
    return any(open_token(value.get(name)) is not None for name in METADATA)


def _decoded(plain: str, kind: Any, otherwise: str | None = None) -> Any:
    """Return ``plain`` decoded from JSON if that is of ``kind``, else ``otherwise``."""
    otherwise = plain if otherwise is None else otherwise
    try:
        value = from_json(plain)
    except ValueError:
        return otherwise
    return value if isinstance(value, kind) else otherwise
