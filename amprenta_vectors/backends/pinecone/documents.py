"""A Pinecone document index (API 2026-07), read through the official SDK: each document has its vector in a field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pinecone import SparseValues

from amprenta_vectors.backends.pinecone.client import MAX_RECORDS, PineconeIndex, sdk_errors, split_requests
from amprenta_vectors.backends.pinecone.limits import PAGE
from amprenta_vectors.backends.pinecone.transports import Record, open_handle, refusing
from amprenta_vectors.errors import KeysRefused

ID = "_id"


class DocumentsTransport:
    """Reads ids and documents. A document's metadata are its fields without the vectors.

    The vector is in ``index.vector_field``, sparse values are in ``index.sparse_field``. Other vector fields are left
    to a run of their own.
    """

    name = "rest"

    def __init__(self, index: PineconeIndex) -> None:
        self._handle = open_handle(index)
        self._vector_field = index.vector_field or ""
        self._sparse_field = index.sparse_field or ""
        self._no_metadata = {ID, self._sparse_field, *index.vector_fields}

    def list(self, namespace: str, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]:
        """Return one page of the ids with a prefix, and the token of the next page."""
        with refusing(token), sdk_errors("listing documents"):
            listing = self._handle.documents.list(
                namespace=_named(namespace), prefix=prefix or None, limit=PAGE, pagination_token=token
            )
            page = next(iter(listing.pages()))
        return [item.id for item in page.items], page.pagination_token

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Split keys into groups of at most 1000."""
        return split_requests(keys, MAX_RECORDS, lambda _: 1)

    def fetch(self, namespace: str, keys: Sequence[str]) -> Iterator[Record]:
        """Fetch the documents of at most 1000 keys."""
        with sdk_errors(f"fetching {len(keys)} documents", KeysRefused):
            response = self._handle.documents.fetch(namespace=_named(namespace), ids=list(keys))
        for key, document in response.documents.items():
            fields = document.to_dict()
            metadata = {name: value for name, value in fields.items() if name not in self._no_metadata}
            sparse = fields.get(self._sparse_field)
            yield (
                key,
                fields.get(self._vector_field) or (),
                metadata,
                SparseValues(indices=sparse["indices"], values=sparse["values"]) if sparse else None,
            )

    def close(self) -> None:
        """Close the handle."""
        self._handle.close()


def _named(namespace: str) -> str:
    """Return the namespace as it is written in a URL's path."""
    return namespace or "__default__"
