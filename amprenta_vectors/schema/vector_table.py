"""One embedding column of one PostgreSQL table, as data that everything on its rows works from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated
from uuid import UUID

from pydantic import Field

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.types import Distance, Storage
from amprenta_vectors.schema.kinds import KeyKind, RowOwner, SourceKind
from amprenta_vectors.schema.names import Columns, Identifier
from amprenta_vectors.schema.old_column import OldColumn
from amprenta_vectors.schema.text_table import TextTable

_MAX_DIMENSION = 16_000
_MAX_SPARSE_DIMENSION = 1_000_000_000
"""pgvector's own limits for vector and sparsevec columns."""

UPDATED_AT = "updated_at"
"""A column of this name moves with every write, and so says nothing of what was written."""

OPERATORS: dict[Distance, str] = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}


@dataclass(frozen=True)
class KeyRule:
    """How a source key becomes the table's key, and the one parameter that a kind takes.

    ``identity``: the source key is the key. ``uuid5``: the UUID of ``uuid_namespace`` and scope and source key.
    ``lookup``: the rows whose column ``lookup`` holds the source key. ``numbered``: source key and a number from 0.
    ``split``: the parts of the source key between ``separator``.

    With ``id_field``, a lookup takes a UUID after a prefix for that UUID (``product_…``), and if the source key ends in
    no UUID, the one in that field of the record's metadata.
    """

    kind: KeyKind = "identity"
    uuid_namespace: UUID | None = None
    lookup: Identifier | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    id_field: str | None = None


@dataclass(frozen=True)
class VectorTable:
    """A vector table: key, scope and embedding column, with the optional columns that stand beside them.

    There must be a unique index on exactly ``scope`` + ``key``. Every read and write binds every scope column. A column
    that the table does not have is None here. ``dimension`` is the default for a column yet to be made; of a table read
    from the catalogue it is the column's own, and ``column_types`` has the SQL types of scope, key and look-up column.
    ``metadata_text_field`` is the metadata field that a source keeps its text in; None takes the settings' field.
    ``scope_values`` fixes the value of scope columns; the others take the source's namespace. ``sparse`` is a
    ``sparsevec(sparse_dimension)`` beside the embedding. ``hash`` and ``text_hash`` are bigint columns in which the
    engine keeps what it wrote, as `amprenta_vectors.schema.hashes` makes them; NULL in rows that it did not write.
    ``source`` is the kind of source that fills the table if the settings name none. ``text_columns`` are the columns
    whose text is embedded if the rows themselves are the source; empty means the ``text`` column. ``texts`` is where
    these texts lie, if that is another table. ``old`` is the column
    that embeddings already lie in, if that is the source. ``filter_columns``
    maps the fields of a filter that are columns of the table to these columns; for a table from the catalogue, only the
    columns that it has, with their types in ``column_types``. ``rows`` says whose they are: of an application's row
    only our columns are written, and what the caller of a store gave. ``holds`` is the
    one namespace that a table without a column for it holds. ``stats_view`` is a materialised view that counts
    its embeddings; ``section`` is the section of ``alembic.ini`` (``alembic -n``) that creates it, None for the default
    section. A ``declared`` table has every column that it names, and the dimension and storage that it says; a shipped
    one is taken as it is found. Of a table from the catalogue, ``not_null`` are the columns that cannot be NULL, and
    ``to_fill`` those of them that have no default and that this description has no value for: no row can be inserted,
    unless a trigger gives them one. ``overridden`` are the roles whose columns `amprenta.toml` names for a shipped
    table: those must be there. Of the column of another model (`amprenta_vectors.schema.models`), ``own_column`` is the
    embedding column of the table itself. Of a table from the catalogue, ``beside`` are the columns that other models
    have in its rows.
    """

    name: str
    table: Identifier
    key: Annotated[Columns, Field(min_length=1)]
    dimension: Annotated[int, Field(strict=True, ge=1, le=_MAX_DIMENSION)]
    schema: Identifier | None = None
    scope: Columns = ()
    embedding: Identifier = "embedding"
    text: Identifier | None = None
    metadata: Identifier | None = None
    model: Identifier | None = None
    storage: Storage = "vector"
    distance: Distance = "cosine"
    metadata_text_field: str | None = None
    sparse: Identifier | None = None
    sparse_dimension: Annotated[int, Field(strict=True, ge=1, le=_MAX_SPARSE_DIMENSION)] | None = None
    hash: Identifier | None = None
    text_hash: Identifier | None = None
    key_rule: KeyRule = KeyRule()
    source: SourceKind = "pinecone"
    rows: RowOwner = "application"
    holds: str | None = None
    text_columns: Columns = ()
    texts: TextTable | None = None
    old: OldColumn | None = None
    scope_values: Mapping[str, str] = field(default_factory=dict)
    filter_columns: Mapping[str, str] = field(default_factory=dict)
    stats_view: str | None = None
    section: str | None = None
    declared: bool = False
    column_types: Mapping[str, str] = field(default_factory=dict, compare=False)
    not_null: frozenset[str] = field(default=frozenset(), compare=False)
    to_fill: tuple[str, ...] = field(default=(), compare=False)
    overridden: frozenset[str] = frozenset()
    own_column: Identifier | None = None
    beside: tuple[str, ...] = field(default=(), compare=False)

    @property
    def qualified_name(self) -> str:
        """The table's name for messages and logs, with its schema if one is named."""
        return f"{self.schema}.{self.table}" if self.schema else self.table

    @property
    def target(self) -> str:
        """The name of this vector table, unlike every other's: ``schema.table.column``."""
        return f"{self.qualified_name}.{self.embedding}"

    @property
    def own_target(self) -> str:
        """The target of the table's own embedding column, by which its rows and models are known."""
        return f"{self.qualified_name}.{self.own_column or self.embedding}"

    @property
    def unique_columns(self) -> tuple[str, ...]:
        """The columns that tell rows apart: scope, then key."""
        return self.scope + self.key

    @property
    def namespace_columns(self) -> tuple[str, ...]:
        """The scope columns that hold the source's namespace; empty if the table holds one namespace."""
        return tuple(name for name in self.scope if name not in self.scope_values)

    @property
    def old_names(self) -> tuple[str, ...]:
        """The column that embeddings already lie in, if it is one of this table."""
        return () if self.old is None or self.old.table is not None else (self.old.column,)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Every column that this table names, each once."""
        names = (*self.unique_columns, self.embedding, self.sparse, self.text, self.metadata, self.model)
        names = (*names, self.hash, self.text_hash)
        return tuple(dict.fromkeys(name for name in (*names, self.key_rule.lookup) if name is not None))

    def scope_for(self, namespace: str) -> dict[str, str]:
        """Return the value of each scope column for a namespace of the source, which joins several values by ``/``.

        Raises `ConfigError` if the namespace does not have as many parts as there are columns.
        """
        free = self.namespace_columns
        parts = namespace.split("/") if len(free) > 1 else [namespace] * len(free)
        if len(parts) != len(free):
            raise ConfigError(
                f"table {self.name} has the scope columns {', '.join(free)}; the namespace is {namespace!r}",
                hint=f"--namespace {'/'.join(free).upper()}, or a value under scope_values in amprenta.toml",
            )
        values = {**self.scope_values, **dict(zip(free, parts, strict=True))}
        return {name: values[name] for name in self.scope}

    def with_columns(self, **changes: object) -> VectorTable:
        """Return a copy with what the catalogue says in place of what was declared."""
        return replace(self, **changes)  # type: ignore[arg-type]
