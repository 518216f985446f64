"""The public keys of the issuer of tokens, in a JWKS file (RFC 7517) that may be replaced while the service runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.shown import printable

log = logging.getLogger(__name__)

KINDS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256")}
"""What a key for an algorithm is: its type, and its curve."""
MIN_RSA_BITS = 2048
"""RFC 7518, 3.3."""


class KeyFile:
    """The keys of a file by their ``kid``, read again whenever the file has changed.

    If the new file cannot be used, that is logged and the keys that were read last stay in use: a file that is half
    written locks nobody out. A key is revoked by a valid file without it.
    """

    def __init__(self, path: Path, algorithm: str) -> None:
        self._path = path
        self._algorithm = algorithm
        self._seen = _state(path)
        self._keys = read_keys(path, algorithm)

    def key(self, kid: object) -> Any:
        """Return the public key of that ``kid``; None if there is none."""
        state = _state(self._path)
        if state != self._seen:
            self._seen = state
            try:
                self._keys = read_keys(self._path, self._algorithm)
                log.info("%d keys are read from %s", len(self._keys), printable(str(self._path)))
            except ConfigError as error:
                log.warning("the keys that were read last stay in use: %s", error.message)
        return self._keys.get(kid) if isinstance(kid, str) else None


def read_keys(path: Path, algorithm: str) -> Mapping[str, Any]:
    """Return the public keys of a JWKS file that verify ``algorithm``, by ``kid``; the other keys are left out.

    Raises `ConfigError` if none is left, if the file has a private key, or is no JWKS.
    """
    try:
        listed = json.loads(path.read_bytes())["keys"]
        found = [key for key in listed if _verifies(key, algorithm)]
        if any("d" in key for key in listed):
            raise _unusable(path, "it has a private key; expected public ones")
        keys = {key["kid"]: jwt.PyJWK.from_dict(key, algorithm).key for key in found}
    except OSError as error:
        raise _unusable(path, error.strerror or "it cannot be read") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, jwt.PyJWTError):
        # What they say may quote a key.
        raise _unusable(path, "it is no set of JSON web keys") from None
    if not keys:
        raise _unusable(path, f"no key with a kid verifies {algorithm}")
    if len(keys) < len(found):
        raise _unusable(path, "two keys have the same kid")
    if any(isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS for key in keys.values()):
        raise _unusable(path, f"an RSA key has fewer than {MIN_RSA_BITS} bits")
    return keys


def _verifies(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = KINDS[algorithm]
    return (
        key.get("kty") == kind
        and key.get("crv") == curve
        and key.get("alg") in (None, algorithm)
        and key.get("use") in (None, "sig")
        and isinstance(key.get("kid"), str)
    )


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"AMPRENTA_JWT_JWKS_FILE is {path}: {why}",
        hint='export AMPRENTA_JWT_JWKS_FILE=… with a file {"keys": […]} of public keys, each with its kid',
    )
