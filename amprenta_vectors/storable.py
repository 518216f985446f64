"""Texts and metadata that PostgreSQL cannot hold: the NUL character, and the numbers that JSON has not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from amprenta_vectors.reasons import Reason

HINT = "--nul strip, or AMPRENTA_NUL=strip, carries it over without (NaN as null)"


def fault_of(text: str | None, metadata: Mapping[str, Any] | None) -> tuple[Reason, str] | None:
    """Return why PostgreSQL cannot hold a row's text or metadata; None if it can."""
    if (text is not None and "\0" in text) or _holds(metadata, _has_nul):
        return Reason.NUL, "text or metadata has a NUL character"
    if _holds(metadata, _is_no_json):
        return Reason.NOT_JSON, "the metadata is no JSON: it has NaN or an infinite number, which JSON has not"
    return None


def strip(text: str | None, metadata: Mapping[str, Any] | None) -> tuple[str | None, Mapping[str, Any] | None, str]:
    """Return text and metadata as PostgreSQL can hold them, and what was changed.

    NUL characters are left out, NaN and infinite numbers become null. Raises `ValueError` if two fields of one object
    have the same name without their NUL characters.
    """
    changed = [f"{text.count(chr(0))} NUL characters in the text"] if text is not None and "\0" in text else []
    changed += ["NUL characters in the metadata"] if _holds(metadata, _has_nul) else []
    changed += ["NaN or infinite numbers in the metadata, now null"] if _holds(metadata, _is_no_json) else []
    return text and text.replace("\0", ""), _stripped(metadata), ", ".join(changed)


def _holds(value: Any, test: Any) -> bool:
    if isinstance(value, Mapping):
        return any(test(name) or _holds(item, test) for name, item in value.items())
    if isinstance(value, list | tuple):
        return any(_holds(item, test) for item in value)
    return bool(test(value))


def _has_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_no_json(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _stripped(value: Any) -> Any:
    if isinstance(value, Mapping):
        made = {name.replace("\0", ""): _stripped(item) for name, item in value.items()}
        if len(made) < len(value):
            raise ValueError("two fields have one name without their NUL characters")
        return made
    if isinstance(value, list | tuple):
        return [_stripped(item) for item in value]
    if isinstance(value, str):
        return value.replace("\0", "")
    return None if _is_no_json(value) else value
