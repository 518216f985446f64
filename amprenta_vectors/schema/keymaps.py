"""The key maps: how a source key finds its rows, one class a rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID, uuid5

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.expressions import among, in_scope, to_clause
from amprenta_vectors.schema.key_values import are_canonical, canonical, split_prefix
from amprenta_vectors.schema.vector_table import VectorTable


class KeyMap(Protocol):
    """Turns the source key of every row of a batch into any number of target keys."""

    @property
    def name(self) -> str:
        """The rule's name, unlike every other rule's; part of a run's fingerprint."""
        ...

    @property
    def makes_keys(self) -> bool:
        """Whether a target key is made of the source key alone, so that a row that does not exist can be inserted."""
        ...

    @property
    def source_columns(self) -> Sequence[str] | None:
        """The columns whose values `to_source` is given; None: the key columns."""
        ...

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Return the batch with ``keys`` set; rows without a target key have moved to ``quarantined``."""
        ...

    def to_source(self, key: Key) -> str:
        """Return a row's source key, for runs whose keys come from the table. Raises `ConfigError` if it is lost."""
        ...


class _MadeOfKeys:
    """A key map that makes the one target key of a row from its source key, and nothing else."""

    makes_keys = True
    source_columns: Sequence[str] | None = None

    def __init__(self, types: Sequence[str] = ()) -> None:
        self._types = types

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Return the batch with a key for every row that has one; of two ids that make one key, the first counts."""
        return _with_keys(batch, [self._to_key(source) for source in batch.source_keys])

    def _to_key(self, source_key: str) -> Key | str:
        """Return the target key, or the reason why there is none."""
        raise NotImplementedError

    def _typed(self, parts: Sequence[str]) -> Key | str:
        """Return ``parts`` as the key columns take them, or the reason why they cannot."""
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
        """Return the key itself, as PostgreSQL spells it."""
        return key[0]


class Uuid5(_MadeOfKeys):
    """The target key is the version 5 UUID of a namespace and the scope's values and source key, joined by ``/``."""

    def __init__(self, namespace: UUID, scope: Mapping[str, str]) -> None:
        super().__init__()
        self._namespace = namespace
        self._scope = tuple(scope.values())

    @property
    def name(self) -> str:
        """The rule's name with its namespace."""
        return f"uuid5:{self._namespace}"

    def _to_key(self, source_key: str) -> Key | str:
        try:
            return (str(uuid5(self._namespace, "/".join((*self._scope, source_key)))),)
        except UnicodeEncodeError:
            return f"{source_key!r} is no Unicode text"

    def to_source(self, key: Key) -> str:
        """Raise `ConfigError`: a hash cannot be turned back."""
        raise ConfigError(
            "the keys of this table are uuid5, which cannot be turned back into ids of the source",
            hint='--keys-from source; or key_map = "lookup" where a column holds the ids',
        )


class Split(_MadeOfKeys):
    """The target key is the source key split at a separator, from its end: the first column takes what is left."""

    def __init__(self, separator: str, columns: int, types: Sequence[str] = ()) -> None:
        super().__init__(types)
        self._separator = separator
        self._columns = columns

    @property
    def name(self) -> str:
        """The rule's name with its separator."""
        return f"split:{self._separator}"

    def _to_key(self, source_key: str) -> Key | str:
        parts = source_key.rsplit(self._separator, self._columns - 1)
        if len(parts) != self._columns:
            return f"{len(parts)} parts between {self._separator!r}; expected {self._columns}"
        return self._typed(parts)

    def to_source(self, key: Key) -> str:
        """Return the parts joined again."""
        return self._separator.join(key)


class Numbered:
    """The target key is the source key and the number of its row, counted from 0 within that key in fetched order."""

    name = "numbered"
    makes_keys = True
    source_columns: Sequence[str] | None = None

    def __init__(self, type_name: str = "text") -> None:
        self._type = type_name

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Return the batch with keys: for each row its source key, and the row's number within that key."""
        seen: dict[str, int] = {}
        keys: list[Key | str] = []
        for source_key in batch.source_keys:
            number = seen.get(source_key, 0)
            seen[source_key] = number + 1
            part = canonical(source_key, self._type)
            keys.append(f"{source_key!r} is no {self._type}" if part is None else (part, str(number)))
        return _with_keys(batch, keys)

    def to_source(self, key: Key) -> str:
        """Return the part before the number."""
        return key[0]


class LookUp:
    """The target keys are those of the rows of one scope whose look-up column holds the source key: any number."""

    makes_keys = False

    def __init__(self, engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> None:
        if table.key_rule.lookup is None:
            raise ValueError(f"table {table.name} names no look-up column")
        self._engine = engine
        self._table = table
        self._scope = scope
        self._column = table.key_rule.lookup
        self._id_field = table.key_rule.id_field
        self.source_columns: Sequence[str] | None = (self._column,)

    @property
    def name(self) -> str:
        """The rule's name with its column, and the metadata field that may hold the id."""
        return f"lookup:{self._column}" + (f":{self._id_field}" if self._id_field else "")

    def apply(self, batch: VectorBatch) -> VectorBatch:
        """Return the batch with the rows found, by one statement; a source key that no row holds is quarantined.

        Of two ids that are spellings of one value, the first counts.
        """
        metadata = batch.metadata or [None] * len(batch)
        told = {source: self._value(source, fields) for source, fields in zip(batch.source_keys, metadata, strict=True)}
        owners: dict[str, str] = {}
        for source, value in told.items():
            if value is not None:
                owners.setdefault(value, source)
        found = self._find(list(owners))
        positions: list[int] = []
        keys: list[Key] = []
        quarantined = list(batch.quarantined)
        for position, source in enumerate(batch.source_keys):
            value = told[source]
            rows = found.get(value, []) if value is not None and owners[value] == source else []
            positions += [position] * len(rows)
            keys += rows
            if not rows:
                quarantined.append(RowError(source, Reason.NO_TARGET, self._why(source, value, owners)))
        return replace(batch.take(positions, keys), quarantined=tuple(quarantined))

    def _value(self, source_key: str, metadata: Mapping[str, Any] | None) -> str | None:
        """Return the value to find in the look-up column; None if the record gives none."""
        type_name = self._table.column_types[self._column]
        value = canonical(source_key, type_name)
        if value is not None or self._id_field is None:
            return value
        found = split_prefix(source_key) if type_name == "uuid" else None
        return canonical(found[1] if found else str((metadata or {}).get(self._id_field, "")), type_name)

    def _why(self, source_key: str, value: str | None, owners: Mapping[str, str]) -> str:
        if value is not None and owners[value] != source_key:
            return f"{owners[value]!r} is another spelling of the same key"
        return f"no row of this scope has it in {self._column}"

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
        """Return the value of the look-up column."""
        return key[0]


class OwnKeys(_MadeOfKeys):
    """The source key is the row's own key, as a JSON list if it has several columns: the rows are their own source."""

    name = "own"
    makes_keys = False

    def __init__(self, types: Sequence[str]) -> None:
        super().__init__(types)

    def _to_key(self, source_key: str) -> Key | str:
        if len(self._types) == 1:
            value = canonical(source_key, self._types[0])
            return f"{source_key!r} is no {self._types[0]}" if value is None else (value,)
        try:
            parts = json.loads(source_key)
        except ValueError:
            parts = None
        if not isinstance(parts, list) or len(parts) != len(self._types):
            return f"expected a JSON list of {len(self._types)} values"
        return self._typed([str(part) for part in parts])

    def to_key(self, source_key: str) -> Key | None:
        """Return the key of a row as PostgreSQL spells it; None if the source key is not one."""
        key = self._to_key(source_key)
        return None if isinstance(key, str) else key

    def to_keys(self, source_keys: Sequence[str]) -> dict[Key, str]:
        """Return the source key of each row that is meant, by the row's key; what is no key is left out."""
        if len(self._types) == 1 and are_canonical(source_keys, self._types[0]):
            return {(key,): key for key in source_keys}
        return {own: key for key in source_keys if (own := self.to_key(key)) is not None}

    def to_source(self, key: Key) -> str:
        """Return the key itself, or the JSON list."""
        return key[0] if len(key) == 1 else json.dumps(list(key), ensure_ascii=False)


def open_key_map(table: VectorTable, scope: Mapping[str, str], engine: Engine) -> KeyMap:
    """Return the key map of a table from the catalogue, for one scope."""
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


def to_key_maker(table: VectorTable, scope: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that makes a row's key, as text, from its source key alone, without the database.

    Raises `ConfigError` for a table whose keys are not made so; the function raises it for a source key that has no
    key.
    """
    rule = table.key_rule
    if rule.kind == "identity":
        return str
    if rule.kind != "uuid5" or rule.uuid_namespace is None:
        raise ConfigError(f"the keys of table {table.name} are not made of ids (key map {rule.kind})")
    key_map = Uuid5(rule.uuid_namespace, scope)

    def to_key(source_key: str) -> str:
        key = key_map._to_key(source_key)
        if isinstance(key, str):
            raise ConfigError(key)
        return key[0]

    return to_key


def look_up(key_map: KeyMap, source_keys: Sequence[str]) -> dict[str, list[Key]]:
    """Return the target keys of source keys alone, without their records; source keys that have none are absent."""
    found: dict[str, list[Key]] = {}
    if source_keys:
        keyed = key_map.apply(VectorBatch(list(source_keys), np.empty((len(source_keys), 0), np.float32)))
        for source, key in zip(keyed.source_keys, keyed.keys or (), strict=True):
            found.setdefault(source, []).append(key)
    return found


def store_keys(key_map: KeyMap, batch: VectorBatch) -> Sequence[str]:
    """Return the key that a store on the same rows uses for each row of a batch with keys."""
    if isinstance(key_map, Uuid5) and batch.keys is not None:
        return [key[0] for key in batch.keys]
    return batch.source_keys


def to_own_keys(key_map: KeyMap, source_keys: Sequence[str]) -> dict[Key, str]:
    """Return the source key of each row that is meant, by the row's key, where rows go by their own keys."""
    if not isinstance(key_map, OwnKeys):
        raise TypeError(f"the key map is {key_map.name}")
    return key_map.to_keys(source_keys)


def check_invertible(key_map: KeyMap) -> None:
    """Raise `ConfigError` if the rows of a table do not tell their source keys."""
    if isinstance(key_map, Uuid5):
        key_map.to_source(("",))


def _with_keys(batch: VectorBatch, keys: Sequence[Key | str]) -> VectorBatch:
    """Return the rows that have a key; a text in a key's place is the reason why there is none, and is quarantined."""
    owners: dict[Key, str] = {}
    kept: list[int] = []
    made: list[Key] = []
    quarantined = list(batch.quarantined)
    for position, (source, key) in enumerate(zip(batch.source_keys, keys, strict=True)):
        if isinstance(key, str):
            quarantined.append(RowError(source, Reason.NO_TARGET, key))
        elif owners.setdefault(key, source) != source:
            quarantined.append(
                RowError(source, Reason.NO_TARGET, f"{owners[key]!r} is another spelling of the same key")
            )
        else:
            kept.append(position)
            made.append(key)
    if len(kept) == len(batch):
        return replace(batch, keys=made)
    return replace(batch.take(kept, made), quarantined=tuple(quarantined))
