"""Verification of bearer tokens (JWT): one algorithm, fixed by a setting; `exp`, `iss` and `aud` are required."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.service.key_file import KeyFile

log = logging.getLogger(__name__)

MIN_SECRET_BYTES = 32
"""The size of the hash, below which no key for HS256 may be (RFC 7518, 3.2)."""
CLOCK_SKEW_SECONDS = 5
"""How far the clocks of the issuer and of this machine may be apart."""
WHAT_TO_SET = (
    "export AMPRENTA_JWT_ALGORITHM=HS256 AMPRENTA_JWT_SECRET=… AMPRENTA_JWT_ISSUER=… AMPRENTA_JWT_AUDIENCE=…; with "
    "RS256 or ES256 AMPRENTA_JWT_JWKS_FILE=… in place of the secret"
)

KeyOf = Callable[[Mapping[str, Any]], Any]
"""Returns the key for the header of a token; None if there is none."""


@dataclass(frozen=True)
class TokenVerifier:
    """Accepts tokens that are signed by one algorithm, by one issuer, for one audience."""

    algorithm: str
    issuer: str
    audience: str
    key_of: KeyOf

    def accepts(self, token: str) -> bool:
        """Return whether a token is valid now."""
        try:
            key = self.key_of(jwt.get_unverified_header(token))
            if key is None:
                return False
            jwt.decode(
                token,
                key,
                algorithms=[self.algorithm],
                audience=self.audience,
                issuer=self.issuer,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.PyJWTError as error:
            log.debug("a token was refused: %s", type(error).__name__)
            return False
        except (ValueError, TypeError, RecursionError) as error:
            # What older versions of PyJWT let through of a token that was made to break its parser.
            log.warning("a token cannot be read: %s", type(error).__name__)
            return False
        return True


def open_verifier(settings: Settings) -> TokenVerifier | None:
    """Return the verifier by the settings; None if no setting of tokens is set.

    Raises `ConfigError` for settings that are incomplete or contradict each other, a secret that is too short, and a
    file of keys that cannot be used.
    """
    given = (
        settings.jwt_algorithm,
        settings.jwt_secret,
        settings.jwt_jwks_file,
        settings.jwt_issuer,
        settings.jwt_audience,
    )
    if not any(given):
        return None
    algorithm, issuer, audience = (settings.require(f"jwt_{name}") for name in ("algorithm", "issuer", "audience"))
    key_of = _by_secret(settings) if algorithm == "HS256" else _by_key_file(settings, algorithm)
    return TokenVerifier(algorithm, issuer, audience, key_of)


def _by_secret(settings: Settings) -> KeyOf:
    if settings.jwt_jwks_file is not None:
        raise ConfigError("AMPRENTA_JWT_JWKS_FILE is set, and HS256 is verified by AMPRENTA_JWT_SECRET", WHAT_TO_SET)
    secret = settings.require("jwt_secret").encode()
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"AMPRENTA_JWT_SECRET has {len(secret)} bytes; expected {MIN_SECRET_BYTES} or more",
            hint='export AMPRENTA_JWT_SECRET="$(openssl rand -base64 48)"',
        )
    return lambda _: secret


def _by_key_file(settings: Settings, algorithm: str) -> KeyOf:
    if settings.jwt_secret is not None:
        raise ConfigError(f"AMPRENTA_JWT_SECRET is set, and {algorithm} is verified by a file of keys", WHAT_TO_SET)
    settings.require("jwt_jwks_file")
    assert settings.jwt_jwks_file is not None  # noqa: S101 - for the type, it was just required
    keys = KeyFile(settings.jwt_jwks_file, algorithm)
    return lambda header: keys.key(header.get("kid"))
