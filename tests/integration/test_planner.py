"""The planner runs ahead of the work, on one listing that stays open, and not further than it may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    execute,
    open_planner,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.planner import Planner
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.errors import TransientError

COUNT = 300


class Listed(StubSource):
    """A source that remembers from which tokens it was listed, and the pages it gave."""

    def __init__(self, page: int = 10) -> None:
        super().__init__(dict(zip(to_ids(COUNT), [[vector] for vector in to_vectors(COUNT)], strict=True)), page=page)
        self.opened: list[str | None] = []
        self.closed = 0
        self.pages = 0

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        self.opened.append(token)
        try:
            for page in super().iter_keys(token):
                self.pages += 1
                yield page
        finally:
            self.closed += 1


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def plan_anew(engine: sa.Engine, job: Job, batch_size: Callable[[], int] | None = None) -> Planner:
    stop = threading.Event()
    run = Backfill(engine, job, Recorder(), stop).start("new")
    planner = open_planner(engine, job, run, stop)
    planner._batch_size = batch_size or planner._batch_size
    return planner


def batch_sizes(engine: sa.Engine) -> list[int]:
    return [size for (size,) in execute(engine, "SELECT cardinality(keys) FROM migration_progress ORDER BY batch")]


def test_one_listing_is_open_from_the_first_page_to_the_last(engine: sa.Engine) -> None:
    source = Listed()
    run_job(engine, to_job(engine, source, batch_size=50))
    assert (source.opened, source.closed) == ([None], 1)


def test_after_a_failure_the_listing_goes_on_where_it_stood(engine: sa.Engine) -> None:
    source = Listed()
    failures = iter([True, True, False])

    def fail(token: str | None) -> None:
        if token == "120" and next(failures):
            raise TransientError("passing")

    source.before_page = fail
    summary = run_job(engine, to_job(engine, source, batch_size=50))
    assert source.opened == [None, "120", "120"]
    assert (summary.counts.written, summary.counts.skipped) == (COUNT, 0)


def test_pages_fill_a_batch_for_as_long_as_they_fit(engine: sa.Engine) -> None:
    plan_anew(engine, to_job(engine, Listed(page=7), batch_size=50)).run()
    assert batch_sizes(engine) == [49] * 6 + [6]


def test_a_page_larger_than_a_batch_is_cut_evenly(engine: sa.Engine) -> None:
    plan_anew(engine, to_job(engine, Listed(page=100), batch_size=40)).run()
    assert batch_sizes(engine) == [34, 34, 32] * 3


def test_another_batch_size_holds_from_the_next_batch_on(engine: sa.Engine) -> None:
    sizes = iter([20, 20, 20, 20])
    plan_anew(engine, to_job(engine, Listed()), lambda: next(sizes, 100)).run()
    assert batch_sizes(engine) == [20, 20, 100, 100, 60]


def test_no_more_is_listed_than_the_work_ahead(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amprenta_vectors.backfill.engine.planner.MOST_PENDING", 3)
    source, go_on = Listed(), threading.Event()
    source.before_fetch = lambda keys: bool(go_on.wait(20.0)) and None
    work = threading.Thread(target=run_job, args=(engine, to_job(engine, source, batch_size=10, workers=2)))
    work.start()
    # Two batches in hand and three that wait.
    until(lambda: len(batch_sizes(engine)) == 5)
    time.sleep(0.3)
    assert (len(batch_sizes(engine)), source.pages) == (5, 5)
    go_on.set()
    work.join()
    assert len(stored(engine)) == COUNT
