"""The forms in which a column holds embeddings, by its type: the dimension of a value, and the value as a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONPATH

from amprenta_vectors.batch import Vectors
from amprenta_vectors.errors import ConfigError, SchemaMismatch
from amprenta_vectors.pg.tables import Column
from amprenta_vectors.pg.types import DOCUMENTS, bare_type, is_text
from amprenta_vectors.schema.old_column import ELEMENT_TYPES, Elements
from amprenta_vectors.schema.types import NamedType

_BLANKS = " \t\r\n\f\v"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*|{_NUMBER}(?:\s+{_NUMBER})*"
_LIST = rf"^\s*(?:\[\s*(?:{_NUMBERS})\s*\]|\{{\s*(?:{_NUMBERS})\s*\}}|{_NUMBERS})\s*$"
_NUMBERS_ONLY = r"^[-+.0-9eE\s\[\]{}]*$"
_NO_NUMBER = r'["a-df-zA-DF-Z:]'
_ENDS = r"^\s*[\[{]?\s*|\s*[\]}]?\s*$"
"""A bracket at each end of a text, and the blanks around it."""
_HEAD = 64
"""The characters that tell the usual list, ``[1,2]``: PostgreSQL unpacks so much of a long text without the rest."""
_NULL_BYTES = 16
"""The null of jsonb is no larger, as a column holds it: what is larger need not be unpacked to tell that it is none."""
_ONLY_NUMBERS = 'strict $[*] ? (@.type() != "number")'


class Format(Protocol):
    """How a column holds embeddings."""

    @property
    def name(self) -> str:
        """The form, for a person."""
        ...

    def given(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return the condition that there is a value: not NULL, and not the null of JSON."""
        ...

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return how many numbers a value has; NULL if it is no list of numbers."""
        ...

    def spelling(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return how a value is spelt, for a person."""
        ...


@runtime_checkable
class CastFormat(Format, Protocol):
    """A form of which PostgreSQL makes the vectors, so that no value flows."""

    def vector(self, value: sa.ColumnElement[Any], dimension: int) -> sa.ColumnElement[Any]:
        """Return a value as a vector of that dimension; raises, in the database, for one that is none."""
        ...


class _NotNull:
    """A form in which NULL alone means that there is no embedding."""

    def given(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return the condition that a value is not NULL."""
        return value.is_not(None)


@dataclass(frozen=True)
class Lists(_NotNull):
    """Lists of numbers as text: ``[1,2]``, ``{1,2}``, ``1, 2`` or between blanks; each of 32 bits, to nearest."""

    type: str

    @property
    def name(self) -> str:
        """The column's type."""
        return f"numbers in {self.type}"

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return how many numbers a value has; NULL if it is no list of numbers."""
        text = sa.cast(value, sa.Text)
        commas = sa.func.length(text) - sa.func.length(sa.func.replace(text, ",", ""))
        parts = sa.func.regexp_split_to_array(_bare(text), r"\s+")
        counted = sa.case((text.like("%,%"), commas + 1), else_=sa.func.cardinality(parts))
        return sa.case((text.op("~")(_LIST), counted))

    def spelling(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return how a value is spelt, for a person."""
        text = sa.cast(value, sa.Text)
        start = sa.func.left(sa.func.ltrim(text, _BLANKS), 1)
        between = sa.case((text.like("%,%"), "1,2"), else_="1 2")
        return sa.case((start == "[", "[" + between + "]"), (start == "{", "{" + between + "}"), else_=between)

    def vector(self, value: sa.ColumnElement[Any], dimension: int) -> sa.ColumnElement[Any]:
        """Return the nearest vector of 32-bit numbers."""
        return sa.cast(self.listed(value), NamedType(f"vector({dimension})"))

    def listed(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return a text as pgvector reads it: numbers between commas, in brackets.

        What is no list goes to pgvector as it is, which then quotes it.
        """
        text = sa.cast(value, sa.Text)
        start = sa.func.left(sa.func.ltrim(text, _BLANKS), 1)
        between_blanks = sa.and_(text.not_like("%,%"), text.op("~")(_NUMBERS_ONLY))
        return sa.case(
            (sa.func.left(text, _HEAD).like("[%,%"), text),
            (between_blanks, "[" + sa.func.regexp_replace(_bare(text), r"\s+", ",", "g") + "]"),
            (start == "[", text),
            (sa.and_(start == "{", text.op("!~")(_NO_NUMBER)), sa.func.translate(text, "{}", "[]")),
            (text.op("~")(r"^\s*[-+.0-9]"), "[" + text + "]"),
            else_=text,
        )


def _bare(text: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """Return a list's text without its brackets and the blanks at its ends."""
    return sa.func.regexp_replace(text, _ENDS, "", "g")


@dataclass(frozen=True)
class Json:
    """A list of numbers as JSON, or a string that holds one as `Lists` reads it; each of 32 bits, to nearest."""

    type: str

    @property
    def name(self) -> str:
        """The column's type."""
        return f"numbers in {self.type}"

    def given(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return the condition that a value is neither NULL nor the null of JSON."""
        some = self._kind(value) != "null"
        if self.type == "jsonb":
            # A null of json can be any size: blanks stay with it.
            some = sa.or_(sa.func.pg_column_size(value) > _NULL_BYTES, some)
        return sa.and_(value.is_not(None), some)

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return how many numbers a value has; NULL if it is no list of numbers."""
        if self.type == "jsonb":
            numbers = sa.not_(sa.func.jsonb_path_exists(value, sa.cast(_ONLY_NUMBERS, JSONPATH)))
        else:
            numbers = sa.cast(value, sa.Text).op("~")(_LIST)
        length: sa.ColumnElement[int] = getattr(sa.func, f"{self.type}_array_length")(value)
        kind = self._kind(value)
        return sa.case(
            (kind == "array", sa.case((numbers, sa.func.nullif(length, 0)))),
            (kind == "string", self._inner.dimension(self._string(value))),
        )

    def spelling(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return what kind of JSON a value is."""
        return sa.func.concat(sa.cast("JSON ", sa.Text), self._kind(value))

    def vector(self, value: sa.ColumnElement[Any], dimension: int) -> sa.ColumnElement[Any]:
        """Return the nearest vector of 32-bit numbers."""
        text = sa.case(
            (self._kind(value) == "string", self._inner.listed(self._string(value))), else_=sa.cast(value, sa.Text)
        )
        return sa.cast(text, NamedType(f"vector({dimension})"))

    @property
    def _inner(self) -> Lists:
        return Lists("text")

    def _kind(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        kind: sa.ColumnElement[str] = getattr(sa.func, f"{self.type}_typeof")(value)
        return kind

    def _string(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return what a string holds; a list of numbers has nothing that JSON escapes."""
        return sa.func.btrim(sa.cast(value, sa.Text), '"')


@dataclass(frozen=True)
class _Numbers(_NotNull):
    """A type that PostgreSQL casts to a vector as it stands."""

    type: str

    @property
    def name(self) -> str:
        """The column's type."""
        return self.type

    def spelling(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return the column's type."""
        return sa.cast(self.type, sa.Text)

    def vector(self, value: sa.ColumnElement[Any], dimension: int) -> sa.ColumnElement[Any]:
        """Return the nearest vector of 32-bit numbers."""
        return sa.cast(value, NamedType(f"vector({dimension})"))


class Arrays(_Numbers):
    """An array of numbers of one dimension, without NULL; ``real`` and ``integer`` as they are, others to nearest."""

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return how many numbers a value has; NULL if it is nested or empty, or if one of them is NULL."""
        whole = sa.and_(sa.func.array_ndims(value) == 1, sa.func.array_position(value, sa.null()).is_(None))
        return sa.case((whole, sa.func.cardinality(value)))


class Embeddings(_Numbers):
    """An embedding in one of pgvector's own types, which a vector holds as it is."""

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return the dimension of a value."""
        if self.type == "sparsevec":
            return sa.cast(sa.func.split_part(sa.cast(value, sa.Text), "/", 2), sa.Integer)
        return sa.func.vector_dims(value)


@dataclass(frozen=True)
class Bytes(_NotNull):
    """The bytes of an array of numbers, one after the other; numbers of 64 bits become the nearest of 32."""

    elements: Elements

    @property
    def name(self) -> str:
        """The type of the numbers."""
        return f"bytea of {self.elements}"

    @classmethod
    def every(cls) -> list[Self]:
        """Return the form for each type of numbers."""
        return [cls(elements) for elements in ELEMENT_TYPES]

    @property
    def size(self) -> int:
        """The bytes of a number."""
        return np.dtype(ELEMENT_TYPES[self.elements]).itemsize

    def dimension(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Return how many numbers a value has; NULL if its length is none of theirs."""
        length = sa.func.octet_length(value, type_=sa.Integer)
        return sa.case((sa.and_(length > 0, length % self.size == 0), length // self.size))

    def spelling(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return the length of a value."""
        return sa.func.concat(sa.func.octet_length(value), sa.cast(" bytes", sa.Text))

    def decode(self, raw: bytes) -> Vectors:
        """Return the numbers of a value, float32. Raises ValueError saying what its length is instead."""
        if not raw or len(raw) % self.size:
            raise ValueError(f"{len(raw)} bytes; expected a multiple of {self.size}")
        with np.errstate(over="ignore"):
            return np.frombuffer(raw, ELEMENT_TYPES[self.elements]).astype(np.float32)


_ARRAYS = ("real[]", "double precision[]", "numeric[]", "integer[]")
_EMBEDDINGS = ("vector", "halfvec", "sparsevec")
EXPECTED = "text, json, jsonb, bytea, real[], double precision[], numeric[], integer[], vector, halfvec or sparsevec"


def format_of(name: str, column: Column, elements: Elements | None) -> CastFormat | Bytes:
    """Return how ``column``, called ``name``, holds embeddings.

    Raises `SchemaMismatch` for a type that holds none, `ConfigError` for bytes of which nothing says what they are.
    """
    bare = bare_type(column.base)
    if bare == "bytea":
        if elements is None:
            raise ConfigError(
                f"column {name} is bytea; expected to be told what its bytes are",
                hint='elements = "float32-le" beside old.column in amprenta.toml; sources inspect says which fit',
            )
        return Bytes(elements)
    if elements is not None:
        raise ConfigError(f"old.elements is for a column of bytea; {name} is {column.type}", hint="leave elements out")
    if is_text(column.base):
        return Lists(bare)
    if bare in DOCUMENTS:
        return Json(bare)
    if bare in _ARRAYS:
        return Arrays(bare)
    if bare in _EMBEDDINGS:
        return Embeddings(bare)
    raise SchemaMismatch(
        f"column {name} is {column.type}; expected {EXPECTED}",
        hint="old.column in amprenta.toml names the column that embeddings lie in",
    )
