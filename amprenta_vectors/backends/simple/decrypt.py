"""``metadata.json`` of a simple vector store: plain, encrypted by Fernet as a whole, or value by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amprenta_vectors.backends.simple.decrypt_fields import decrypt_file
from amprenta_vectors.backends.simple.fields import from_json
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

    def open(self, value: Any) -> str | None:
        """Return what a token holds, decrypted as often as it was encrypted; None for any other value."""
        plain = None
        while is_token(value):
            plain = value = self.decrypt(value)
        return plain


_HINT = f"export {KEY_VARIABLE}=… as the application has it: 32 bytes in base64, 44 characters"


def is_token(value: object) -> bool:
    """Return whether a value looks like a Fernet token."""
    return isinstance(value, str) and value.startswith(_FERNET_START) and len(value) >= _SHORTEST_TOKEN


def read_metadata(content: bytes, path: Path, key: str | None) -> tuple[Any, str]:
    """Return the decoded ``content`` of ``path``, and how it was encrypted, in words for a person.

    Raises `SourceError` if it is no JSON, `ConfigError` and `CredentialsRefused` as `Decryptor` does.
    """
    decryptor = Decryptor(key, path)
    value = _decode(path, content) if not content.lstrip().startswith(_FERNET_START.encode()) else None
    token = content.strip().decode("ascii", "replace") if value is None else whole_token(value)
    whole = token is not None
    while token is not None:
        value = _decode(path, decryptor.open(token) or "")
        token = whole_token(value)
    decryptor.used = 0
    if whole or _FERNET_START.encode() in content:
        value = decrypt_file(value, decryptor.open)
    said = ["encrypted as a whole"] * whole + [f"{decryptor.used:,} values encrypted"] * bool(decryptor.used)
    return value, " and ".join(said) or "not encrypted"


def whole_token(value: Any) -> str | None:
    """Return the token that a file's decoded content is, or wraps; None if it has none."""
    return value if is_token(value) else wrapped_token(value)


def wrapped_token(value: Any) -> str | None:
    """Return the token of an object that holds one, with at most flags beside it; None for any other value."""
    if not isinstance(value, dict) or any(isinstance(held, dict | list) for held in value.values()):
        return None
    tokens = [name for name, held in value.items() if is_token(held)]
    return value[tokens[0]] if len(tokens) == 1 and tokens[0] in _WRAPPED else None


def _decode(path: Path, content: str | bytes) -> Any:
    try:
        return from_json(content)
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
