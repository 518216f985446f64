"""Texts embedded by four processes, below a limit on the cost, by a service that limits, fails and bills."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from forms import FORM
from paid_texts import embed_with_a_limit_and_a_kill


def test_the_cost_is_held_by_four_processes_and_nothing_is_embedded_twice_but_what_a_kill_lost(
    engine: sa.Engine, tmp_path: Path
) -> None:
    embed_with_a_limit_and_a_kill(engine, tmp_path, FORM.paid_texts, batch_size=100)
