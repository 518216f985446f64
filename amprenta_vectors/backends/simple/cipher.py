"""Encrypts metadata as one Fernet token: a reader of the table learns nothing of it, and no filter can ask for it."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping
from typing import Any

from amprenta_vectors.backends.simple.decrypt import KEY_VARIABLE, is_token, open_fernet
from amprenta_vectors.errors import ConfigError, CredentialsRefused
from amprenta_vectors.extras import require_extra

ENCRYPTED = "encrypted"
"""The only field of encrypted metadata; its value is the token."""


class MetadataCipher:
    """Encrypts with ``key``, the application's own.

    Raises `CredentialsRefused` if ``key`` is no Fernet key, `MissingExtra`.
    """

    def __init__(self, key: str) -> None:
        self._fernet = open_fernet(key)
        self._key = base64.urlsafe_b64decode(key)

    def encrypt(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``metadata`` as one token. Raises `TypeError` for a value that JSON does not have."""
        token: bytes = self._fernet.encrypt(json.dumps(dict(metadata)).encode())
        return {ENCRYPTED: token.decode()}

    def encrypt_of(self, document: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Encrypt as `encrypt` does, always to the same token for the same metadata of the same ``document``.

        So when a source is read again, unchanged metadata looks unchanged. The Fernet token has the time 0, and its
        initialisation vector is not random but a keyed hash of what is encrypted, as in RFC 5297.
        """
        ciphers = require_extra("cryptography.hazmat.primitives.ciphers", "documents")
        padding = require_extra("cryptography.hazmat.primitives.padding", "documents")
        signing, encrypting = self._key[:16], self._key[16:]
        plain = json.dumps(dict(metadata), sort_keys=True).encode()
        vector = hmac.digest(signing, b"\0".join((b"vector", document.encode(), plain)), "sha256")[:16]
        padder = padding.PKCS7(128).padder()
        encryptor = ciphers.Cipher(ciphers.algorithms.AES(encrypting), ciphers.modes.CBC(vector)).encryptor()
        body: bytes = b"\x80" + bytes(8) + vector
        body += encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
        return {ENCRYPTED: base64.urlsafe_b64encode(body + hmac.digest(signing, body, "sha256")).decode()}

    def decrypt(self, token: str) -> dict[str, Any]:
        """Decrypt a token.

        Raises `CredentialsRefused` if it was made with another key, and `ConfigError` if it holds no metadata: whoever
        else has the key may have encrypted anything.
        """
        invalid = require_extra("cryptography.fernet", "documents").InvalidToken
        try:
            plain: bytes = self._fernet.decrypt(token.encode())
        except invalid:
            raise CredentialsRefused(
                f"metadata is encrypted with another key than {KEY_VARIABLE}, or is damaged",
                hint=f"export {KEY_VARIABLE}=… as it was when the document was written",
            ) from None
        try:
            found = json.loads(plain)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError(
                f"metadata is encrypted with {KEY_VARIABLE}, and what is encrypted is no JSON object",
                hint="write the document again, or delete it",
            )
        return found


def is_encrypted(metadata: Mapping[str, Any]) -> bool:
    """Return whether metadata is what `MetadataCipher.encrypt` makes; other fields may stand beside the token."""
    return is_token(metadata.get(ENCRYPTED))


def decrypted(metadata: Mapping[str, Any], cipher: MetadataCipher | None) -> dict[str, Any]:
    """Return ``metadata`` decrypted, with what stands beside its token. Raises `ConfigError` without a cipher."""
    if not is_encrypted(metadata):
        return dict(metadata)
    if cipher is None:
        raise ConfigError(
            f"metadata is encrypted, and {KEY_VARIABLE} is not set",
            hint=f"export {KEY_VARIABLE}=… as it was when the document was written",
        )
    beside = {name: value for name, value in metadata.items() if name != ENCRYPTED}
    return {**cipher.decrypt(metadata[ENCRYPTED]), **beside}
