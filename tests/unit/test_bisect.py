"""Halving finds every quarantined row wherever it stands, within the number of tries that is stated."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amprenta_vectors.bisect import ALWAYS_ISOLATED, Isolated, budget, isolate, most_tries


def halve(rows: int, bad: set[int], most: int | None = None) -> tuple[Isolated[str], list[int], int]:
    """What was found, the rows that passed, and how many tries there were."""
    passed: list[int] = []
    tries = 0

    def attempt(start: int, end: int) -> str | None:
        nonlocal tries
        tries += 1
        assert start < end
        if bad & set(range(start, end)):
            return f"{start}:{end}"
        passed.extend(range(start, end))
        return None

    return isolate(rows, attempt, most), passed, tries


@st.composite
def rows_and_bad(draw: st.DrawFn) -> tuple[int, set[int]]:
    rows = draw(st.integers(1, 1500))
    return rows, draw(st.sets(st.integers(0, rows - 1), max_size=min(rows, 60)))


@given(rows_and_bad())
def test_every_refused_row_stands_alone_and_every_other_passes_once_within_the_stated_tries(
    given_rows: tuple[int, set[int]],
) -> None:
    rows, bad = given_rows
    found, passed, tries = halve(rows, bad)
    assert sorted(row for row, _ in found.alone) == sorted(bad)
    assert sorted(passed) == sorted(set(range(rows)) - bad)
    assert found.unsettled == []
    assert found.tries == tries <= most_tries(rows, len(bad)) <= budget(rows)
    assert found.passed == len(passed)


@given(rows_and_bad(), st.integers(1, 80))
def test_no_row_is_lost_and_no_try_made_once_the_tries_are_spent(given_rows: tuple[int, set[int]], most: int) -> None:
    rows, bad = given_rows
    found, passed, tries = halve(rows, bad, most)
    left = [row for start, end, _ in found.unsettled for row in range(start, end)]
    assert tries <= most
    assert sorted([*passed, *left, *(row for row, _ in found.alone)]) == list(range(rows))


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_the_closed_form_bounds_the_tries(rows: int, bad: int) -> None:
    bad = min(bad, rows)
    closed = 2 * bad * ((rows - 1).bit_length() - int(math.log2(bad)) + 1)
    assert most_tries(rows, bad) <= max(closed, 1)


@pytest.mark.parametrize(("rows", "bad", "tries"), [(1, 1, 1), (2, 1, 3), (8, 8, 15), (1000, 1, 21), (1000, 7, 113)])
def test_the_number_of_tries_is_the_one_that_is_documented(rows: int, bad: int, tries: int) -> None:
    assert most_tries(rows, bad) == tries


def test_rows_that_stand_as_badly_as_they_can_take_all_the_tries_that_are_allowed() -> None:
    assert halve(1024, {0, 256, 512, 768})[2] == most_tries(1024, 4)


@given(st.integers(1, ALWAYS_ISOLATED))
def test_in_a_small_batch_every_row_may_be_bad_and_is_found(rows: int) -> None:
    found, _, _ = halve(rows, set(range(rows)))
    assert len(found.alone) == rows
    assert found.unsettled == []


def test_without_rows_nothing_is_tried() -> None:
    assert halve(0, set())[2] == 0
