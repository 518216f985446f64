"""The checks that every store makes of the keys and records it is given, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.stores.filters.values import is_storable
from amprenta_vectors.stores.protocol import Record

MAX_NESTING = 100
"""Levels to which the values of a metadata field may nest: our own limit, within which no library runs out of stack."""


def possible_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys, each once, without those that no store can hold and that so cannot exist.

    Raises `ConfigError` for one text in place of several, and for a key that is none.
    """
    if isinstance(keys, str | bytes):
        raise ConfigError(f"keys are {keys!r}; expected several", hint=f"[{keys!r}]")
    keys = list(keys)
    for key in keys:
        if not isinstance(key, str):
            raise ConfigError(f"a key is {key!r}, of type {type(key).__name__}; expected str", hint=f"{str(key)!r}")
    return [key for key in dict.fromkeys(keys) if is_storable(key)]


def latest_records(records: Iterable[Record]) -> list[Record]:
    """Return the records, the last of those that share a key, in the order in which each key came first.

    Metadata that is None is empty. Raises `ConfigError` for what is no record, `RowError` for the first whose key, text
    or metadata no store can hold.
    """
    latest: dict[str, Record] = {}
    for record in records:
        if not isinstance(record, Record):
            found = type(record).__name__
            raise ConfigError(f"expected records; got {found}", hint="Record(key, vector, text, metadata)")
        _check(record)
        latest[record.key] = record if record.metadata is not None else replace(record, metadata={})
    return list(latest.values())


def _check(record: Record) -> None:
    key, text, metadata = record.key, record.text, record.metadata
    if not isinstance(key, str):
        raise RowError(key, Reason.REFUSED, f"its key is of type {type(key).__name__}; expected str")
    if not key or not is_storable(key):
        raise RowError(key, Reason.REFUSED, "its key is empty, or has a NUL character or half a surrogate")
    if text is not None and not isinstance(text, str):
        raise RowError(key, Reason.REFUSED, f"its text is of type {type(text).__name__}; expected str")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise RowError(key, Reason.REFUSED, f"its metadata is of type {type(metadata).__name__}; expected a mapping")
    if fault := _fault_of(metadata, 0):
        raise RowError(key, Reason.REFUSED, fault)


def _fault_of(value: Any, depth: int) -> str | None:
    if depth > MAX_NESTING:
        return f"its metadata nests deeper than {MAX_NESTING} levels, or holds itself"
    if isinstance(value, Mapping):
        # JSON would have it as text, where another field may have that name.
        odd = next((name for name in value if not isinstance(name, str)), None)
        if odd is not None:
            return f"its metadata has a field named {odd!r}, of type {type(odd).__name__}; expected str"
        value = value.values()
    elif not isinstance(value, list | tuple):
        return None
    return next((fault for item in value if (fault := _fault_of(item, depth + 1))), None)
