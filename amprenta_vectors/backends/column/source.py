"""The old column of a table as a source: its values as vectors, by the keys of the rows that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.column.formats import Bytes, CastFormat
from amprenta_vectors.backends.column.survey import Survey, survey
from amprenta_vectors.backends.column.values import OldValues, find_old
from amprenta_vectors.backends.own_rows import OwnRows, OwnScopes
from amprenta_vectors.backends.protocol import SourceDescription
from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.bisect import errors_of, isolate
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import RowError
from amprenta_vectors.pg.errors import is_row_refusal, refusal_of, to_error
from amprenta_vectors.pg.types import SEND_HEAD
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.row_keys import AllRows
from amprenta_vectors.schema.slice import Slice, given_keys
from amprenta_vectors.schema.vector_table import VectorTable

Form = TypeVar("Form", bound=CastFormat | Bytes)


class ColumnSource(Generic[Form]):
    """The old values of one scope. The source keys are the rows' own keys, as `OwnKeys` spells them.

    A row without a value is no record. Safe to share between threads.
    """

    def __init__(
        self,
        engine: Engine,
        old: OldValues,
        form: Form,
        scope: Mapping[str, str],
        *,
        dimension: int | None,
        count: int,
    ) -> None:
        self.old = old
        self._form = form
        self._engine = engine
        self._rows = OwnRows(old.table, scope)
        self._dimension = dimension
        of_scope = "/".join(scope.values())
        self.description = SourceDescription(
            kind="column",
            identity=f"{old.name}/{of_scope}",
            dimension=old.table.dimension,
            distance=None,
            count=count,
        )

    def has_value(self, slice_: Slice) -> sa.ColumnElement[bool]:
        """Return the condition that a row of ``slice_`` is a record of this source."""
        return self.old.given(slice_.rows, self._dimension)

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield the keys of all rows that have a value, in the order of the table's own unique index."""
        slice_ = self._rows.slice
        return AllRows(self._engine, slice_, self.has_value(slice_)).iter_keys(token)

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Return the values as they are now; one that is no embedding of the table's dimension is quarantined.

        Raises `TransientError` if the database is away.
        """
        wanted = self._rows.wanted(keys)
        try:
            with self._engine.begin() as connection:
                doubled = self.doubled(connection, list(wanted))
                found, unread = self._read(connection, [key for key in wanted if key not in doubled])
        except DBAPIError as error:
            raise to_error(error, f"reading {self.old.name}") from error
        refused = [*doubled.values(), *unread]
        width = self.old.table.dimension
        return VectorBatch(
            source_keys=[wanted[key] for key in found],
            vectors=np.array(list(found.values()), np.float32).reshape(len(found), width),
            quarantined=tuple(refused),
        )

    def doubled(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, RowError]:
        """Return why those of ``keys`` cannot be read which several rows of the other table have."""
        old = self.old
        if old.unique or old.other is None or not keys:
            return {}
        rows = self._rows.rows
        given = given_keys(keys)
        counted = (
            sa.select(*given.c, sa.func.count().label("count"))
            .select_from(given, rows, old.other)
            .where(*self._rows.slice.is_row_of(given, rows), *old.joined(rows, self._dimension))
            .group_by(*given.c)
            .having(sa.func.count() > 1)
        )
        to_source = self._rows.slice.key_map.to_source
        return {
            tuple(key): RowError(
                to_source(tuple(key)), Reason.UNREADABLE, f"{count} rows of {old.place} have this key; expected one"
            )
            for *key, count in connection.execute(counted)
        }

    def _values(self, keys: Sequence[Key], value: sa.ColumnElement[Any]) -> sa.Select[Any]:
        return self._rows.select(keys, value).where(*self.old.joined(self._rows.rows, self._dimension))

    def _read(self, connection: Connection, keys: Sequence[Key]) -> tuple[dict[Key, Any], list[RowError]]:
        """Return the vectors of those ``keys`` that have one, and why the values of the others are none."""
        raise NotImplementedError


class CastColumnSource(ColumnSource[CastFormat]):
    """Old values of which PostgreSQL makes the vectors."""

    def joined(self, slice_: Slice) -> list[sa.ColumnElement[bool]]:
        """Return the conditions by which a row of ``slice_`` meets its record, which `vector` reads."""
        return self.old.joined(slice_.rows, self._dimension)

    def vector(self, slice_: Slice) -> sa.ColumnElement[Any]:
        """Return the record of a row of ``slice_`` as a vector; raises, in the database, for one that is none."""
        return self._vector(slice_.rows)

    def unreadable(self, connection: Connection, keys: Sequence[Key]) -> list[RowError]:
        """Return why PostgreSQL makes no vector of the values of those of ``keys`` which are none."""
        return self._read(connection, keys)[1]

    def _vector(self, rows: Any) -> sa.ColumnElement[Any]:
        return self._form.vector(self.old.raw(rows), self.old.table.dimension)

    def _read(self, connection: Connection, keys: Sequence[Key]) -> tuple[dict[Key, Any], list[RowError]]:
        """Return the vectors that PostgreSQL makes, and why it makes none of the others."""
        found: dict[Key, Any] = {}
        sent = sa.func.vector_send(self._vector(self._rows.rows))

        def attempt(start: int, end: int) -> str | None:
            try:
                with connection.begin_nested():
                    for *key, raw in connection.execute(self._values(keys[start:end], sent)):
                        found[tuple(key)] = np.frombuffer(bytes(raw)[SEND_HEAD:], ">f4")
            except DBAPIError as error:
                if not is_row_refusal(error):
                    raise
                return refusal_of(error)
            return None

        bad = isolate(len(keys), attempt)
        return found, errors_of(bad, list(map(self._rows.slice.key_map.to_source, keys)), Reason.UNREADABLE)


class BytesSource(ColumnSource[Bytes]):
    """Old values that are bytes, which are decoded here."""

    def _read(self, connection: Connection, keys: Sequence[Key]) -> tuple[dict[Key, Any], list[RowError]]:
        """Return the vectors that the bytes are, and why the others are none."""
        found: dict[Key, Any] = {}
        refused: list[RowError] = []
        to_source, dimension = self._rows.slice.key_map.to_source, self.old.table.dimension
        for *parts, raw in connection.execute(self._values(keys, self.old.raw(self._rows.rows))):
            key = tuple(parts)
            try:
                numbers = self._form.decode(bytes(raw))
            except ValueError as error:
                refused.append(RowError(to_source(key), Reason.UNREADABLE, str(error)))
                continue
            if len(numbers) == dimension:
                found[key] = numbers
            else:
                detail = f"{len(numbers)} numbers; expected {dimension}"
                refused.append(RowError(to_source(key), Reason.DIMENSION, detail))
        return found, refused


class ColumnOrigin:
    """The old column of one table, scope by scope. Opened by :func:`open_column_origin`."""

    kind: SourceKind = "column"
    distance = None
    model = None
    lists = True

    def __init__(self, engine: Engine, old: OldValues, found: Survey, dimension: int | None) -> None:
        self.old = old
        self.survey = found
        self.name = f"column {old.name}"
        self.dimension: int | None = old.table.dimension
        self._engine = engine
        self._only = dimension
        self._scopes = OwnScopes(engine, old.table, partial(old.given, dimension=dimension))

    def notices(self) -> list[str]:
        """Return what the column has and a move leaves where it is."""
        found, table = self.survey, self.old.table
        left_out = found.left_out(table.dimension)
        lines = {
            f"{left_out:,} lists of another dimension than {table.dimension} are left out, as was asked": left_out,
            f"{found.alone:,} rows of {self.old.place} have a key that no row of {table.qualified_name} has: "
            "they stay where they are": found.alone,
            f"{found.doubled:,} keys have several rows in {self.old.place}: they are quarantined": found.doubled,
        }
        return [line for line, count in lines.items() if count]

    def namespaces(self) -> Mapping[str, int]:
        """Return the scopes that have values, each with their number."""
        return self._scopes.namespaces()

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> ColumnSource[Any]:
        """Open the values of one scope; the rows keep the texts and metadata that they have.

        Raises `SourceNotFound` for a scope without a value.
        """
        scope, count = table.scope_for(namespace), self._scopes.count(namespace)
        form = self.old.format
        if isinstance(form, Bytes):
            return BytesSource(self._engine, self.old, form, scope, dimension=self._only, count=count)
        return CastColumnSource(self._engine, self.old, form, scope, dimension=self._only, count=count)

    def close(self) -> None:
        """Do nothing: no resource is held."""


def open_column_origin(settings: Settings, table: VectorTable, engine: Engine) -> ColumnOrigin:
    """Open the old column that ``table``, which is from the catalogue, declares.

    Raises `ConfigError`, `SchemaMismatch` as `find_old` does, and `DimensionMismatch` for lists of several lengths
    unless ``AMPRENTA_DIMENSION`` says which to take.
    """
    with engine.connect() as connection:
        old = find_old(connection, table)
        found = survey(connection, old)
    found.check(old.name, table.dimension, settings.dimension)
    return ColumnOrigin(engine, old, found, settings.dimension)
