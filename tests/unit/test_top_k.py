"""How many hits may be asked for is the same for every store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.top_k import to_top_k


@pytest.mark.parametrize("top_k", [1.5, 1.0, None, "3", True, float("nan"), float("inf"), 0, -1, 10_001, [3]])
def test_what_is_no_number_of_hits_is_refused_by_what_it_is(top_k: Any) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 1 to 10000"):
        to_top_k(top_k)


@pytest.mark.parametrize("top_k", [1, 10_000, np.int64(5)])
def test_whole_numbers_are_taken(top_k: Any) -> None:
    assert type(to_top_k(top_k)) is int
