"""``amprenta.toml``: a user's own vector tables, checked field by field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.types import Distance, Storage
from amprenta_vectors.schema.vector_table import KeyKind, KeyRule, SourceKind, VectorTable

_MAX_DIMENSION = 16_000
_MAX_SPARSE_DIMENSION = 1_000_000_000
"""pgvector's own limits for vector and sparsevec columns."""

_PARAMETERS: dict[KeyKind, str | None] = {
    "identity": None,
    "uuid5": "uuid_namespace",
    "lookup": "lookup",
    "numbered": None,
    "split": "separator",
}
"""The field that each key map needs."""


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _identifier(value: Any) -> Any:
    if isinstance(value, str) and not 0 < len(value.encode()) <= 63:
        raise ValueError("expected a name of 1 to 63 bytes")
    return value


Identifier = Annotated[str, BeforeValidator(_identifier)]
Columns = Annotated[list[Identifier], BeforeValidator(_one_or_more)]


class _Declared(BaseModel):
    """One ``[tables.NAME]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: Identifier | None = Field(None, alias="schema")
    table: Identifier
    key: Columns = Field(min_length=1)
    scope: Columns = []
    scope_values: dict[str, str] = {}
    embedding: Identifier = "embedding"
    text: Identifier | None = None
    metadata: Identifier | None = None
    model: Identifier | None = None
    dimension: int = Field(ge=1, le=_MAX_DIMENSION)
    storage: Storage = "vector"
    distance: Distance = "cosine"
    sparse: Identifier | None = None
    sparse_dimension: int | None = Field(None, ge=1, le=_MAX_SPARSE_DIMENSION)
    hash: Identifier | None = None
    text_hash: Identifier | None = None
    key_map: KeyKind = "identity"
    uuid_namespace: Annotated[UUID, Field(strict=False)] | None = None
    lookup: Identifier | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    metadata_text_field: str | None = None
    source: SourceKind = "pinecone"
    text_columns: Columns = []

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem in (self._of_columns(), self._of_scope(), self._of_sparse(), self._of_key_map()):
            if problem:
                raise ValueError(problem)
        return self

    def _of_columns(self) -> str | None:
        named = [*self.scope, *self.key, self.embedding, self.sparse, self.text, self.metadata, self.model]
        named += [self.hash, self.text_hash]
        twice = sorted({name for name in named if name is not None and named.count(name) > 1})
        return f"expected a column for each field, found {', '.join(twice)} in two of them" if twice else None

    def _of_scope(self) -> str | None:
        unknown = [name for name in self.scope_values if name not in self.scope]
        if unknown:
            return f"scope_values: expected columns of scope, found {', '.join(unknown)}"
        free = [name for name in self.scope if name not in self.scope_values]
        if len(free) < 2:
            return None
        return (
            f"scope: expected one column that takes the namespace, found {', '.join(free)}; "
            "give the others their value under scope_values"
        )

    def _of_sparse(self) -> str | None:
        if (self.sparse is None) == (self.sparse_dimension is None):
            return None
        given, other = ("sparse", "sparse_dimension") if self.sparse else ("sparse_dimension", "sparse")
        return f"{given}: expected {other} beside it, found none"

    def _of_key_map(self) -> str | None:
        needed = _PARAMETERS[self.key_map]
        for kind, parameter in _PARAMETERS.items():
            if parameter is None:
                continue
            if parameter == needed and getattr(self, parameter) is None:
                return f"key_map: expected {parameter} beside {kind!r}, found none"
            if parameter != needed and getattr(self, parameter) is not None:
                return f"{parameter}: expected key_map = {kind!r} with it, found {self.key_map!r}"
        columns = len(self.key)
        expected = {"identity": columns == 1, "uuid5": columns == 1, "numbered": columns == 2, "split": columns > 1}
        if expected.get(self.key_map, True):
            return None
        wanted = {"numbered": "two columns", "split": "two columns or more"}.get(self.key_map, "one column")
        return f"key: expected {wanted} for key_map = {self.key_map!r}, found {', '.join(self.key)}"

    def to_table(self, name: str) -> VectorTable:
        """As the rest of the package knows it."""
        return VectorTable(
            name=name,
            schema=self.schema_,
            table=self.table,
            key=tuple(self.key),
            scope=tuple(self.scope),
            scope_values=self.scope_values,
            embedding=self.embedding,
            text=self.text,
            metadata=self.metadata,
            model=self.model,
            dimension=self.dimension,
            storage=self.storage,
            distance=self.distance,
            sparse=self.sparse,
            sparse_dimension=self.sparse_dimension,
            hash=self.hash,
            text_hash=self.text_hash,
            key_rule=KeyRule(self.key_map, self.uuid_namespace, self.lookup, self.separator),
            metadata_text_field=self.metadata_text_field,
            source=self.source,
            text_columns=tuple(self.text_columns),
            declared=True,
        )


def read_tables(path: Path) -> dict[str, VectorTable]:
    """The tables that a file declares. Raises `ConfigError` naming file, table, field, and what was expected."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="docs/tables.md shows one that can") from None
    unknown = [name for name in content if name != "tables"]
    declared = content.get("tables", {})
    if unknown or not isinstance(declared, dict) or not all(isinstance(item, dict) for item in declared.values()):
        found = ", ".join(unknown) or "tables"
        raise ConfigError(f"{path}: expected tables [tables.NAME] only, found {found}", hint="docs/tables.md shows one")
    tables = {name: _read_table(path, name, fields) for name, fields in declared.items()}
    targets: dict[str, str] = {}
    for name, table in tables.items():
        if table.target in targets:
            raise ConfigError(
                f"{path}: [tables.{targets[table.target]}] and [tables.{name}] are the same column {table.target}",
                hint="leave one of them out",
            )
        targets[table.target] = name
    return tables


def _read_table(path: Path, name: str, fields: Mapping[str, Any]) -> VectorTable:
    try:
        return _Declared.model_validate(fields).to_table(name)
    except ValidationError as error:
        problems = "\n".join(f"  {_to_text(item)}" for item in error.errors())
        raise ConfigError(
            f"{path}: [tables.{name}]\n{problems}", hint=f"correct {path}, then: amprenta-vectors tables check {name}"
        ) from None


def _to_text(item: ErrorDetails) -> str:
    """One problem: the field, what was expected, and what was found."""
    field = str(item["loc"][0]) if item["loc"] else ""
    match item["type"]:
        case "missing":
            return f"{field}: expected a value, found none"
        case "extra_forbidden":
            known = ", ".join(info.alias or known for known, info in _Declared.model_fields.items())
            return f"{field}: expected one of the fields {known}"
        case "value_error" if not field:
            return item["msg"].removeprefix("Value error, ")
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{field}: {message}, found {item['input']!r}"
