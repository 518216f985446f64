"""Lists ids with several cursors at once, each on a prefix of its own, so that no single cursor sets the pace.

Nothing is assumed of the order of a listing, nor of what a page token is. The ids that begin with ``p`` are ``p``
itself and, for every character ``c`` that an id may hold, the ids that begin with ``p + c``: so a prefix is split by
listing all of these in its place. The first page of ``p`` is dropped, because the parts give it again, and whether
``p`` itself is an id is asked by name.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backends.request_threads import RequestThreads
from amprenta_vectors.errors import AmprentaError, SourceError

ALPHABET = [chr(code) for code in range(1, 128)]
"""The characters of an id: ASCII but NUL (https://docs.pinecone.io/guides/index-data/data-modeling#record-format)."""
CURSORS = 8
"""Requests at once. At 20 ms each that is 400 a second; Pinecone takes 200 list requests a second of an index."""
PARTS_PER_CURSOR = 4
"""Large parts at which splitting stops: enough that the largest is not listed alone for long at the end."""
PROBE_SHARE = 0.5
"""Requests that look for parts, as a share of the pages that the listing has.

A page costs 1 read unit and fetching its ids 10
(https://docs.pinecone.io/guides/manage-cost/understanding-cost#read-units), so the probes add less than 5 % to what a
run costs; with eight at once, a sixteenth to the time of a single cursor. At 127 characters to a split, a listing of
fewer than 25,400 ids is not split. Ids that all begin alike need a split for every letter that they share: if the first
page shares more than there are probes for, no split is started.
"""

Page = tuple[Sequence[str], str | None]
ListPage = Callable[[str, str | None], Page]
"""One page of the ids with a prefix, after a token; and the token of the next page."""


@dataclass
class _State:
    """The progress of a listing: which ids were handed out. A token encodes it."""

    cursors: dict[str, str | None] = field(default_factory=dict)
    """The token of the next page of each open prefix; None for the first page."""
    untried: list[tuple[str, int]] = field(default_factory=list)
    """Prefixes that were split, each with the place in `ALPHABET` from which its parts are still to be opened."""
    probes: int = 0
    """Requests spent on looking for parts."""

    def to_token(self) -> str | None:
        if not self.cursors and not self.untried:
            return None
        return json.dumps([list(self.cursors.items()), self.untried, self.probes], separators=(",", ":"))

    @classmethod
    def from_token(cls, token: str | None) -> _State:
        if token is None:
            return cls({"": None})
        try:
            cursors, untried, probes = json.loads(token)
            return cls(dict(cursors), [(str(prefix), int(place)) for prefix, place in untried], int(probes))
        except (ValueError, TypeError) as error:
            raise TokenRefused(f"not a token of this listing: {error}") from error


class Listing:
    """All ids that ``list_page`` gives, starting after ``token``; each once, if nothing changes during the listing.

    ``has`` tells whether an id exists. ``count`` is roughly how many ids there are; it decides whether the listing is
    split at all. A token says exactly what was handed out, so a listing that is stopped and resumed repeats no page
    that was taken, and at most ``cursors`` requests. One listing is one pass: it is not to be iterated twice.
    """

    def __init__(
        self,
        list_page: ListPage,
        has: Callable[[str], bool],
        count: int,
        page: int,
        token: str | None = None,
        *,
        cursors: int = CURSORS,
    ) -> None:
        self._list = list_page
        self._has = has
        self._most_cursors = cursors
        self._budget = int(count / page * PROBE_SHARE)
        self._state = _State.from_token(token)
        self._handed_out = self._state.to_token()
        self._queue: deque[str] = deque(self._state.cursors)
        """Open prefixes that wait for a request."""
        self._large: dict[str, Page] = {}
        """The first pages of prefixes that have more, held back while the prefix may still be split."""
        # A prefix is listed past its first page only after the last split.
        self._splitting = self._splits_left() > 0 and not any(self._state.cursors.values())

    def __iter__(self) -> Iterator[Page]:
        """Yield pages, each with the token that resumes after it.

        Raises what ``list_page`` raises, once everything else is handed out.
        """
        failure: Exception | None = None
        with closing(RequestThreads(self._list, self._most_cursors)) as requests:
            while failure is None or requests.pending:
                if failure is None:
                    try:
                        yield from self._decide(requests.pending)
                    except AmprentaError as error:
                        failure = error
                        continue
                    self._ask(requests)
                    if not requests.pending:
                        break
                prefix, answer = requests.take()
                if isinstance(answer, Exception):
                    failure = failure or answer
                else:
                    yield from self._take_in(prefix, answer, requests, go_on=failure is None)
        if self._state.to_token() != self._handed_out:
            # Prefixes without any id: a resumed listing need not look there again.
            yield self._page([])
        if failure is not None:
            raise failure

    def _page(self, keys: Sequence[str]) -> Page:
        self._handed_out = self._state.to_token()
        return keys, self._handed_out

    def _splits_left(self) -> int:
        return (self._budget - self._state.probes) // len(ALPHABET)

    def _ask(self, requests: RequestThreads) -> None:
        """Send requests until as many are pending as are allowed."""
        while requests.pending < self._most_cursors and (self._queue or self._open_part()):
            prefix = self._queue.popleft()
            self._state.probes += self._splitting
            requests.send(prefix, self._state.cursors[prefix])

    def _open_part(self) -> bool:
        """Open the next part of a prefix that was split; return whether there was one."""
        untried = self._state.untried
        if not untried:
            return False
        parent, place = untried.pop()
        if place + 1 < len(ALPHABET):
            untried.append((parent, place + 1))
        part = parent + ALPHABET[place]
        self._state.cursors[part] = None
        self._queue.append(part)
        return True

    def _take_in(self, prefix: str, page: Page, requests: RequestThreads, *, go_on: bool) -> Iterator[Page]:
        keys, following = page
        first = self._state.cursors[prefix] is None
        if following is not None and first and self._splitting:
            self._large[prefix] = page
            return
        self._advance(prefix, following)
        if following is not None and go_on:
            # Sent before the page is handed out, so that the next one is on its way meanwhile.
            requests.send(prefix, following)
        if keys:
            yield self._page(keys)

    def _advance(self, prefix: str, following: str | None) -> None:
        if following is None:
            del self._state.cursors[prefix]
        else:
            self._state.cursors[prefix] = following

    def _decide(self, pending: int) -> Iterator[Page]:
        """Split the largest part, once the size of every part is known, or stop splitting and list what there is."""
        if not self._splitting or pending or self._queue or self._state.untried:
            return
        prefix = self._next_to_split()
        if prefix is not None and self._splits_by(prefix):
            yield from self._split(prefix)
            return
        self._splitting = False
        while self._large:
            prefix, (keys, following) = self._large.popitem()
            self._advance(prefix, following)
            self._queue.append(prefix)
            yield self._page(keys)

    def _next_to_split(self) -> str | None:
        """Return the part that is probably the largest; None if no more are to be split.

        The ids of a large part lie densest, so the ids of its first page share the longest prefix.
        """
        if len(self._large) >= self._most_cursors * PARTS_PER_CURSOR:
            return None
        shared = {prefix: _shared(keys) - len(prefix) for prefix, (keys, _) in self._large.items()}
        within = [prefix for prefix, more in shared.items() if more < self._splits_left()]
        return max(within, key=lambda prefix: shared[prefix], default=None)

    def _splits_by(self, prefix: str) -> bool:
        """Return whether the service lists a prefix with a blank in it; its documentation says it does not."""
        blank = prefix + " "
        self._state.probes += 1
        try:
            keys, _ = self._list(blank, None)
        except SourceError:
            return False
        return all(key.startswith(blank) for key in keys)

    def _split(self, prefix: str) -> Iterator[Page]:
        keys, _ = self._large[prefix]
        itself = prefix != "" and (prefix in keys or self._has(prefix))
        del self._large[prefix], self._state.cursors[prefix]
        self._state.untried.append((prefix, 0))
        if itself:
            yield self._page([prefix])


def _shared(keys: Sequence[str]) -> int:
    """Return how many leading characters a page's ids have in common."""
    if not keys:
        return 0
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(keys), max(keys), strict=False)))
