"""What conftest promises to every other test."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.sandbox.pinecone import PineconeEmulator


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_has_an_empty_database(database_url: str, time: str) -> None:
    engine = create_engine(Settings.load(database_url=database_url))
    with engine.begin() as connection:
        assert sa.inspect(connection).get_table_names() == []
        assert (
            connection.exec_driver_sql("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").scalar_one() == 0
        )
        connection.exec_driver_sql("CREATE TABLE left_behind ()")


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_has_an_upgraded_database(engine: sa.Engine, time: str) -> None:
    with engine.begin() as connection:
        names = sa.inspect(connection).get_table_names()
        assert "migration_run" in names
        assert "left_behind" not in names
        connection.exec_driver_sql("CREATE TABLE left_behind ()")


def test_no_setting_comes_from_the_callers_environment() -> None:
    prefixes = ("POSTGRES_", "PINECONE_", "VECTOR_", "AMPRENTA_")
    # Those that the tests themselves set: reports go to a folder of their own, and no test waits for a look.
    ours = {"AMPRENTA_REPORT", "AMPRENTA_POLL_SECONDS"}
    # What repeats a run of torture is told to its processes, and is no setting of the package.
    form = {"AMPRENTA_TEST_FORM", "AMPRENTA_TORTURE_SEED"}
    assert {name for name in os.environ if name.startswith(prefixes)} - form == ours


def test_emulators_run_side_by_side(emulator: Callable[..., PineconeEmulator]) -> None:
    one, other = emulator(), emulator(dimension=3, metric="euclidean")
    one.load("", ["a"], np.ones((1, 8), dtype=np.float32))
    assert one.host != other.host
