"""What is gone is listed and deleted for a run that goes on, and for no other: pauses, cancels, several processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, execute, run_job, stored, to_ids, to_job, to_vectors

from amprenta_vectors.backfill.engine.ending import Ending
from amprenta_vectors.backfill.engine.hold import Held
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.reconcile import gone
from amprenta_vectors.backfill.reconcile.gone import GoneRows, find_gone
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.moves import orders

IDS, VECTORS = to_ids(40), to_vectors(40)
GONE = IDS[:5]
UNFINISHED = "SELECT id FROM migration_run WHERE state IN ('running', 'paused')"


def stub(*without: str) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True) if key not in without})


def reconcile(engine: sa.Engine, source: StubSource, **changes: Any) -> Summary:
    return run_job(engine, to_job(engine, source, keys_from="reconcile", delete=True, **changes), "resume")


def when_gone_are_asked_for(source: StubSource, step: Callable[[], None]) -> None:
    """Once, while the rows that are gone are looked for at the source: they are listed by then, and none is deleted."""

    def before(keys: Sequence[str]) -> None:
        if set(keys) & set(GONE):
            source.before_fetch = lambda _: None
            step()

    source.before_fetch = before


def the_run(engine: sa.Engine) -> int:
    [(run,)] = execute(engine, UNFINISHED)
    return int(run)


def test_nothing_is_deleted_once_the_run_was_cancelled(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    source = stub(*GONE)
    when_gone_are_asked_for(source, lambda: orders.cancel(engine, the_run(engine)))
    with pytest.raises(RunConflict, match="was cancelled by somebody else"):
        reconcile(engine, source)
    assert len(stored(engine)) == 40


def test_a_run_that_is_cancelled_halfway_lists_nothing_as_gone(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    source = stub()

    def cancel(token: str | None) -> None:
        if token == "20":
            deadline = time.monotonic() + 20
            while not execute(engine, "SELECT 1 FROM migration_progress WHERE run_id = 2 AND status = 'done'"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            orders.cancel(engine, the_run(engine))

    source.before_page = cancel
    with pytest.raises(RunConflict, match="was cancelled by somebody else"):
        reconcile(engine, source, batch_size=10)
    assert execute(engine, "SELECT count(*) FROM migration_quarantine") == [(0,)]
    assert len(stored(engine)) == 40


def while_looking(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    """Once, after it was seen that the run goes on, and before what is gone is looked for."""

    def look(*arguments: Any) -> Any:
        monkeypatch.setattr(gone, "find_gone", find_gone)
        step()
        return find_gone(*arguments)

    monkeypatch.setattr(gone, "find_gone", look)


def test_a_run_that_is_cancelled_while_it_looks_lists_nothing(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(engine, to_job(engine, stub()))
    while_looking(monkeypatch, lambda: orders.cancel(engine, the_run(engine)))
    with pytest.raises(RunConflict, match="was cancelled by somebody else"):
        reconcile(engine, stub(*GONE))
    assert execute(engine, "SELECT count(*) FROM migration_quarantine") == [(0,)]
    assert len(stored(engine)) == 40


@pytest.mark.parametrize("held", [True, False])
def test_a_paused_run_deletes_nothing_until_it_goes_on(engine: sa.Engine, held: bool) -> None:
    run_job(engine, to_job(engine, stub()))
    source = stub(*GONE)
    found: list[int] = []

    def pause_and_resume() -> None:
        run = the_run(engine)
        orders.pause(engine, run)
        paused.set()
        time.sleep(0.5)
        found.append(len(stored(engine)))
        orders.resume(engine, run)

    paused, person = threading.Event(), threading.Thread(target=pause_and_resume)

    def pause() -> None:
        person.start()
        assert paused.wait(20)
        if held:
            # As a source's meter does.
            raise Held

    when_gone_are_asked_for(source, pause)
    summary = reconcile(engine, source)
    person.join()
    assert summary.gone is not None
    assert (found, summary.gone.deleted, summary.errors) == ([40], 5, {})
    assert len(stored(engine)) == 35


def test_a_process_that_is_told_to_stop_deletes_nothing_more(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    source, stop = stub(*GONE), threading.Event()
    page = GoneRows._page

    def page_then_stop(self: GoneRows, last: str | None) -> list[str]:
        stop.set()
        return page(self, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GoneRows, "_page", page_then_stop)
        job = to_job(engine, source, keys_from="reconcile", delete=True)
        assert run_job(engine, job, "resume", stop=stop).interrupted
    assert len(stored(engine)) == 40
    summary = reconcile(engine, source)
    assert summary.gone is not None
    assert (summary.gone.deleted, len(stored(engine))) == (5, 35)


@pytest.mark.parametrize("late", ["before looking", "while looking", "before deleting"])
def test_of_two_processes_the_later_finds_the_run_settled_and_finished(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    run_job(engine, to_job(engine, stub()))
    others: list[Summary] = []

    def other_process() -> None:
        monkeypatch.setattr(GoneRows, "settle", settle)
        monkeypatch.setattr(GoneRows, "_page", page)
        others.append(reconcile(engine, stub(*GONE)))

    settle, page = GoneRows.settle, GoneRows._page
    if late == "while looking":
        while_looking(monkeypatch, other_process)
    elif late == "before looking":

        def settle_late(self: GoneRows, *, delete: bool) -> Gone:
            other_process()
            return settle(self, delete=delete)

        monkeypatch.setattr(GoneRows, "settle", settle_late)
    else:

        def list_page(self: GoneRows, last: str | None) -> list[str]:
            found = page(self, last)
            other_process()
            return found

        monkeypatch.setattr(GoneRows, "_page", list_page)
    summary = reconcile(engine, stub(*GONE))
    [other] = others
    assert other.gone is not None
    assert (other.gone.deleted, other.run.id, other.ended_it) == (5, summary.run.id, True)
    assert (summary.gone, summary.ended_it, summary.errors) == (None, False, {})
    assert len(stored(engine)) == 35


def test_what_one_process_has_settled_the_next_does_not_list_again(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(engine, to_job(engine, stub()))
    source, end = stub(), Ending._finish
    listed = source.iter_keys

    def leave_out(token: str | None = None) -> Any:
        for keys, following in listed(token):
            yield [key for key in keys if key not in GONE], following

    source.iter_keys = leave_out  # type: ignore[method-assign]
    others: list[Summary] = []

    def other_process_first(self: Ending, *arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Ending, "_finish", end)
        others.append(reconcile(engine, source))
        return end(self, *arguments, **named)

    monkeypatch.setattr(Ending, "_finish", other_process_first)
    monkeypatch.setattr(GoneRows, "_settle_page", _once(GoneRows._settle_page))
    summary = reconcile(engine, source)
    assert (summary.errors, others[0].errors) == ({}, {})
    assert len(stored(engine)) == 40


def _once(step: Callable[..., Any]) -> Callable[..., Any]:
    """Called again, it fails."""
    called: list[bool] = []

    def call(*arguments: Any) -> Any:
        assert not called
        called.append(True)
        return step(*arguments)

    return call
