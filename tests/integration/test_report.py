"""The report that ends a run: what it says is what the database has, and its page stands alone and betrays nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    API_KEY,
    StubSource,
    end_process,
    environment,
    execute,
    fork_process,
    run_forked,
    run_job,
    to_ids,
    to_job,
    to_vectors,
)
from click.testing import CliRunner
from page_reader import Page

from amprenta_vectors.backfill.progress import orders
from amprenta_vectors.backfill.progress.events import Event, list_events, record_event
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.report.facts import collect_report
from amprenta_vectors.backfill.report.page import render_page
from amprenta_vectors.cli import main
from amprenta_vectors.errors import CredentialsRefused
from amprenta_vectors.moves.reports import write_report
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

IDS, VECTORS = to_ids(200), to_vectors(200)
HOSTILE = "<script>alert(1)</script>"
TEXT, PASSWORD = "words of the customer", "secret-word"
StartEmulator = Callable[..., PineconeEmulator]


def wait_for(engine: sa.Engine, statement: str) -> None:
    deadline = time.monotonic() + 30
    while not execute(engine, statement)[0][0]:
        assert time.monotonic() < deadline, statement
        time.sleep(0.02)


@pytest.fixture
def _no_plots() -> None:
    """The pages of these tests have their plots."""


@pytest.fixture
def index(emulator: StartEmulator) -> PineconeEmulator:
    """200 records and one that is quarantined, its key being a script."""
    started = emulator()
    ids, vectors = [*IDS, HOSTILE], np.concatenate([VECTORS, np.zeros((1, 8), np.float32)])
    started.load("", ids, vectors, [{"text": f"{TEXT} {key}"} for key in ids])
    return started


def run_with_waits(engine: sa.Engine, index: PineconeEmulator, variables: dict[str, str]) -> str:
    """A run from another process that is throttled and paused on its way; what it printed."""
    index.faults.set("fetch", Fault(latency=0.15))
    process = fork_process(variables, "--keys-from", "source", "--batch-size", "20", "--workers", "1")
    try:
        wait_for(engine, "SELECT count(*) > 1 FROM migration_progress WHERE status = 'done'")
        with engine.begin() as connection:
            orders.note_throttle(connection, 1, "a replica lags by 40 s")
        time.sleep(0.2)
        with engine.begin() as connection:
            orders.note_throttle(connection, 1, None)
            orders.order(connection, 1, RunState.PAUSED)
        wait_for(engine, "SELECT state = 'paused' FROM migration_run WHERE source IS NOT NULL")
        time.sleep(0.2)
        with engine.begin() as connection:
            orders.resume(connection, 1)
        output, _ = process.communicate(timeout=60)
    finally:
        end_process(process)
    assert process.returncode == 3, output
    return output


def test_a_run_ends_with_a_report_that_says_what_the_database_has(
    engine: sa.Engine, upgraded_url: str, index: PineconeEmulator, tmp_path: Path
) -> None:
    url = upgraded_url.replace("postgres@", f"postgres:{PASSWORD}@")
    output = run_with_waits(engine, index, environment(url, index, AMPRENTA_REPORT=str(tmp_path / "filed")))
    assert "run-1.html" in output
    text = (tmp_path / "filed" / "run-1.json").read_text()
    html = (tmp_path / "filed" / "run-1.html").read_text()
    report = json.loads(text)
    check_against_database(engine, report)
    check_waits(report)
    page = Page(html)
    assert "svg" in page.tags
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "a replica lags by 40 s" in page.text
    assert "alembic downgrade base" in page.text
    check_what_a_reader_looks_for(page.text, report)
    assert all(address.startswith("#") for address in page.addresses)
    assert "http://" not in html.replace(report["moved"]["source"], "")
    a_value = f"{VECTORS[0, 0]:.5f}"[:-1]
    for secret in (API_KEY, PASSWORD, TEXT, a_value):
        assert secret not in text + html


def check_what_a_reader_looks_for(text: str, report: dict[str, Any]) -> None:
    """The verdict before all else, five numbers, where it was and when: all on one clock and to the second."""
    assert re.search(r"→ \S+\s+Verified: 200 vectors are equal in source and PostgreSQL, bit for bit; 1 row is", text)
    for what, value in (
        ("keys in the source", "201"),
        ("rows written", "200"),
        ("rows left as they were", "0"),
        ("rows quarantined", "1"),
        ("from begin to end", r"\d+ s"),
    ):
        assert re.search(rf"{what}\s*{value}\b", text), what
    assert report["database"]["name"] in text
    assert report["database"]["host"] in text
    assert report["moved"]["source"] in text
    started = datetime.fromisoformat(report["run"]["started_at"]).astimezone(UTC)
    assert f"{started:%Y-%m-%d %H:%M:%S} to" in text
    assert "All times are UTC" in text
    assert not re.search(r"\d:\d\d\.\d|\d[+-]\d\d:\d\d|desired", text)


@pytest.mark.parametrize(
    ("changes", "tone", "said"),
    [
        ({}, "attention", "Not verified yet: amprenta-vectors verify compares every vector"),
        ({"verification": {"compared": 40}}, "good", "Verified: 40 vectors are equal in source and PostgreSQL"),
        (
            {"verification": {"compared": 40, "missing": 20, "extra": 4, "different": 10, "unexpected": 22}},
            "bad",
            "Not equal: PostgreSQL lacks 8 that the source has; the source lacks 4 that PostgreSQL has; "
            "10 have another value.",
        ),
        (
            {"verification": {"compared": 40, "missing": 0, "extra": 3, "different": 0, "unexpected": 3}},
            "bad",
            "Not equal: the source lacks 3 that PostgreSQL has.",
        ),
        ({"verification": {"compared": 9}, "counts": {"quarantined": 2}}, "attention", "; 2 rows are quarantined."),
        (
            {"verification": {"compared": 9}, "moved": {"source_kind": "rows"}},
            "good",
            "no row with a text lacks its vector",
        ),
        ({"run": {"state": "planned"}}, "open", "Not begun"),
        ({"run": {"state": "paused"}}, "open", "amprenta-vectors resume 1 resumes it"),
        ({"run": {"state": "cancelled"}}, "open", "Cancelled: 1 of the 1 keys listed are done"),
        ({"run": {"state": "running"}, "processes": {"at_work": 1}}, "open", "Running: 1 of the 1 keys"),
        ({"run": {"state": "running"}}, "attention", "Interrupted: no process is at work"),
        ({"run": {"state": "running", "last_error": "no longer"}}, "bad", "Failed: no longer; 1 of the 1 keys"),
        (
            {"events": {"listed": [{"at": None, "event": "rolled_back", "detail": {"removed": 7}}]}},
            "attention",
            "Rolled back: 7 rows were removed.",
        ),
    ],
)
def test_the_page_begins_with_how_the_run_stands(
    engine: sa.Engine, changes: dict[str, dict[str, Any]], tone: str, said: str
) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    report = collected(engine)
    for section, values in changes.items():
        report[section] = {"at": report["made_at"], **(report[section] or {}), **values}
    html = render_page(report)
    (line,) = re.findall(r'<p class="verdict (\w+)">(.*)</p>', html)
    assert line[0] == tone
    assert said in line[1]


def test_without_matplotlib_the_page_has_no_plot_and_names_the_extra_once(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    monkeypatch.setattr("amprenta_vectors.plots.find_spec", lambda _: None)
    page = Page(render_page(collected(engine)))
    assert "svg" not in page.tags
    assert page.text.count("pip install 'amprenta_vectors[report]'") == 1


def check_against_database(engine: sa.Engine, report: dict[str, Any]) -> None:
    counts, run = report["counts"], report["run"]
    sums = "sum(keys_done), sum(rows_written), sum(rows_quarantined), count(*), count(DISTINCT owner)"
    [found] = execute(engine, f"SELECT {sums} FROM migration_progress WHERE status = 'done'")
    named = (counts["keys_done"], counts["written"], counts["quarantined"], counts["batches_done"])
    assert (*named, report["processes"]["number"]) == tuple(found)
    assert counts["written"] == 200
    [row] = execute(
        engine, "SELECT state, started_at, finished_at, source, planned_keys, read_units FROM migration_run"
    )
    assert (run["state"], run["started_at"], run["finished_at"]) == (
        "finished",
        row.started_at.isoformat(),
        row.finished_at.isoformat(),
    )
    assert (report["moved"]["source"], counts["keys_planned"]) == (row.source, row.planned_keys)
    assert report["read_units"]["spent"] == row.read_units
    assert report["quarantined"]["by_reason"] == {"zero_under_cosine": 1}
    assert report["quarantined"]["first_keys"] == {"zero_under_cosine": [HOSTILE]}
    with engine.connect() as connection:
        events = list_events(connection, 1)
    assert [event["event"] for event in report["events"]["listed"]] == [event.event for event in events]
    assert sum(bucket["rows"] for bucket in report["timeline"]["buckets"]) == 200
    [index] = report["indexes"]
    built_at = execute(engine, "SELECT built_at FROM migration_index")[0][0]
    assert (index["name"], index["built_at"]) == ("idx_rag_chunks_embedding", built_at.isoformat())
    assert index["build_seconds"] > 0
    assert report["verification"]["compared"] == 201
    assert report["verification"]["unexpected"] == 0
    assert (
        report["versions"]["pgvector"]
        == execute(engine, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")[0][0]
    )


def check_waits(report: dict[str, Any]) -> None:
    waits = {wait["kind"]: wait for wait in report["timeline"]["waits"]}
    assert waits["throttled"]["reason"] == "a replica lags by 40 s"
    assert waits["throttled"]["end"] - waits["throttled"]["begin"] >= 0.2
    assert report["timeline"]["waited_seconds"]["paused"] >= 0.2
    assert report["run"]["working_seconds"] < report["run"]["seconds"] - 0.4


def test_the_plot_shades_pauses_and_throttling(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    report = collected(engine)
    report["run"]["seconds"] = 3 * report["timeline"]["bucket_seconds"]
    plain = render_page(report)
    report["timeline"]["waits"] = [
        {"kind": "paused", "begin": 0.1, "end": 0.2, "reason": ""},
        {"kind": "throttled", "begin": 0.3, "end": 0.4, "reason": ""},
    ]
    shaded = render_page(report)
    assert not {"paused", "throttled"} & set(drawn_words(plain))
    assert {"paused", "throttled"} <= set(drawn_words(shaded))


def test_a_run_of_one_bar_has_a_report_without_a_plot(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    report = collected(engine)
    report["run"]["seconds"] = report["timeline"]["bucket_seconds"]
    assert "svg" not in Page(render_page(report)).tags
    report["run"]["seconds"] *= 3
    assert "svg" in Page(render_page(report)).tags


def drawn_words(html: str) -> list[str]:
    return Page(html[html.index("<svg") : html.index("</svg>") + 6]).text.split()


def collected(engine: sa.Engine, run_id: int = 1) -> dict[str, Any]:
    with engine.connect() as connection:
        report: dict[str, Any] = json.loads(json.dumps(collect_report(connection, run_id)))
    return report


def end_early(engine: sa.Engine) -> None:
    """Leave run 1 unfinished, with a message that quotes a row."""
    source = StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)})
    left = iter(range(2))

    def refuse(keys: Sequence[str]) -> None:
        if next(left, None) is None:
            raise CredentialsRefused(f"no longer\nDETAIL:  Failing row contains ({TEXT}).")

    source.before_fetch = refuse
    with pytest.raises(CredentialsRefused):
        run_job(engine, to_job(engine, source, workers=1))


def test_a_report_of_a_run_that_has_not_ended_says_so_and_how_to_cancel_it(
    engine: sa.Engine, upgraded_url: str, tmp_path: Path
) -> None:
    end_early(engine)
    arguments = ["report", "1", "--output", str(tmp_path / "here")]
    result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": upgraded_url})
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / "here" / name) for name in ("run-1.json", "run-1.html")]
    text = (tmp_path / "here" / "run-1.json").read_text()
    report = json.loads(text)
    assert (report["run"]["state"], report["run"]["finished_at"], report["verification"]) == ("running", None, None)
    assert report["undo"][0]["command"] == "amprenta-vectors cancel 1"
    assert report["run"]["last_error"] == "no longer"
    assert TEXT not in text


def test_runs_of_one_number_in_two_databases_have_files_of_their_own(
    engine: sa.Engine, upgraded_url: str, tmp_path: Path
) -> None:
    end_early(engine)
    folder = tmp_path / "here"
    assert [path.name for path in write_report(engine, 1, folder)] == ["run-1.json", "run-1.html"]
    before = (folder / "run-1.html").read_text()
    # As if the first were of another database.
    execute(engine, "UPDATE migration_run SET created_at = created_at + interval '1 microsecond'")
    assert [path.name for path in write_report(engine, 1, folder)] == ["run-1-2.json", "run-1-2.html"]
    assert [path.name for path in write_report(engine, 1, folder)] == ["run-1-2.json", "run-1-2.html"]
    assert (folder / "run-1.html").read_text() == before
    with engine.connect() as connection:
        database = connection.scalar(sa.text("SELECT quote_ident(current_database())"))
    execute(engine, f"ALTER DATABASE {database} SET TimeZone = 'Asia/Kolkata'")
    engine.dispose()
    assert [path.name for path in write_report(engine, 1, folder)] == ["run-1-2.json", "run-1-2.html"]
    for content in ("no report", "[]", '{"database": null}'):
        (folder / "run-1-2.json").write_text(content)
        assert [path.name for path in write_report(engine, 1, folder)] == ["run-1-3.json", "run-1-3.html"]
        assert (folder / "run-1-2.json").read_text() == content


def test_a_cancelled_run_leaves_a_report_and_one_that_was_never_begun_leaves_none(
    engine: sa.Engine, upgraded_url: str, tmp_path: Path
) -> None:
    end_early(engine)
    execute(
        engine,
        "INSERT INTO migration_run (vector_table, target, state, desired_state) "
        "VALUES ('x', 'x.y', 'planned', 'running')",
    )
    for number in ("1", "2"):
        variables = {"DATABASE_URL": upgraded_url, "AMPRENTA_REPORT": str(tmp_path / "filed")}
        result = CliRunner().invoke(main, ["cancel", number], env=variables)
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "filed").iterdir()) == ["run-1.html", "run-1.json"]
    report = json.loads((tmp_path / "filed" / "run-1.json").read_text())
    assert report["run"]["state"] == "cancelled"
    assert report["run"]["finished_at"] is not None
    assert not any("cancel" in step["command"] for step in report["undo"])


def test_every_value_is_escaped(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]], "zero": [VECTORS[0] * 0], "gone": []})))
    with engine.begin() as connection:
        record_event(connection, 1, Event.VERIFIED, {"compared": 2, "note": "x"})
    hostile = poisoned(collected(engine))
    tags = set(Page(render_page(hostile)).tags)
    assert "img" not in tags
    assert "b" not in tags


def poisoned(value: Any) -> Any:
    """The report with markup in every text and every name that is not the report's own, as its moments are."""
    if isinstance(value, str):
        with suppress(ValueError):
            datetime.fromisoformat(value)
            return value
        return f"{value}<img src=x onerror='alert(1)'><b>\"&"
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        poison = {name: poisoned(item) for name, item in value.items()}
        if set(value) <= {"zero_under_cosine", "missing_at_source"}:
            return {f"{name}<b>": item for name, item in poison.items()}
        return {name: value[name] if name in {"kind", "state"} else item for name, item in poison.items()}
    return value


def test_a_folder_that_cannot_be_written_is_a_warning_and_never_a_failed_run(
    upgraded_url: str, emulator: StartEmulator, tmp_path: Path
) -> None:
    index = emulator()
    index.load("", IDS[:20], VECTORS[:20])
    (tmp_path / "file").write_text("")
    variables = environment(upgraded_url, index)
    code, output = run_forked(variables, "--keys-from", "source", "--report", str(tmp_path / "file" / "reports"))
    assert code == 0, output
    assert "warning: no report was written" in output
    assert "amprenta-vectors report 1 --output FOLDER" in output


def test_the_command_says_what_to_type_where_it_cannot_write_or_there_is_no_such_run(
    engine: sa.Engine, upgraded_url: str, tmp_path: Path
) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    (tmp_path / "file").write_text("")
    for arguments, hint in (
        (["1", "--output", str(tmp_path / "file")], "--output FOLDER"),
        (["7"], "status lists them"),
    ):
        result = CliRunner().invoke(main, ["report", *arguments], env={"DATABASE_URL": upgraded_url})
        assert result.exit_code == 2
        assert hint in result.output


def test_the_report_of_a_run_of_very_many_batches_is_small_and_leaves_no_row_out(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, StubSource({"a": [VECTORS[0]]})))
    execute(engine, "UPDATE migration_run SET started_at = now() - interval '20 hours', finished_at = now()")
    execute(
        engine,
        """
        INSERT INTO migration_progress (
            run_id, batch, first_key, last_key, keys, status, owner, keys_done, rows_written, started_at, finished_at
        )
        SELECT 1, n + 1, 'a', 'b', '{}', 'done', 'process ' || n % 300, 1000, 1000, r.started_at,
               r.started_at + n * interval '3.5 s'
        FROM generate_series(1, 20000) n, migration_run r WHERE r.id = 1
        """,
    )
    execute(
        engine,
        "INSERT INTO migration_event (run_id, event) "
        "SELECT 1, CASE n % 2 WHEN 0 THEN 'throttled' ELSE 'unthrottled' END FROM generate_series(1, 5000) n",
    )
    report = collected(engine)
    assert len(json.dumps(report)) < 120_000
    assert sum(bucket["rows"] for bucket in report["timeline"]["buckets"]) == 20_000_001
    assert len(report["timeline"]["buckets"]) <= 241
    assert report["processes"]["number"] == 301
    assert report["events"]["left_out"] > 4000
    assert Page(render_page(report)).tags.count("svg") == 1


def test_verifying_later_is_kept_with_the_run(upgraded_url: str, emulator: StartEmulator, engine: sa.Engine) -> None:
    index = emulator()
    index.load("", IDS[:20], VECTORS[:20])
    variables = environment(upgraded_url, index)
    for arguments in (["backfill", "--keys-from", "source", "--no-verify"], ["verify"]):
        before = collected(engine)["verification"]
        assert before is None
        assert CliRunner().invoke(main, arguments, env=variables).exit_code == 0
    assert collected(engine)["verification"]["compared"] == 20


def test_who_builds_the_index_that_an_ended_run_left_makes_the_report_again(
    engine: sa.Engine, upgraded_url: str, emulator: StartEmulator, tmp_path: Path
) -> None:
    index = emulator()
    index.load("", IDS[:20], VECTORS[:20])
    variables = environment(upgraded_url, index, AMPRENTA_REPORT=str(tmp_path / "filed"))
    arguments = ["backfill", "--keys-from", "source", "--no-verify"]
    assert CliRunner().invoke(main, arguments, env=variables).exit_code == 0
    filed = tmp_path / "filed" / "run-1.json"
    filed.unlink()
    assert CliRunner().invoke(main, [*arguments, "--resume"], env=variables).exit_code == 0
    assert not filed.exists()
    execute(engine, "UPDATE migration_index SET built_at = NULL")
    assert CliRunner().invoke(main, [*arguments, "--resume"], env=variables).exit_code == 0
    assert json.loads(filed.read_text())["indexes"][0]["built_at"] is not None
