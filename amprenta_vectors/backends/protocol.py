"""What a source of vectors or texts must offer: two methods and a description; and what it is opened from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable


@dataclass(frozen=True)
class SourceDescription:
    """What a source says of itself; no secret ever stands here, because runs store it.

    ``identity`` tells this source from every other of its ``kind`` (for Pinecone: host and namespace).
    ``distance`` is ``cosine``, ``l2`` or ``ip``; None where the source does not know. ``count`` is the source's own
    figure and may lag behind. Where it does not ``lists``, its keys must be known from elsewhere. Vectors that are
    ``computed`` are made when they are fetched: they cost time, and may differ in their last bits from time to time.
    """

    kind: str
    identity: str
    dimension: int
    distance: str | None
    model: str | None = None
    count: int | None = None
    lists: bool = True
    computed: bool = False


class TokenRefused(Exception):
    """The source no longer accepts a token it gave; listing starts over."""


Route = Literal["list", "fetch"]
"""What a request to a source is: each has its own limit and price."""


class Meter(Protocol):
    """Asked before every single request that a metered source makes, repeats included."""

    def before(self, route: Route, read_units: int) -> None:
        """Wait until one request that costs at most ``read_units`` may be made, and account for it."""
        ...

    def limited(self, route: Route, retry_after: float | None) -> None:
        """The source answered that requests come too fast."""
        ...


class Unmetered:
    """Lets every request through."""

    def before(self, route: Route, read_units: int) -> None:
        """At once."""

    def limited(self, route: Route, retry_after: float | None) -> None:
        """No matter."""


@runtime_checkable
class Metered(Protocol):
    """A source whose requests are limited or cost something: it asks ``meter`` before each, repeats included."""

    meter: Meter


class Source(Protocol):
    """Where vectors or texts are read from. Safe to use from several threads at once."""

    @property
    def description(self) -> SourceDescription:
        """What this source is; read once, when it is opened."""
        ...

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield ``(keys, next_token)`` in the source's own order, beginning after ``token``.

        ``next_token`` begins the following page; None on the last. Raises `TokenRefused` for a stale token,
        `TransientError` and its kind for what passes.
        """
        ...

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """The records of ``keys`` in any order; a key the source does not have is left out.

        Holds no reference to earlier batches. Raises `TransientError`, `CredentialsRefused`, `SourceNotFound`.
        """
        ...


@runtime_checkable
class TextSource(Source, Protocol):
    """A source whose vectors are computed from texts, which can be had without them."""

    def texts(self, keys: Sequence[str]) -> Mapping[str, str]:
        """The text of each record that is there, ``""`` where it has none. Raises as `fetch` does."""
        ...


class Origin(Protocol):
    """What the namespaces of a source are opened from: an index, a collection, a folder, the rows of a table."""

    @property
    def kind(self) -> SourceKind:
        """What ``AMPRENTA_SOURCE`` calls it."""
        ...

    @property
    def name(self) -> str:
        """As a message speaks of it, without a secret: ``index 'pages'``, ``collection 'products'``."""
        ...

    @property
    def dimension(self) -> int | None:
        """Of all its vectors; None where that is not known before they are read."""
        ...

    @property
    def distance(self) -> Distance | None:
        """What it searches by; None where it does not know, or does not search."""
        ...

    @property
    def model(self) -> str | None:
        """The model that made its vectors, or makes them; None where it does not know."""
        ...

    @property
    def lists(self) -> bool:
        """Whether it can list its keys; they must be known from elsewhere where not."""
        ...

    def namespaces(self) -> Mapping[str, int]:
        """Each namespace with its number of records, as far as it is known; ``{"": n}`` where there is one only.

        Where a table has several scope columns, a namespace is their values joined by ``/``.
        """
        ...

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> Source:
        """One namespace, read as ``table``, which is from the catalogue, has columns for it.

        Without ``with_metadata`` neither texts nor metadata are read. Raises `SourceNotFound` for a namespace that is
        not there, listing those that are.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, the sources that it opened with it."""
        ...
