"""Pages of keys from wherever they are listed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol


class Keys(Protocol):
    """A listing of keys: those of a source, or of rows of the table."""

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Iterate over pages of keys, each with the token of the page after it."""
        ...


class Pages:
    """Pages of keys one by one, from a listing that stays open; after an error it is opened again where it stood."""

    def __init__(self, keys: Keys, token: str | None) -> None:
        self._keys = keys
        self._token = token
        self._listing: Iterator[tuple[Sequence[str], str | None]] | None = None

    def next(self) -> tuple[Sequence[str], str | None]:
        """Return the next page and the token of the page after it: a step that can be tried again by itself."""
        if self._listing is None:
            self._listing = self._keys.iter_keys(self._token)
        try:
            keys, self._token = next(self._listing, ((), None))
        except BaseException:
            self.close()
            raise
        return keys, self._token

    def close(self) -> None:
        """Close the listing, and release what it holds."""
        if isinstance(self._listing, Generator):
            self._listing.close()
        self._listing = None
