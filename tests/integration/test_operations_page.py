"""docs/operations.md: its SQL runs, its commands exist, and its figures are those of the doctor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from amprenta_vectors.cli import main
from amprenta_vectors.doctor import configuration, server
from amprenta_vectors.doctor.examine import TABLE_CHECKS
from amprenta_vectors.doctor.indexes import WORTH_AN_INDEX
from amprenta_vectors.doctor.upkeep import BLOATED_SHARE, DEAD_SHARE, HIT_SHARE, LEAST_BLOCKS

PAGE = Path(__file__).parents[2].joinpath("docs", "operations.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```sql *(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def first_words(block: tuple[str, str]) -> str:
    return "-".join(re.findall(r"\w+", block[1])[:6])


def test_every_sql_block_of_the_page_is_looked_at() -> None:
    assert len(BLOCKS) == PAGE.count("```sql") > 12


@pytest.mark.parametrize(("extension", "statement"), BLOCKS, ids=map(first_words, BLOCKS))
def test_the_sql_of_the_page_runs(engine: sa.Engine, extension: str, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True) as connection:
        loaded = "SELECT current_setting('shared_preload_libraries')"
        if extension and extension not in connection.exec_driver_sql(loaded).scalar_one():
            pytest.skip(f"the server of the tests does not load {extension}")
        if extension:
            connection.exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {extension}")
        connection.exec_driver_sql("INSERT INTO rag_chunks (chunk_id, embedding) VALUES ('k', '[1,1,1,1,1,1,1,1]')")
        result = connection.exec_driver_sql(statement)
        if result.returns_rows:
            result.all()


def test_the_commands_of_the_page_exist() -> None:
    named = set(re.findall(r"amprenta-vectors\s+([a-z][a-z-]+)", PAGE))
    assert {"canary", "doctor", "outbox", "index", "verify"} <= named
    assert named <= set(main.list_commands(None))  # type: ignore[attr-defined]


def test_every_check_of_the_doctor_is_in_the_table_of_the_page() -> None:
    _, _, rest = PAGE.partition("| check | looks for |")
    table = rest.partition("\n\n")[0]
    listed = {name.strip() for row in table.splitlines()[2:] for name in row.split("|")[1].split(",")}
    checks = (*configuration.CHECKS, *server.CHECKS, *TABLE_CHECKS)
    assert listed == {check.__name__.replace("_", " ") for check in checks} | {"connection", "table"}


def test_the_bounds_of_the_page_are_those_of_the_doctor() -> None:
    for bound in (f"over {DEAD_SHARE:.0%}", f"over {BLOATED_SHARE:.0%}", f"under {HIT_SHARE:.0%}"):
        assert bound.replace("%", " %") in PAGE
    assert f"{LEAST_BLOCKS:,} blocks" in PAGE
    assert f"from {WORTH_AN_INDEX:,} rows" in PAGE
