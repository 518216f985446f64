"""Who is let in, and what is said to everybody else."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from http_service import SECRET, TOKENS, InMemoryModels, bearer, claims, is_problem, served

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.service.tokens import open_verifier

SEARCH = "/api/v1/search"
LISTED = "/api/v1/models/search"


def encoded(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def unsigned(header: object, payload: object, signature: str = "") -> str:
    return f"{encoded(header)}.{encoded(payload)}.{signature}"


def signed(algorithm: str = "HS256", key: Any = SECRET, headers: dict[str, Any] | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers)


RSA = rsa.generate_private_key(65537, 2048)
RSA_NEXT = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, kid: str | None, **more: str) -> dict[str, Any]:
    """The public part of a key as JWKS has it."""
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    found: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    return found | ({"kid": kid} if kid else {}) | more


def write_keys(path: Path, *keys: dict[str, Any]) -> Path:
    """Replace a file of keys at once, as a rotation does."""
    beside = path.with_suffix(".next")
    beside.write_text(json.dumps({"keys": keys}))
    beside.replace(path)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(InMemoryModels(), **TOKENS) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address) as client:
        yield client


WITH_SECRET: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned({"alg": "none", "typ": "JWT"}, claims()),
    "alg None": lambda: unsigned({"alg": "None"}, claims()),
    "alg missing": lambda: unsigned({"typ": "JWT"}, claims(), "AAAA"),
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "two parts": lambda: signed().rpartition(".")[0],
    "another secret": lambda: signed(key="another secret that is as long as the first one"),
    "another algorithm with the secret": lambda: signed("HS512", SECRET * 2),
    "RS256": lambda: signed("RS256", RSA, {"kid": "one"}),
    "expired": lambda: signed(exp=int(time.time()) - 60),
    "expired long ago": lambda: signed(exp=1),
    "never expires": lambda: signed(exp=None),
    "expires at no number": lambda: signed(exp="later"),
    "expires at null": lambda: unsigned({"alg": "HS256"}, {**claims(), "exp": None}, "AAAA"),
    "not yet": lambda: signed(nbf=int(time.time()) + 600),
    "foreign issuer": lambda: signed(iss="https://issuer.example.evil"),
    "no issuer": lambda: signed(iss=None),
    "several issuers": lambda: signed(iss=None, issuer="https://issuer.example"),
    "foreign audience": lambda: signed(aud="searching"),
    "no audience": lambda: signed(aud=None),
    "other audiences": lambda: signed(aud=["a", "b"]),
    "payload changed": lambda: ".".join([*signed().split(".")[:1], encoded(claims(sub="x")), signed().split(".")[2]]),
    "payload a list": lambda: jwt.api_jws.encode(b"[]", SECRET),
    "payload no JSON": lambda: jwt.api_jws.encode(b"\xff", SECRET),
    "critical header": lambda: signed(headers={"crit": ["exp"]}),
    "garbage": lambda: "garbage",
    "dots": lambda: "....",
    "deep header": lambda: unsigned(b"[" * 20_000, claims(), "AAAA"),
    "long": lambda: "a" * 30_000,
    "kid of another kind": lambda: unsigned({"alg": "HS256", "kid": {"a": 1}}, claims(), "AAAA"),
}


@pytest.mark.parametrize("made", WITH_SECRET.values(), ids=WITH_SECRET)
def test_a_token_that_is_not_ours_now_is_401_and_is_not_told_why(client: httpx.Client, made: Callable[[], str]) -> None:
    answer = client.get(LISTED, headers=bearer(made()))
    problem = is_problem(answer, 401)
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert problem == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "a valid bearer token is required",
    }


@pytest.mark.parametrize(
    "changed",
    [{}, {"aud": ["others", "search"]}, {"nbf": 1}, {"iat": int(time.time())}],
    ids=lambda found: str(list(found)),
)
def test_a_token_of_our_issuer_for_us_is_let_in(client: httpx.Client, changed: dict[str, Any]) -> None:
    assert client.get(LISTED, headers=bearer(signed(**changed))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", f"Basic {signed()}")],
        [("Authorization", signed())],
        [("Authorization", f"Bearer {signed()}"), ("Authorization", f"Bearer {signed()}")],
        [("Proxy-Authorization", f"Bearer {signed()}")],
        [("Cookie", f"access_token={signed()}")],
    ],
    ids=lambda headers: " ".join(f"{name} {value[:8]}" for name, value in headers),
)
def test_without_one_token_in_its_place_it_is_401(client: httpx.Client, headers: list[tuple[str, str]]) -> None:
    answer = client.get(LISTED, headers=headers, params={"access_token": signed()})
    is_problem(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_scheme_is_known_in_any_case(client: httpx.Client) -> None:
    assert client.get(LISTED, headers={"Authorization": f"bEaReR {signed()}"}).status_code == 200


def test_who_has_no_token_learns_of_no_address_and_is_read_nothing_from(client: httpx.Client) -> None:
    for method, path in (("GET", "/api/v1/nothing"), ("GET", "/"), ("DELETE", SEARCH), ("GET", "/health/../api")):
        is_problem(client.request(method, path), 401)
    # 401 and neither 413 nor 422: nothing was looked at.
    is_problem(client.post(SEARCH, content=b"x" * 10**6), 401)
    is_problem(client.post(SEARCH, json={}), 401)
    for path in ("/health", "/health/ready", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(("algorithm", "key"), [("RS256", RSA), ("ES256", EC)])
def test_the_key_is_chosen_by_its_kid_and_verifies_its_algorithm_only(tmp_path: Path, algorithm: str, key: Any) -> None:
    keys = write_keys(tmp_path / "keys.json", public(RSA_NEXT, "other"), public(RSA, "rsa"), public(EC, "ec"))
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    kid = "rsa" if algorithm == "RS256" else "ec"
    verifier = open_verifier(by_file(keys, algorithm))
    assert verifier is not None
    assert verifier.accepts(signed(algorithm, key, {"kid": kid}))
    # By the public key as a secret, which whoever has the file could do.
    forged = unsigned({"alg": "HS256", "kid": kid}, claims())
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    refused = [
        f"{forged}{encoded(hmac.sign(forged.rstrip('.').encode(), pem))}",
        signed(algorithm, key),
        signed(algorithm, key, {"kid": "nobody"}),
        signed(algorithm, key, {"kid": "other"}),
        signed("RS512", RSA, {"kid": "rsa"}),
        signed("PS256", RSA, {"kid": "rsa"}),
        signed("ES256", EC, {"kid": "rsa"}),
        signed("RS256", RSA, {"kid": "ec"}),
        unsigned({"alg": "none", "kid": kid}, claims()),
        signed(algorithm, key, {"kid": kid}, exp=1),
        unsigned({"alg": algorithm, "kid": [kid]}, claims(), "AAAA"),
    ]
    assert [verifier.accepts(each) for each in refused] == [False] * len(refused)


def test_keys_are_rotated_without_a_restart_and_a_broken_file_locks_nobody_out(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", public(RSA, "one"))
    first, second = (signed("RS256", key, {"kid": kid}) for key, kid in ((RSA, "one"), (RSA_NEXT, "two")))
    settings = {**TOKENS, "jwt_algorithm": "RS256", "jwt_secret": None, "jwt_jwks_file": path}
    with served(InMemoryModels(), **settings) as address:

        def let_in() -> list[bool]:
            return [httpx.get(address + LISTED, headers=bearer(each)).status_code == 200 for each in (first, second)]

        assert let_in() == [True, False]
        write_keys(path, public(RSA, "one"), public(RSA_NEXT, "two"))
        assert let_in() == [True, True]
        # Half of a file, or none.
        path.write_text('{"keys": [')
        assert let_in() == [True, True]
        path.unlink()
        assert let_in() == [True, True]
        write_keys(path, public(RSA_NEXT, "two"))
        assert let_in() == [False, True]


def by_file(path: Path, algorithm: str = "RS256") -> Settings:
    return Settings.load(**TOKENS | {"jwt_algorithm": algorithm, "jwt_secret": None, "jwt_jwks_file": path})


SMALL_KEY = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "no set of JSON web keys"),
        (b"[]", "no set of JSON web keys"),
        (b'{"keys": 1}', "no set of JSON web keys"),
        (b'{"keys": ["SECRET"]}', "no set of JSON web keys"),
        (b'{"keys": [' + b"[" * 20_000, "no set of JSON web keys"),
        (b'{"keys": [{"kty": "RSA", "kid": "a", "n": "SECRET", "e": 1}]}', "no set of JSON web keys"),
        (b'{"keys": []}', "no key with a kid verifies RS256"),
        (json.dumps({"keys": [public(RSA, None)]}).encode(), "no key with a kid verifies RS256"),
        (json.dumps({"keys": [public(EC, "a")]}).encode(), "no key with a kid verifies RS256"),
        (json.dumps({"keys": [public(RSA, "a", alg="RS512")]}).encode(), "no key with a kid verifies RS256"),
        (json.dumps({"keys": [public(RSA, "a", use="enc")]}).encode(), "no key with a kid verifies RS256"),
        (b'{"keys": [{"kty": "oct", "kid": "a", "k": "SECRET"}]}', "no key with a kid verifies RS256"),
        (json.dumps({"keys": [public(RSA, "a"), public(RSA_NEXT, "a")]}).encode(), "two keys have the same kid"),
        (json.dumps({"keys": [public(SMALL_KEY, "a")]}).encode(), "fewer than 2048 bits"),
        (json.dumps({"keys": [public(RSA, "a", d="SECRET")]}).encode(), "it has a private key"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_when_the_service_starts(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_verifier(by_file(path))
    assert said in caught.value.message
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("missing", ["jwt_algorithm", "jwt_secret", "jwt_issuer", "jwt_audience"])
def test_a_setting_of_tokens_that_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"AMPRENTA_{missing.upper()} is not set"):
        open_verifier(Settings.load(**TOKENS | {missing: None}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"jwt_secret": "x" * 31}, "AMPRENTA_JWT_SECRET has 31 bytes; expected 32 or more"),
        ({"jwt_jwks_file": "keys.json"}, "AMPRENTA_JWT_JWKS_FILE is set"),
        ({"jwt_algorithm": "RS256", "jwt_jwks_file": "keys.json"}, "AMPRENTA_JWT_SECRET is set"),
        ({"jwt_algorithm": "RS256", "jwt_secret": None}, "AMPRENTA_JWT_JWKS_FILE is not set"),
        ({"jwt_algorithm": "none"}, "AMPRENTA_JWT_ALGORITHM"),
        ({"jwt_algorithm": "HS512"}, "AMPRENTA_JWT_ALGORITHM"),
    ],
)
def test_settings_of_tokens_that_contradict_each_other_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_verifier(Settings.load(**TOKENS | changed))
    assert SECRET not in str(caught.value)
    assert "x" * 31 not in str(caught.value)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_without_tokens_only_this_machine_is_answered_by_its_own_names(host: str) -> None:
    with served(InMemoryModels()) as address:
        for own in (None, "localhost", "127.0.0.1:8000", "[::1]:8000"):
            assert httpx.get(address + LISTED, headers={"Host": own} if own else {}).status_code == 200
        is_problem(httpx.get(address + LISTED, headers={"Host": host}), 421)
