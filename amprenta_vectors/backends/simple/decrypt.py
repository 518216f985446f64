"""``metadata.json`` of a simple vector store: plain, encrypted by Fernet as a whole, or value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amprenta_vectors.errors import ConfigError, CredentialsRefused, SourceError
from amprenta_vectors.extras import require_extra

KEY_VARIABLE = "VECTOR_STORE_ENCRYPTION_KEY"

_FERNET_START = "gAAAA"
"""The start of a Fernet token: its version, 0x80, and the first bytes of a time until the year 2106, in base64."""
_SHORTEST_TOKEN = 100
_WRAPPED = ("data", "encrypted_data", "encrypted", "ciphertext", "payload")


class Decryptor:
    """Decrypts what looks like a Fernet token with one key; ``path`` is the file, for messages."""

    def __init__(self, key: str | None, path: Path) -> None:
        self._path = path
        self._fernet = None if key is None else open_fernet(key)
        self.used = 0

    def decrypt(self, token: str) -> str:
        """Decrypt a token. Raises `ConfigError` without a key, `CredentialsRefused` if it was made with another key."""
        if self._fernet is None:
            raise ConfigError(f"{self._path} is encrypted, and {KEY_VARIABLE} is not set", hint=_HINT)
        fernet = require_extra("cryptography.fernet", "documents")
        try:
            plain: bytes = self._fernet.decrypt(token.encode())
        except fernet.InvalidToken:
            raise CredentialsRefused(
                f"{self._path} is encrypted with another key than {KEY_VARIABLE}, or is damaged", hint=_HINT
            ) from None
        self.used += 1
        try:
            return plain.decode()
        except UnicodeDecodeError:
            raise SourceError(
                f"{self._path} has something encrypted in it that is no text", hint="take it from a backup"
            ) from None

    def decrypt_within(self, value: Any) -> Any:
        """Return ``value`` with every string in it that is a token decrypted."""
        if isinstance(value, dict):
            return {name: self.decrypt_within(held) for name, held in value.items()}
        if isinstance(value, list):
            return [self.decrypt_within(held) for held in value]
        if not is_token(value):
            return value
        plain = self.decrypt(value)
        try:
            return json.loads(plain) if plain[:1] in ("{", "[") else plain
        except ValueError:
            return plain


_HINT = f"export {KEY_VARIABLE}=… as the application has it: 32 bytes in base64, 44 characters"


def is_token(value: object) -> bool:
    """Return whether a value looks like a Fernet token."""
    return isinstance(value, str) and value.startswith(_FERNET_START) and len(value) >= _SHORTEST_TOKEN


def read_metadata(path: Path, key: str | None) -> tuple[Any, str]:
    """Return the decoded content of ``path``, and how it was encrypted, in words for a person.

    Raises `SourceError` if it is no JSON, `ConfigError` and `CredentialsRefused` as `Decryptor` does.
    """
    decryptor = Decryptor(key, path)
    content = path.read_bytes()
    token = content.strip().decode("ascii", "replace") if content.lstrip().startswith(_FERNET_START.encode()) else None
    if token is not None:
        return _decode(path, decryptor.decrypt(token)), "encrypted as a whole"
    value = _decode(path, content)
    if is_token(value):
        return _decode(path, decryptor.decrypt(value)), "encrypted as a whole"
    wrapped = wrapped_token(value)
    if wrapped is not None:
        return _decode(path, decryptor.decrypt(wrapped)), "encrypted as a whole"
    value = decryptor.decrypt_within(value)
    return value, f"{decryptor.used:,} values encrypted" if decryptor.used else "not encrypted"


def wrapped_token(value: Any) -> str | None:
    """Return the token of an object that holds one, with at most flags beside it; None for any other value."""
    if not isinstance(value, dict) or any(isinstance(held, dict | list) for held in value.values()):
        return None
    return next((value[name] for name in _WRAPPED if is_token(value.get(name))), None)


def _decode(path: Path, content: str | bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path} is no JSON: {error}", hint="it is truncated or damaged: take it from a backup"
        ) from None


def open_fernet(key: str) -> Any:
    """Return a Fernet with ``key``. Raises `CredentialsRefused` if ``key`` is no Fernet key, `MissingExtra`."""
    fernet = require_extra("cryptography.fernet", "documents")
    try:
        return fernet.Fernet(key)
    except ValueError:
        raise CredentialsRefused(f"{KEY_VARIABLE} is no Fernet key", hint=_HINT) from None
