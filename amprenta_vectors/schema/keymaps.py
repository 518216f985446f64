"""How a source key finds its rows: one key map a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.batch import Key, Reason, VectorBatch
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.schema.expressions import among, in_scope, to_clause
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.vector_table import VectorTable


class KeyMap(Protocol):
    """Turns the source key of every row of a batch into 0…n target keys."""

    @property
    def name(self) -> str:
        """What tells this rule from the others; part of a run's fingerprint."""
        ...

    @property
    def makes_keys(self) -> bool:
        """Whether a key is made of the source key alone, so that a row which is not there can be inserted."""
        ...

    @property
    def source_columns(self) -> Sequence[str] | None:
        """The columns that `to_source` is given the values of; None: the key columns."""
        ...

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """The batch with ``keys`` set; rows without a target key have moved to ``rejected``."""
        ...

    def to_source(self, key: Key) -> str:
        """The source key of a row, for runs whose keys come from the table. Raises `ConfigError` where it is lost."""
        ...


class _MadeOfKeys:
    """A key map that makes the one target key of a row from its source key, and nothing else."""

    makes_keys = True
    source_columns: Sequence[str] | None = None

    def __init__(self, types: Sequence[str] = ()) -> None:
        self._types = types

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """The batch with a key for every row that has one; of two ids that are one key, the first counts."""
        return _with_keys(batch, [self._to_key(source) for source in batch.source_keys])

    def _to_key(self, source_key: str) -> Key | str:
        """The key, or why there is none."""
        raise NotImplementedError

    def _typed(self, parts: Sequence[str]) -> Key | str:
        """``parts`` as the key columns take them."""
        key: list[str] = []
        for position, part in enumerate(parts):
            type_name = self._types[position] if self._types else "text"
            value = canonical(part, type_name)
            if value is None:
                return f"{part!r} is no {type_name}"
            key.append(value)
        return tuple(key)


class Identity(_MadeOfKeys):
    """The target key is the source key, as the key column's type spells it."""

    name = "identity"

    def _to_key(self, source_key: str) -> Key | str:
        return self._typed((source_key,))

    def to_source(self, key: Key) -> str:
        """The key itself, as PostgreSQL spells it."""
        return key[0]


class Uuid5(_MadeOfKeys):
    """The target key is the version 5 UUID of a namespace and the scope's values and source key, joined by ``/``."""

    def __init__(self, namespace: UUID, scope: Mapping[str, str]) -> None:
        super().__init__()
        self._namespace = namespace
        self._scope = tuple(scope.values())

    @property
    def name(self) -> str:
        """With its namespace."""
        return f"uuid5:{self._namespace}"

    def _to_key(self, source_key: str) -> Key | str:
        return (str(uuid5(self._namespace, "/".join((*self._scope, source_key)))),)

    def to_source(self, key: Key) -> str:
        """Raises `ConfigError`: a hash has no way back."""
        raise ConfigError(
            "the keys of this table are uuid5, which cannot be turned back into ids of the source",
            hint='--keys-from source; or key_map = "lookup" where a column holds the ids',
        )


class Split(_MadeOfKeys):
    """The parts of the source key between a separator, counted from its end: the first column takes what is left."""

    def __init__(self, separator: str, columns: int, types: Sequence[str] = ()) -> None:
        super().__init__(types)
        self._separator = separator
        self._columns = columns

    @property
    def name(self) -> str:
        """With its separator."""
        return f"split:{self._separator}"

    def _to_key(self, source_key: str) -> Key | str:
        parts = source_key.rsplit(self._separator, self._columns - 1)
        if len(parts) != self._columns:
            return f"{len(parts)} parts between {self._separator!r}; expected {self._columns}"
        return self._typed(parts)

    def to_source(self, key: Key) -> str:
        """The parts joined again."""
        return self._separator.join(key)


class Numbered:
    """The target key is the source key and the number of the row among those of that key, from 0, in fetched order."""

    name = "numbered"
    makes_keys = True
    source_columns: Sequence[str] | None = None

    def __init__(self, type_name: str = "text") -> None:
        self._type = type_name

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Number the rows of every source key."""
        seen: dict[str, int] = {}
        keys: list[Key | str] = []
        for source_key in batch.source_keys:
            number = seen.get(source_key, 0)
            seen[source_key] = number + 1
            part = canonical(source_key, self._type)
            keys.append(f"{source_key!r} is no {self._type}" if part is None else (part, str(number)))
        return _with_keys(batch, keys)

    def to_source(self, key: Key) -> str:
        """The part before the number."""
        return key[0]


class LookUp:
    """The keys of the rows, of one scope, whose look-up column holds the source key: none, one or several."""

    makes_keys = False

    def __init__(self, engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> None:
        if table.key_rule.lookup is None:
            raise ValueError(f"table {table.name} names no look-up column")
        self._engine = engine
        self._table = table
        self._scope = scope
        self._column = table.key_rule.lookup
        self.source_columns: Sequence[str] | None = (self._column,)

    @property
    def name(self) -> str:
        """With its column."""
        return f"lookup:{self._column}"

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """The rows found, with one statement; a source key that no row holds is set aside."""
        type_name = self._table.column_types[self._column]
        values = {source: canonical(source, type_name) for source in dict.fromkeys(batch.source_keys)}
        found = self._find([value for value in values.values() if value is not None])
        positions: list[int] = []
        keys: list[Key] = []
        rejected = list(batch.rejected)
        for position, source in enumerate(batch.source_keys):
            rows = found.get(values[source] or "", []) if values[source] is not None else []
            positions += [position] * len(rows)
            keys += rows
            if not rows:
                rejected.append(RowError(source, Reason.NO_TARGET, f"no row of this scope has it in {self._column}"))
        return replace(batch.take(positions, keys), rejected=tuple(rejected))

    def _find(self, values: Sequence[str]) -> dict[str, list[Key]]:
        table = self._table
        target = to_clause(table)
        columns = [sa.cast(target.c[name], sa.Text) for name in (self._column, *table.key)]
        statement = sa.select(*columns).where(
            among(table, target, self._column, values), *in_scope(table, target, self._scope)
        )
        found: dict[str, list[Key]] = {}
        with self._engine.connect() as connection:
            for value, *key in connection.execute(statement.order_by(*(target.c[name] for name in table.key))):
                found.setdefault(value, []).append(tuple(key))
        return found

    def to_source(self, key: Key) -> str:
        """What the look-up column holds."""
        return key[0]


def open_key_map(table: VectorTable, scope: Mapping[str, str], engine: Engine) -> KeyMap:
    """The key map of a table from the catalogue, for one scope."""
    rule = table.key_rule
    types = [table.column_types[name] for name in table.key]
    if rule.kind == "uuid5" and rule.uuid_namespace is not None:
        return Uuid5(rule.uuid_namespace, scope)
    if rule.kind == "split" and rule.separator is not None:
        return Split(rule.separator, len(table.key), types)
    if rule.kind == "numbered":
        return Numbered(types[0])
    if rule.kind == "lookup":
        return LookUp(engine, table, scope)
    return Identity(types)


def check_invertible(key_map: KeyMap) -> None:
    """Raises `ConfigError` where the rows of a table do not tell their source keys."""
    if isinstance(key_map, Uuid5):
        key_map.to_source(("",))


def _with_keys(batch: VectorBatch, keys: Sequence[Key | str]) -> VectorBatch:
    """The rows that have a key; a text in its place is why there is none."""
    owners: dict[Key, str] = {}
    kept: list[int] = []
    made: list[Key] = []
    rejected = list(batch.rejected)
    for position, (source, key) in enumerate(zip(batch.source_keys, keys, strict=True)):
        if isinstance(key, str):
            rejected.append(RowError(source, Reason.NO_TARGET, key))
        elif owners.setdefault(key, source) != source:
            rejected.append(RowError(source, Reason.NO_TARGET, f"{owners[key]!r} is another spelling of the same key"))
        else:
            kept.append(position)
            made.append(key)
    if len(kept) == len(batch):
        return replace(batch, keys=made)
    return replace(batch.take(kept, made), rejected=tuple(rejected))
