"""The protocols of a source of vectors or texts, two methods and a description, and of the origin it is opened from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.batch import Key, VectorBatch, Vectors
from amprenta_vectors.errors import RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind, Unit
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

    def before(self, route: Route, units: int, likely: int | None = None) -> None:
        """Wait until one request that costs at most ``units`` may be made, and account for them.

        A limit by the second is asked for the ``likely`` number, which is by default all of them.
        """
        ...

    def settle(self, units: int, spent: int) -> None:
        """Account for what a request really cost, in place of the ``units`` that `before` was told."""
        ...

    def limited(self, route: Route, retry_after: float | None) -> None:
        """Take note that the source answered that requests come too fast."""
        ...


class Unmetered:
    """A meter that lets every request through."""

    def before(self, route: Route, units: int, likely: int | None = None) -> None:
        """Return at once."""

    def settle(self, units: int, spent: int) -> None:
        """Ignore it."""

    def limited(self, route: Route, retry_after: float | None) -> None:
        """Ignore it."""


@runtime_checkable
class Metered(Protocol):
    """A source whose requests are limited or cost something: it asks ``meter`` before each, repeats included."""

    meter: Meter

    @property
    def unit(self) -> Unit:
        """The unit that its requests are charged by."""
        ...


class TextVectors(Protocol):
    """The vectors of texts that were paid for, by the texts' digests, shared by all batches and processes of a run.

    A text is embedded by whoever took it, and by nobody else until that one gives it back or is gone.
    """

    def take(self, digests: Collection[bytes]) -> tuple[set[bytes], dict[bytes, Vectors]]:
        """Return which texts the caller is to embed from now on, and the vectors of those that are embedded."""
        ...

    def publish(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Keep the vectors of texts that the caller has embedded, before anything else is done with them."""
        ...

    def give_back(self, digests: Collection[bytes]) -> None:
        """Let others embed what the caller took and did not embed."""
        ...

    def wait(self) -> None:
        """Wait a moment for texts that others have taken. Raises if nothing may go on."""
        ...


class Unshared:
    """The vectors of no text: each is embedded by whoever has it."""

    def take(self, digests: Collection[bytes]) -> tuple[set[bytes], dict[bytes, Vectors]]:
        """Return all of them to be embedded."""
        return set(digests), {}

    def publish(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Keep nothing."""

    def give_back(self, digests: Collection[bytes]) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Return at once."""


@dataclass(frozen=True)
class TextSurvey:
    """The texts of a source: how many, how many ``different`` ones, with how many bytes of UTF-8 these have in all.

    ``tokens_per_byte`` is estimated from some of them, and may be off by the share ``error``.
    """

    texts: int
    different: int
    bytes_: int
    tokens_per_byte: float
    error: float


@runtime_checkable
class PaidSource(Protocol):
    """A source that pays for each text, and asks ``shared`` for its vector before it does."""

    shared: TextVectors

    def survey(self, *, only_empty: bool) -> TextSurvey:
        """Measure the texts of all rows, or of those without an embedding. Raises `TransientError`."""
        ...

    def requests_for(self, texts: int, bytes_: int) -> int:
        """Return how many requests so many texts take at least."""
        ...


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
class LocalSource(Source, Protocol):
    """A source in the vector table's own database; its keys are the rows' own."""

    def has_value(self, slice_: Slice) -> sa.ColumnElement[bool]:
        """Return the condition that a row of ``slice_`` is a record of this source."""
        ...


@runtime_checkable
class CastSource(LocalSource, Protocol):
    """A source whose vectors PostgreSQL makes: a batch is one statement, and none flows."""

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
