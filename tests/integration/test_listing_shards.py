"""A listing by several cursors gives what one cursor gives: every id, once, from wherever it is resumed."""

from __future__ import annotations

import json
import random
import string
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest
from backfill_tools import open_pinecone, to_ids, to_vectors

from amprenta_vectors.backends import listing
from amprenta_vectors.backends.listing import ALPHABET, Listing
from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.errors import SourceError, TransientError
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.pinecone.faults import Calls
from amprenta_vectors.sandbox.pinecone.records import Record
from amprenta_vectors.sandbox.pinecone.service import IndexService
from amprenta_vectors.sandbox.pinecone.store import Description, Store
from amprenta_vectors.sandbox.strange import strange_records

StartEmulator = Callable[..., PineconeEmulator]
PAGE = 5
PLENTY = 20_000
"""A count at which as much is split as is of use."""


class Service:
    """The emulator's own listing without sockets: its order is no order of bytes."""

    def __init__(self, ids: Sequence[str]) -> None:
        store = Store(None, Description("test", 8, "cosine", None))
        store.put("__default__", [Record(id_, b"") for id_ in ids])
        self._service = IndexService(store, Calls())
        self.ids = set(ids)
        self.asked: list[tuple[str, str | None]] = []
        self.before: Callable[[str], None] = lambda prefix: None

    def list(self, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]:
        self.asked.append((prefix, token))
        self.before(prefix)
        page = self._service.list_ids("", prefix, PAGE, token)
        return page.items, page.next

    def listing(self, token: str | None = None, count: int = PLENTY, cursors: int = 8) -> Listing:
        return Listing(self.list, self.ids.__contains__, count, PAGE, token, cursors=cursors)


def keys(pages: Iterator[tuple[Sequence[str], str | None]] | Listing) -> list[str]:
    return [key for page, _ in pages for key in page]


def strange(random: random.Random) -> list[str]:
    return sorted({record.id for record in strange_records(8)})


def uuids(random: random.Random) -> list[str]:
    return [str(uuid.UUID(int=random.getrandbits(128))) for _ in range(700)]


def numbered(random: random.Random) -> list[str]:
    return [f"document-{number // 10}#chunk-{number % 10}" for number in range(900)]


def numbers(random: random.Random) -> list[str]:
    return [str(random.randrange(10**6)) for _ in range(700)]


def nested(random: random.Random) -> list[str]:
    """Each is the beginning of the next, up to the longest that an id may be."""
    return ["a" * length for length in range(1, 513)] + ["a" * length + "b" for length in range(0, 500, 7)]


def of_few_letters(random: random.Random) -> list[str]:
    return list({"".join(random.choices("aA \x01\x7f", k=random.randrange(1, 9))) for _ in range(900)})


def one(random: random.Random) -> list[str]:
    return ["x"]


def lopsided(random: random.Random) -> list[str]:
    return [f"z{number}" for number in range(20)] + [
        "y" + "".join(random.choices(string.hexdigits, k=6)) for _ in range(800)
    ]


KINDS = pytest.mark.parametrize(
    "make", [strange, uuids, numbered, numbers, nested, of_few_letters, one, lopsided], ids=lambda make: make.__name__
)


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_every_id_is_listed_once(make: Callable[[random.Random], list[str]], seed: int) -> None:
    chance = random.Random(seed)
    ids = list(dict.fromkeys(make(chance)))
    for count in (len(ids), PLENTY, chance.randrange(PLENTY)):
        found = keys(Service(ids).listing(count=count, cursors=chance.choice([1, 3, 8])))
        assert sorted(found) == sorted(ids)


@KINDS
def test_from_any_token_the_rest_is_listed_once(make: Callable[[random.Random], list[str]]) -> None:
    ids = list(dict.fromkeys(make(random.Random(0))))
    pages = list(Service(ids).listing())
    assert pages[-1][1] is None
    assert all(token is not None for _, token in pages[:-1])
    for stopped in range(0, len(pages) - 1, max(1, len(pages) // 25)):
        before = [key for page, _ in pages[: stopped + 1] for key in page]
        assert sorted(before + keys(Service(ids).listing(pages[stopped][1]))) == sorted(ids)


@pytest.mark.parametrize("seed", range(5))
def test_failures_lose_no_id_and_repeat_none(seed: int) -> None:
    chance = random.Random(seed)
    ids = uuids(chance) + numbered(chance)
    service = Service(ids)

    def fail(prefix: str) -> None:
        if chance.random() < 0.1:
            raise TransientError("passing")

    service.before = fail
    found: list[str] = []
    token: str | None = None
    for _ in range(10_000):
        try:
            for page, following in service.listing(token):
                found.extend(page)
                token = following
        except TransientError:
            continue
        break
    assert sorted(found) == sorted(ids)
    assert len({prefix for prefix, _ in service.asked}) > len(ALPHABET)


def test_a_listing_goes_on_under_failures_so_often_that_no_two_requests_in_a_row_succeed() -> None:
    ids = uuids(random.Random(1))
    service = Service(ids)
    lock = threading.Lock()
    calls = 0

    def fail(prefix: str) -> None:
        nonlocal calls
        with lock:
            calls += 1
            if calls % 2:
                raise TransientError("passing")

    service.before = fail
    found: list[str] = []
    token: str | None = None
    for _ in range(5_000):
        try:
            for page, following in service.listing(token, count=40 * PAGE * len(ALPHABET)):
                found.extend(page)
                token = following
        except TransientError:
            continue
        break
    assert sorted(found) == sorted(ids)


def test_looking_for_parts_costs_its_share_of_the_pages_at_most() -> None:
    ids = nested(random.Random(0))
    plain = -(-len(ids) // PAGE)
    for count in (1, 1000, 10_000, 20_000):
        service = Service(ids)
        keys(service.listing(count=count))
        share = int(count / PAGE * listing.PROBE_SHARE)
        assert len(service.asked) - plain <= max(share, 0)
        assert ({prefix for prefix, _ in service.asked} == {""}) == (share < len(ALPHABET))


def test_ids_that_begin_alike_for_longer_than_there_are_probes_are_listed_by_one_cursor() -> None:
    service = Service([f"{'common/' * 20}{number}" for number in range(300)])
    assert len(keys(service.listing())) == 300
    assert {prefix for prefix, _ in service.asked} == {""}


def test_several_cursors_are_at_work_at_once() -> None:
    service = Service(uuids(random.Random(2)))
    lock = threading.Lock()
    at_once: list[int] = []
    running = 0

    def pause(prefix: str) -> None:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        time.sleep(0.002)
        with lock:
            running -= 1

    service.before = pause
    keys(service.listing())
    assert max(at_once) == 8


def test_a_service_that_takes_no_blank_in_a_prefix_is_listed_by_one_cursor() -> None:
    ids = [*uuids(random.Random(3)), *strange(random.Random(3)), "with a blank"]
    service = Service(ids)

    def refuse(prefix: str) -> None:
        if " " in prefix:
            raise SourceError("prefix must not contain blanks")

    service.before = refuse
    assert sorted(keys(service.listing())) == sorted(ids)
    assert {prefix for prefix, _ in service.asked} == {"", " "}


def test_a_listing_that_is_closed_lets_its_threads_end() -> None:
    service = Service(uuids(random.Random(4)))
    before = set(threading.enumerate())
    pages = iter(service.listing())
    next(pages)
    assert {thread for thread in threading.enumerate() if thread not in before}
    pages.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10.0
    while {thread for thread in threading.enumerate() if thread not in before}:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("token", ["stale", "5", "[]", '["a"]', "[[1],[2],3]", '{"a":1}'])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(TokenRefused):
        keys(Service(["a"]).listing(token))


def test_a_token_stays_small() -> None:
    tokens = [token or "" for _, token in Service(uuids(random.Random(5))).listing()]
    assert max(map(len, tokens)) < 10_000
    assert all(isinstance(json.loads(token), list) for token in tokens if token)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_pinecone_is_listed_by_several_cursors(
    emulator: StartEmulator, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many splits of so few ids as a listing of a million has.
    monkeypatch.setattr(listing, "PROBE_SHARE", 20.0)
    pinecone = emulator()
    ids = list(dict.fromkeys([*uuids(random.Random(6)), *strange(random.Random(6)), *to_ids(2000)]))
    pinecone.load("ns", ids, to_vectors(len(ids)))
    pinecone.faults.set("list", Fault(latency=0.02))
    source = open_pinecone(pinecone, "ns", transport=transport)
    pages = list(source.iter_keys())
    assert sorted(key for page, _ in pages for key in page) == sorted(ids)
    assert pinecone.calls.most_at_once["list"] == 8
    middle = len(pages) // 2
    rest = [key for page, _ in source.iter_keys(pages[middle][1]) for key in page]
    assert sorted([key for page, _ in pages[: middle + 1] for key in page] + rest) == sorted(ids)
