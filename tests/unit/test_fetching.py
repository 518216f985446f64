"""Fetching a batch from a source that refuses a request as a whole."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from backfill_tools import StubSource

from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.errors import KeysRefused

KEYS = [f"key-{number}" for number in range(10)]


def test_what_is_refused_together_and_taken_in_parts_arrives_whole() -> None:
    source = StubSource({key: [np.full(8, number)] for number, key in enumerate(KEYS)})

    def refuse_many(keys: Sequence[str]) -> None:
        if len(keys) > 5:
            raise KeysRefused("too many at once")

    source.before_fetch = refuse_many
    fetched = fetch_all(Backoff(1.0, threading.Event(), lambda _: None), source, KEYS)
    assert sorted(fetched.source_keys) == KEYS
    assert (len(fetched.vectors), fetched.quarantined) == (10, ())
