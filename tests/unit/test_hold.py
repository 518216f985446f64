"""What may begin while a run is held."""

from __future__ import annotations

import pytest

from amprenta_vectors.backfill.engine.hold import GRACE_SECONDS, Held, Hold


def test_what_was_fetched_may_be_written_for_a_short_grace_and_nothing_else_may_begin() -> None:
    now = 100.0
    hold = Hold(clock=lambda: now)
    hold.check()
    hold.pause()
    with pytest.raises(Held):
        hold.check()
    now += GRACE_SECONDS
    hold.check_write()
    now += 0.01
    with pytest.raises(Held):
        hold.check_write()
    hold.resume()
    hold.check()
    hold.check_write()


def test_a_process_that_ends_is_not_resumed_and_its_grace_counts_from_the_first_hold() -> None:
    now = 100.0
    hold = Hold(clock=lambda: now)
    hold.pause()
    now += 5.0
    hold.end()
    hold.resume()
    assert hold.ending.is_set()
    assert hold.held_seconds == 5.0
    assert not hold.may_begin
