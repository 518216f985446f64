"""One embedding column of one PostgreSQL table, as data that sink, store and verifier work from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Distance = Literal["cosine", "l2", "ip"]
Storage = Literal["vector", "halfvec"]

OPERATORS: dict[Distance, str] = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}


@dataclass(frozen=True)
class VectorTable:
    """A vector table: key, scope and embedding column, with the optional columns that stand beside them.

    There must be a unique index on exactly ``scope`` + ``key``. Every read and write binds every scope column. A column
    that the table does not have is None. ``dimension`` is the default for a column yet to be made; of a table read from
    the catalogue it is the column's own, and ``column_types`` has the SQL types of scope and key.
    ``metadata_text_field`` is the metadata field that a source keeps its text in.
    """

    name: str
    table: str
    key: tuple[str, ...]
    dimension: int
    schema: str | None = None
    scope: tuple[str, ...] = ()
    embedding: str = "embedding"
    text: str | None = None
    metadata: str | None = None
    model: str | None = None
    storage: Storage = "vector"
    distance: Distance = "cosine"
    metadata_text_field: str = "text"
    column_types: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def qualified_name(self) -> str:
        """``schema.table`` where a schema is named, for messages and logs."""
        return f"{self.schema}.{self.table}" if self.schema else self.table

    @property
    def target(self) -> str:
        """``schema.table.column``: what tells this vector table from every other."""
        return f"{self.qualified_name}.{self.embedding}"

    @property
    def unique_columns(self) -> tuple[str, ...]:
        """The columns that tell rows apart: scope, then key."""
        return self.scope + self.key

    def with_columns(self, **changes: object) -> VectorTable:
        """A copy with what the catalogue says in place of what was declared."""
        return replace(self, **changes)  # type: ignore[arg-type]
