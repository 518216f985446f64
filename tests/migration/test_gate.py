"""The gate: no contract before the data is complete, and a pipeline told what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from amprenta_vectors.cli import main
from amprenta_vectors.ddl.gate import check_finished
from amprenta_vectors.errors import NotUpgraded, RunConflict

EXAMPLE = Path(__file__).parents[2] / "docs" / "expand_and_contract.md"


def execute(engine: sa.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def add_rows(engine: sa.Engine, filled: int, empty: int = 0) -> None:
    execute(
        engine,
        f"INSERT INTO rag_chunks (chunk_id, embedding) "
        f"SELECT 'f' || n, array_fill(n, ARRAY[8])::vector FROM generate_series(1, {filled}) n",
        f"INSERT INTO rag_chunks (chunk_id) SELECT 'e' || n FROM generate_series(1, {empty}) n",
    )


def begin_run(engine: sa.Engine, state: str, **errors: str) -> None:
    execute(
        engine,
        f"UPDATE migration_run SET source = 'somewhere', state = '{state}'",
        *(
            f"INSERT INTO migration_quarantine (run_id, key, reason, batch, detail) "
            f"SELECT id, '{key}', '{reason}', 1, '' FROM migration_run"
            for key, reason in errors.items()
        ),
    )


def check(engine: sa.Engine, *allow: str) -> int:
    with engine.connect() as connection:
        return check_finished(connection, "rag_chunks", "embedding", allow=allow)


def test_an_empty_table_passes_though_a_run_is_queued(engine: sa.Engine) -> None:
    assert check(engine) == 0


def test_a_complete_column_passes_and_is_counted(engine: sa.Engine) -> None:
    add_rows(engine, filled=3)
    begin_run(engine, "finished")
    assert check(engine) == 3


def test_what_a_run_wrote_is_refused_until_a_comparison_has_verified_it(engine: sa.Engine) -> None:
    add_rows(engine, filled=3)
    begin_run(engine, "finished")
    execute(
        engine,
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, rows_written) "
        "SELECT id, 1, 'f1', 'f3', '{}', 'done', 3 FROM migration_run",
    )
    with pytest.raises(RunConflict, match="what run 1 left is not verified") as caught:
        check(engine)
    assert "backfill --resume" in caught.value.hint
    execute(engine, "UPDATE migration_run SET verified_at = now()")
    assert check(engine) == 3


def test_a_null_is_refused_with_the_command_to_type(engine: sa.Engine) -> None:
    add_rows(engine, filled=3, empty=2)
    with pytest.raises(RunConflict, match="2 of 5 rows have no value") as caught:
        check(engine)
    assert "backfill --resume" in caught.value.hint


@pytest.mark.parametrize("state", ["planned", "running", "paused"])
def test_a_live_run_is_refused_though_nothing_is_null(engine: sa.Engine, state: str) -> None:
    add_rows(engine, filled=3)
    begin_run(engine, state)
    with pytest.raises(RunConflict, match=f"run 1 is {state}"):
        check(engine)


def test_a_row_quarantined_is_refused_unless_its_reason_is_allowed(engine: sa.Engine) -> None:
    add_rows(engine, filled=3, empty=2)
    begin_run(engine, "finished", e1="missing_at_source", e2="not_finite")
    with pytest.raises(RunConflict, match=r"1 rows were quarantined: not_finite"):
        check(engine, "missing_at_source")
    assert check(engine, "missing_at_source", "not_finite") == 3


def test_an_allowed_reason_excuses_no_more_nulls_than_rows_it_quarantined(engine: sa.Engine) -> None:
    add_rows(engine, filled=3, empty=2)
    begin_run(engine, "finished", e1="missing_at_source")
    with pytest.raises(RunConflict, match="2 of 5 rows have no value"):
        check(engine, "missing_at_source")


def test_an_error_that_was_resolved_counts_no_more(engine: sa.Engine) -> None:
    add_rows(engine, filled=3)
    begin_run(engine, "finished", f1="not_finite")
    execute(engine, "UPDATE migration_quarantine SET resolved_at = now()")
    assert check(engine) == 3


def test_a_table_that_is_not_there_names_the_upgrade(engine: sa.Engine) -> None:
    with engine.connect() as connection, pytest.raises(NotUpgraded):
        check_finished(connection, "no_such_table", "embedding")


def test_the_command_says_the_same_by_its_exit_code(engine: sa.Engine, upgraded_url: str) -> None:
    add_rows(engine, filled=3, empty=1)
    environment = {"DATABASE_URL": upgraded_url}
    refused = CliRunner().invoke(main, ["gate"], env=environment)
    assert refused.exit_code == 2
    assert "1 of 4 rows have no value" in refused.output
    execute(engine, "DELETE FROM rag_chunks WHERE embedding IS NULL")
    passed = CliRunner().invoke(main, ["gate"], env=environment)
    assert passed.exit_code == 0
    assert "3 rows have their embedding" in passed.output


def test_the_worked_example_runs_as_it_is_written(engine: sa.Engine) -> None:
    revisions = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)
    modules = []
    for source in revisions:
        module: dict[str, object] = {}
        exec(compile(source, str(EXAMPLE), "exec"), module)
        modules.append(module)
    execute(engine, "ALTER TABLE rag_chunks ADD COLUMN embedding_json text")
    add_rows(engine, filled=3, empty=1)

    def run(module: dict[str, object], function: str) -> None:
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            module[function]()  # type: ignore[operator]

    with pytest.raises(RunConflict):
        run(modules[0], "upgrade")
    execute(engine, "UPDATE rag_chunks SET embedding = array_fill(1, ARRAY[8])::vector WHERE embedding IS NULL")
    for module in modules:
        run(module, "upgrade")
    columns = {column["name"]: column for column in sa.inspect(engine).get_columns("rag_chunks")}
    assert columns["embedding"]["nullable"] is False
    assert "embedding_json" not in columns
    for module in reversed(modules):
        run(module, "downgrade")
    columns = {column["name"]: column for column in sa.inspect(engine).get_columns("rag_chunks")}
    assert columns["embedding"]["nullable"] is True
    assert "embedding_json" in columns
    assert json.dumps(sa.inspect(engine).get_check_constraints("rag_chunks")) == "[]"
