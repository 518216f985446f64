"""``amprenta.toml``: a user's own vector tables, checked field by field."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.kinds import KeyKind
from amprenta_vectors.schema.vector_table import VectorTable

_PARAMETERS: dict[KeyKind, str | None] = {
    "identity": None,
    "uuid5": "uuid_namespace",
    "lookup": "lookup",
    "numbered": None,
    "split": "separator",
}
"""The field that each key map needs; None if it needs none."""

_KEY_RULE = {"key_map": "kind", "uuid_namespace": "uuid_namespace", "lookup": "lookup", "separator": "separator"}
"""The fields of a declaration that make up a table's key rule, with their names in `KeyRule`."""
_NOT_DECLARED = {
    "name",
    "key_rule",
    "filter_columns",
    "stats_view",
    "section",
    "declared",
    "column_types",
    "not_null",
    "to_fill",
    "overridden",
    "own_column",
    "beside",
}
_FIELDS = (*(field.name for field in fields(VectorTable) if field.name not in _NOT_DECLARED), *_KEY_RULE)


ROLES = frozenset({"text", "metadata", "model", "hash", "text_hash"})
OVERRIDABLE = (
    *sorted(ROLES),
    "holds",
    "metadata_text_field",
    "old",
    "rows",
    "schema",
    "source",
    "text_columns",
    "texts",
)
"""The fields of a shipped table that a file may say otherwise."""


def read_tables(path: Path, shipped: Mapping[str, VectorTable]) -> dict[str, VectorTable]:
    """Return the tables that a file declares, and those of ``shipped`` of which it says something otherwise.

    Raises `ConfigError` naming file, table, field, and what was expected.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="docs/tables.md shows one that can") from None
    unknown = [name for name in content if name != "tables"]
    declared = content.get("tables", {})
    if unknown or not isinstance(declared, dict) or not all(isinstance(item, dict) for item in declared.values()):
        found = ", ".join(unknown) or "tables"
        raise ConfigError(f"{path}: expected tables [tables.NAME] only, found {found}", hint="docs/tables.md shows one")
    tables = {
        name: _override(path, shipped[name], item) if name in shipped else _read_table(path, name, item)
        for name, item in declared.items()
    }
    targets: dict[str, str] = {}
    for name, table in tables.items():
        if table.target in targets:
            raise ConfigError(
                f"{path}: [tables.{targets[table.target]}] and [tables.{name}] are the same column {table.target}",
                hint="leave one of them out",
            )
        targets[table.target] = name
    return tables


def _override(path: Path, table: VectorTable, declared: Mapping[str, Any]) -> VectorTable:
    """Return a shipped table with what ``path`` says otherwise of it. Raises `ConfigError`."""
    unknown = [field for field in declared if field not in OVERRIDABLE]
    problems = [f"{field}: expected one of the fields {', '.join(OVERRIDABLE)}" for field in unknown]
    known = {field.name: getattr(table, field.name) for field in fields(VectorTable)}
    changed = {field: value for field, value in declared.items() if field in OVERRIDABLE}
    try:
        table = _adapter().validate_python({**known, **changed, "overridden": ROLES & set(changed)})
        problems += _contradictions(table)
    except ValidationError as error:
        problems += map(_to_text, error.errors())
    if problems:
        raise ConfigError(
            f"{path}: [tables.{table.name}] is a table of the package: {'; '.join(problems)}",
            hint=f"correct {path}, or give a table of your own another name",
        )
    return table


def _read_table(path: Path, name: str, declared: Mapping[str, Any]) -> VectorTable:
    rule = {part: declared[field] for field, part in _KEY_RULE.items() if field in declared}
    known = {field: value for field, value in declared.items() if field in _FIELDS and field not in _KEY_RULE}
    unknown = [field for field in declared if field not in _FIELDS]
    problems = [f"{field}: expected one of the fields {', '.join(_FIELDS)}" for field in unknown]
    try:
        table = _adapter().validate_python({**known, "name": name, "key_rule": rule, "declared": True})
        problems += _contradictions(table)
    except ValidationError as error:
        problems += map(_to_text, error.errors())
    if problems:
        listed = "; ".join(problems)
        raise ConfigError(
            f"{path}: [tables.{name}]: {listed}", hint=f"correct {path}, then: amprenta-vectors tables check {name}"
        )
    return table


@cache
def _adapter() -> TypeAdapter[VectorTable]:
    return TypeAdapter(VectorTable)


def _to_text(item: ErrorDetails) -> str:
    """Return one problem as text: the field, what was expected, and what was found."""
    field, *inner = map(str, item["loc"])
    if field == "key_rule":
        field = next(declared for declared, part in _KEY_RULE.items() if part == inner[0])
    if field in ("old", "texts"):
        field = ".".join((field, *inner))
    if item["type"] == "missing":
        return f"{field}: expected a value, found none"
    message = item["msg"].removeprefix("Value error, ")
    for theirs in ("Input should be", "Value should have", "Tuple should have"):
        message = message.replace(theirs, "expected")
    return f"{field}: {message}, found {item['input']!r}"


def _contradictions(table: VectorTable) -> Iterator[str]:
    """Yield what does not fit together in a declaration."""
    for check in (_of_columns, _of_scope, _of_sparse, _of_key_rule, _of_old, _of_texts):
        if problem := check(table):
            yield problem


def _of_columns(table: VectorTable) -> str | None:
    named = [*table.unique_columns, table.embedding, table.sparse, table.text, table.metadata, table.model]
    named += [table.hash, table.text_hash]
    twice = sorted({name for name in named if name is not None and named.count(name) > 1})
    return f"expected a column for each field, found {', '.join(twice)} in two of them" if twice else None


def _of_scope(table: VectorTable) -> str | None:
    unknown = [name for name in table.scope_values if name not in table.scope]
    if unknown:
        return f"scope_values: expected columns of scope, found {', '.join(unknown)}"
    free = table.namespace_columns
    if len(free) < 2:
        return None
    return (
        f"scope: expected one column that takes the namespace, found {', '.join(free)}; "
        "give the others their value under scope_values"
    )


def _of_sparse(table: VectorTable) -> str | None:
    if (table.sparse is None) == (table.sparse_dimension is None):
        return None
    given, other = ("sparse", "sparse_dimension") if table.sparse else ("sparse_dimension", "sparse")
    return f"{given}: expected {other} beside it, found none"


def _of_old(table: VectorTable) -> str | None:
    old = table.old
    if old is None:
        if table.source != "column":
            return None
        return 'old: expected old = { column = "…" } beside source = "column", found none'
    if old.table is None:
        beside = [name for name in ("schema", "key") if getattr(old, name)]
        if beside:
            return f"old.{beside[0]}: expected old.table with it, found none"
        if old.column in table.column_names:
            return f"old.column: expected a column that nothing else here names, found {old.column!r}"
    if old.key and len(old.key) != len(table.key):
        return f"old.key: expected a column for each of {', '.join(table.key)}, found {', '.join(old.key)}"
    return None


def _of_texts(table: VectorTable) -> str | None:
    texts = table.texts
    if texts is None:
        return None
    if len(texts.key) != len(table.key):
        return f"texts.key: expected a column for each of {', '.join(table.key)}, found {', '.join(texts.key)}"
    beside = "text" if table.text is not None else "text_columns" if table.text_columns else None
    return f"{beside}: expected none beside texts, found one" if beside else None


def _of_key_rule(table: VectorTable) -> str | None:
    rule, columns = table.key_rule, len(table.key)
    needed = _PARAMETERS[rule.kind]
    for kind, parameter in _PARAMETERS.items():
        if parameter is None:
            continue
        if parameter == needed and getattr(rule, parameter) is None:
            return f"key_map: expected {parameter} beside {kind!r}, found none"
        if parameter != needed and getattr(rule, parameter) is not None:
            return f"{parameter}: expected key_map = {kind!r} with it, found {rule.kind!r}"
    expected = {"identity": columns == 1, "uuid5": columns == 1, "numbered": columns == 2, "split": columns > 1}
    if expected.get(rule.kind, True):
        return None
    wanted = {"numbered": "two columns", "split": "two columns or more"}.get(rule.kind, "one column")
    return f"key: expected {wanted} for key_map = {rule.kind!r}, found {', '.join(table.key)}"
