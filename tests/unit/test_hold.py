"""What may begin while a run is held."""

from __future__ import annotations

import pytest

from amprenta_vectors.backfill.engine.hold import GRACE_SECONDS, Control, Held


def test_what_was_fetched_may_be_written_for_a_short_grace_and_nothing_else_may_begin() -> None:
    now = 100.0
    control = Control(clock=lambda: now)
    control.check()
    control.pause()
    with pytest.raises(Held):
        control.check()
    now += GRACE_SECONDS
    control.check_write()
    now += 0.01
    with pytest.raises(Held):
        control.check_write()
    control.resume()
    control.check()
    control.check_write()


def test_a_process_that_ends_is_not_resumed_and_its_grace_counts_from_the_first_hold() -> None:
    now = 100.0
    control = Control(clock=lambda: now)
    control.pause()
    now += 5.0
    control.end()
    control.resume()
    assert control.halt.is_set()
    assert control.held_seconds == 5.0
    assert not control.may_begin
