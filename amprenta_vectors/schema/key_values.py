"""The text of a key in its column's one spelling, so that keys can be compared and found again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

_UUID = re.compile(r"(\{)?((?:[0-9a-f]{4}-?){7}[0-9a-f]{4})(?(1)\})", re.IGNORECASE | re.ASCII)
"""The spellings that PostgreSQL reads: any case, braces, a hyphen after any group of four digits, or none."""

_CANONICAL_UUIDS = re.compile(r"(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\n)+")

_PREFIXED = re.compile(
    r"(?P<prefix>(?:.*[^0-9a-z{])??)(?:(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}|\{(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}\})",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)

_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)

_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}

_SURELY_FIT = {16: 4, 32: 9, 64: 18}
"""The digits of which every number fits: most keys are told by them, in a third of the time."""


def canonical(text: str, type_name: str) -> str | None:
    """Return ``text`` as PostgreSQL writes the value in a column of ``type_name``; None if it is no such value.

    Every spelling of a UUID is that UUID. An integer has one spelling: ``042`` is not one, because it would be the same
    row as ``42``, which may be another record. Text stays as it is, and so do values of types not known here:
    PostgreSQL decides, row by row, whether they are valid.
    """
    if "\0" in text:
        return None
    if type_name == "uuid":
        found = _UUID.fullmatch(text)
        return str(UUID(hex=found[2].replace("-", ""))) if found else None
    bits = _INTEGER_BITS.get(type_name)
    if bits is None or (len(text) <= _SURELY_FIT[bits] and text.isdecimal() and text.isascii() and text[0] != "0"):
        return text
    # A text longer than any bigint is not converted to a number.
    fits = _INTEGER.fullmatch(text) and len(text) <= 20 and -(2 ** (bits - 1)) <= int(text) < 2 ** (bits - 1)
    return text if fits else None


def are_canonical(texts: Sequence[str], type_name: str) -> bool:
    """Return whether `canonical` returns each of ``texts`` as it is, by a look at all of them at once.

    That takes a tenth of the time; False may also mean that this look is too short to tell.
    """
    if not texts:
        return True
    bits = _INTEGER_BITS.get(type_name)
    if bits is not None:
        joined = "".join(texts)
        # A text that is empty or begins with 0 comes before "1".
        plain = joined.isdecimal() and joined.isascii() and min(texts) >= "1"
        return plain and max(map(len, texts)) <= _SURELY_FIT[bits]
    if type_name == "uuid":
        return _CANONICAL_UUIDS.fullmatch("\n".join([*texts, ""])) is not None
    return "\0" not in "".join(texts)


def is_checked(type_name: str) -> bool:
    """Return whether every text that `canonical` passes is a value of that type."""
    return type_name in {"uuid", "text", "character varying", "bpchar", *_INTEGER_BITS}


def split_prefix(text: str) -> tuple[str, str] | None:
    """Return the prefix and the UUID, in any spelling, that ``text`` ends in; None if it does not end in one.

    A prefix, ``product_`` say, is empty or ends in what is neither letter nor digit.
    """
    found = _PREFIXED.fullmatch(text)
    return (found["prefix"], text[found.end("prefix") :]) if found else None
