"""The options of a pgvector store, the same for one that awaits and one that does not."""

from __future__ import annotations

from dataclasses import dataclass

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.pgvector.models import OpenModel
from amprenta_vectors.stores.pgvector.search_settings import MAX_EF_SEARCH


@dataclass(frozen=True)
class StoreOptions:
    """How a store searches, and what it writes and demands.

    ``ef_search`` (1 to 1000) is how many candidates a search of the index keeps, never fewer than ``top_k``; ``probes``
    is how many lists a search of an ivfflat index reads; ``oversampling`` is how many rows are taken from an index for
    each hit, of which the nearest by exact distance are the hits. Without them, what ``amprenta-vectors tune --apply``
    stored for the table is used. ``dimension`` is the dimension that the settings demand of the column, if they do;
    another raises `DimensionMismatch`. ``model`` is written beside every vector. Hits less near than the score
    ``threshold`` are left out. A query that takes PostgreSQL longer than ``query_timeout_seconds`` raises `TimedOut`.
    Pinecone keeps the text in a metadata field, ``text_field``; a filter on that field asks the text column here.
    ``namespace`` is the one that a table described without a column for it must hold. ``open_model`` opens the embedder
    of a registered model, by which texts are searched and written.
    """

    ef_search: int | None = None
    probes: int | None = None
    oversampling: int | None = None
    dimension: int | None = None
    model: str | None = None
    text_field: str = "text"
    threshold: float | None = None
    query_timeout_seconds: float | None = None
    namespace: str | None = None
    open_model: OpenModel | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an ``ef_search`` that pgvector does not take."""
        if self.ef_search is not None and not 1 <= self.ef_search <= MAX_EF_SEARCH:
            raise ConfigError(f"ef_search is {self.ef_search}; expected 1 to {MAX_EF_SEARCH}")
