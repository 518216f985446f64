"""The protocols of a source of vectors or texts, two methods and a description, and of the origin it is opened from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.errors import RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable


@dataclass(frozen=True)
class SourceDescription:
    """A source's description of itself; it never holds a secret, because runs store it.

    ``identity`` tells this source from every other of its ``kind`` (for Pinecone: host and namespace). ``distance`` is
    ``cosine``, ``l2`` or ``ip``; None if the source does not know. ``count`` is the source's own figure and may lag
    behind. If ``lists`` is false the source cannot list its keys, which must be known from elsewhere. Vectors that are
    ``computed`` are made when they are fetched: they cost time, and may differ in their last bits from time to time.
    ``namespace`` is the one it reads, None if it has no namespaces.
    """

    kind: str
    identity: str
    dimension: int
    distance: str | None
    model: str | None = None
    count: int | None = None
    lists: bool = True
    computed: bool = False
    namespace: str | None = None


class TokenRefused(Exception):
    """The source no longer accepts a token that it gave; listing starts over."""


Route = Literal["list", "fetch"]
"""The kind of a request to a source: each has its own limit and price."""


class Meter(Protocol):
    """Accounts for every single request that a metered source makes, repeats included."""

    def before(self, route: Route, read_units: int) -> None:
        """Wait until one request that costs at most ``read_units`` may be made, and account for it."""
        ...

    def limited(self, route: Route, retry_after: float | None) -> None:
        """Take note that the source answered that requests come too fast."""
        ...


class Unmetered:
    """A meter that lets every request through."""

    def before(self, route: Route, read_units: int) -> None:
        """Return at once."""

    def limited(self, route: Route, retry_after: float | None) -> None:
        """Ignore it."""


@runtime_checkable
class Metered(Protocol):
    """A source whose requests are limited or cost something: it asks ``meter`` before each, repeats included."""

    meter: Meter


class Source(Protocol):
    """A place that vectors or texts are read from. Safe to use from several threads at once."""

    @property
    def description(self) -> SourceDescription:
        """The source's description; read once, when it is opened."""
        ...

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield ``(keys, next_token)`` in the source's own order, starting after ``token``.

        ``next_token`` starts the following page; None on the last. Raises `TokenRefused` for a stale token,
        `TransientError` and its kind for what passes.
        """
        ...

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Fetch the records of ``keys`` in any order; a key the source does not have is left out.

        Holds no reference to earlier batches. Raises `TransientError`, `CredentialsRefused`, `SourceNotFound`.
        """
        ...


@runtime_checkable
class TextSource(Source, Protocol):
    """A source whose vectors are computed from texts, and which gives the texts without them."""

    def texts(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Return the text of each record that exists, ``""`` if it has none. Raises as `fetch` does."""
        ...


@runtime_checkable
class CastSource(Source, Protocol):
    """A source in the vector table's own database. If it ``casts``, PostgreSQL makes the vectors, and none flows.

    Its keys are the rows' own. A row is a record if it `has_value`; `joined` and `vector` reach that value in SQL.
    """

    @property
    def casts(self) -> bool:
        """Whether PostgreSQL makes the vectors, so that a batch is one statement."""
        ...

    def has_value(self, slice_: Slice) -> sa.ColumnElement[bool]:
        """Return the condition that a row of ``slice_`` is a record of this source."""
        ...

    def joined(self, slice_: Slice) -> list[sa.ColumnElement[bool]]:
        """Return the conditions by which a row of ``slice_`` meets its record, which `vector` reads."""
        ...

    def vector(self, slice_: Slice) -> sa.ColumnElement[Any]:
        """Return the record of a row of ``slice_`` as a vector; raises, in the database, for one that is none."""
        ...

    def doubled(self, connection: Connection, keys: Sequence[Key]) -> Mapping[Key, RowError]:
        """Return why those of ``keys`` cannot be read which are not of one record alone."""
        ...

    def unreadable(self, connection: Connection, keys: Sequence[Key]) -> Sequence[RowError]:
        """Return why PostgreSQL makes no vector of the records of those of ``keys`` which are none."""
        ...


class Origin(Protocol):
    """An index, a collection, a folder or the rows of a table, from which namespaces are opened as sources."""

    @property
    def kind(self) -> SourceKind:
        """The kind of source, as ``AMPRENTA_SOURCE`` calls it."""
        ...

    @property
    def name(self) -> str:
        """The name for messages, without a secret: ``index 'pages'``, ``collection 'products'``."""
        ...

    @property
    def dimension(self) -> int | None:
        """The dimension of all its vectors; None if that is not known before they are read."""
        ...

    @property
    def distance(self) -> Distance | None:
        """The distance that it searches by; None if it does not know, or does not search."""
        ...

    @property
    def model(self) -> str | None:
        """The model that made, or makes, its vectors; None if it does not know."""
        ...

    @property
    def lists(self) -> bool:
        """Whether it can list its keys; if not, they must be known from elsewhere."""
        ...

    def namespaces(self) -> Mapping[str, int]:
        """Return each namespace with its number of records, if known; ``{"": n}`` if there is only one.

        If a table has several scope columns, a namespace is their values joined by ``/``.
        """
        ...

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> Source:
        """Open one namespace as a source, read as far as ``table``, which is from the catalogue, has columns for it.

        Without ``with_metadata`` neither texts nor metadata are read. Raises `SourceNotFound` for a namespace that is
        not there, listing those that are.
        """
        ...

    def close(self) -> None:
        """Close what it holds, and the sources that it opened."""
        ...
