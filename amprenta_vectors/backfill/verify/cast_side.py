"""The source's side of a verification where the source lies in the same database: PostgreSQL makes its digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.protocol import CastSource
from amprenta_vectors.backfill.engine.reading import Reading
from amprenta_vectors.backfill.writing.sink import stored_embedding
from amprenta_vectors.batch import Key
from amprenta_vectors.bisect import isolate
from amprenta_vectors.pg.errors import is_row_refusal, refusal_of
from amprenta_vectors.schema.keymaps import to_own_keys
from amprenta_vectors.schema.slice import Slice, given_keys


class CastSide:
    """Fills the source's side with the digests of what PostgreSQL casts now, batch by batch."""

    def __init__(self, slice_: Slice, source: CastSource, reading: Reading) -> None:
        self._slice = slice_
        self._source = source
        self._reading = reading

    def fill(self, connection: Connection, there: sa.Table, on_progress: Callable[[int], None]) -> int:
        """Fill ``there`` and return how many vectors the source has; what is no vector stands there with its reason."""
        compared = 0
        for source_keys in self._reading.batches():
            compared += self._fill_batch(connection, there, to_own_keys(self._slice.key_map, source_keys))
            on_progress(compared)
        return compared

    def _fill_batch(self, connection: Connection, there: sa.Table, keys: Mapping[Key, str]) -> int:
        """Return how many of ``keys`` have a vector."""
        refused = {key: error.detail for key, error in self._source.doubled(connection, list(keys)).items()}
        asked = [key for key in keys if key not in refused]
        compared = 0

        def attempt(start: int, end: int) -> str | None:
            nonlocal compared
            try:
                with connection.begin_nested():
                    compared += connection.execute(self._insert(there, asked[start:end], keys)).rowcount
            except DBAPIError as error:
                if not is_row_refusal(error):
                    raise
                return refusal_of(error)
            return None

        bad = isolate(len(asked), attempt)
        refused |= {asked[row]: why for row, why in bad.alone}
        refused |= {asked[row]: why for start, end, why in bad.unsettled for row in range(start, end)}
        if refused:
            columns = [f"key_{position}" for position in range(len(self._slice.table.key))]
            rows = [
                {**dict(zip(columns, key, strict=True)), "source": keys[key], "quarantined": why}
                for key, why in refused.items()
            ]
            connection.execute(sa.insert(there), rows)
        return compared

    def _insert(self, there: sa.Table, keys: Sequence[Key], source_keys: Mapping[Key, str]) -> sa.Insert:
        slice_, table = self._slice, self._slice.table
        given = given_keys(keys, width=len(table.key), source=[source_keys[key] for key in keys])
        embedding = stored_embedding(table, self._source.vector(slice_))
        digest = sa.func.sha256(slice_.send(embedding))
        names = [*(f"key_{position}" for position in range(len(table.key))), "source", "digest"]
        values = [*(given.c[name] for name in names[:-1]), digest]
        selected = sa.select(*values).where(*slice_.is_row_of(given), *self._source.joined(slice_))
        return sa.insert(there).from_select(names, selected)
