"""`compare report`: the figures are those of what was kept, and nothing of a query but its id comes out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner, Result
from page_reader import Page

from amprenta_vectors.cli import main
from amprenta_vectors.stores.composites.shadow import MOST_WAITING, ShadowLog, ShadowStore
from amprenta_vectors.stores.protocol import Hit

INSERT = """
    INSERT INTO shadow_query (
        at, primary_store, secondary_store, query, filter, top_k, hits, primary_ms, secondary_ms, overlap,
        rank_agreement, score_drift, missing, error, dropped
    ) VALUES (
        now() - CAST(:ago AS interval), :primary, :secondary, '{0.125}', CAST(:filter AS jsonb), 10, 10, :primary_ms,
        :secondary_ms, :overlap, :rank, :drift, CAST(:missing AS text[]), :error, :dropped
    )
"""


def keep(engine: sa.Engine, **changes: Any) -> None:
    row = {
        "ago": "0",
        "primary": "pinecone",
        "secondary": "pgvector",
        "filter": None,
        "primary_ms": 10.0,
        "secondary_ms": 2.0,
        "overlap": 1.0,
        "rank": 1.0,
        "drift": 0.0,
        "missing": [],
        "error": None,
        "dropped": 0,
    }
    execute(engine, INSERT, **(row | changes))


def failed(error: str) -> dict[str, Any]:
    return {"error": error, "overlap": None, "rank": None, "drift": None, "secondary_ms": 0.1}


@pytest.fixture
def ask(upgraded_url: str) -> Callable[..., Result]:
    def asked(*options: str) -> Result:
        return CliRunner().invoke(main, ["compare", "report", *options], env={"DATABASE_URL": upgraded_url})

    return asked


def reported(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.output)
    return report


def test_the_figures_are_those_of_the_queries_that_were_kept(engine: sa.Engine, ask: Callable[..., Result]) -> None:
    overlaps = np.linspace(0, 1, 101).tolist()
    for number, overlap in enumerate(overlaps):
        keep(
            engine, overlap=overlap, rank=overlap / 2, drift=overlap, primary_ms=number + 1.0, secondary_ms=2.0 * number
        )
    for error in ("TransientError: away", "TransientError: gone", "TimedOut: late"):
        keep(engine, **failed(error))
    keep(engine, dropped=7)
    (pair,) = reported(ask("--json"))["pairs"]
    assert (pair["primary"], pair["secondary"]) == ("pinecone", "pgvector")
    assert (pair["queries"], pair["compared"], pair["same_hits"], pair["dropped"]) == (105, 102, 2, 7)
    assert pair["errors"] == {"TransientError": 2, "TimedOut": 1}
    kept = [*overlaps, 1.0]
    assert pair["overlap"] == pytest.approx(
        {"mean": np.mean(kept), **{f"p{share}": np.percentile(kept, share) for share in (1, 5, 50)}}
    )
    assert pair["rank_agreement"]["p5"] == pytest.approx(
        np.percentile([*(overlap / 2 for overlap in overlaps), 1.0], 5)
    )
    assert (pair["score_drift"]["most"], pair["score_drift"]["p50"]) == pytest.approx(
        (1.0, np.median([*overlaps, 0.0]))
    )
    secondary = [*(2.0 * np.arange(101)), 2.0]
    # An error that comes at once is no fast answer.
    assert pair["secondary_ms"]["p50"] == pytest.approx(np.percentile(secondary, 50))
    assert pair["secondary_ms"]["p95"] == pytest.approx(np.percentile(secondary, 95))
    assert pair["primary_ms"]["p95"] == pytest.approx(np.percentile([*(1.0 + np.arange(101)), *[10.0] * 4], 95))
    assert sum(pair["overlap_shares"]) == 102
    assert (pair["overlap_shares"][0], pair["overlap_shares"][-1]) == (10, 2)
    assert [row["id"] for row in pair["worst"]] == list(range(1, 21))
    assert (sum(bucket["queries"] for bucket in pair["buckets"]), sum(b["failed"] for b in pair["buckets"])) == (105, 3)


def test_each_two_stores_in_their_roles_are_reported_apart(engine: sa.Engine, ask: Callable[..., Result]) -> None:
    keep(engine, ago="3 days", secondary="chroma", overlap=0.1)
    keep(engine, ago="2 days", primary_ms=100.0, overlap=0.2)
    keep(engine, primary="pgvector", secondary="pinecone", primary_ms=1.0)
    pairs = reported(ask("--json"))["pairs"]
    assert [(pair["primary"], pair["secondary"]) for pair in pairs] == [
        ("pgvector", "pinecone"),
        ("pinecone", "pgvector"),
        ("pinecone", "chroma"),
    ]
    assert [pair["primary_ms"]["p50"] for pair in pairs] == [1.0, 100.0, 10.0]
    assert [[row["id"] for row in pair["worst"]] for pair in pairs] == [[], [2], [1]]


@pytest.mark.parametrize("since", ["90m", "2h", "1d"])
def test_since_leaves_older_queries_out(engine: sa.Engine, ask: Callable[..., Result], since: str) -> None:
    keep(engine, ago="1 week", overlap=0.0)
    keep(engine, ago="1 hour")
    (pair,) = reported(ask("--json", "--since", since))["pairs"]
    assert (pair["queries"], pair["overlap"]["mean"]) == (1, 1.0)
    (begin,) = execute(engine, "SELECT to_char(now() - interval '2 hours', 'YYYY-MM-DD\"T\"HH24:MI:SSTZH:TZM')")[0]
    (pair,) = reported(ask("--json", "--since", begin))["pairs"]
    assert pair["queries"] == 1


def test_nothing_of_a_query_but_its_id_comes_out(engine: sa.Engine, ask: Callable[..., Result], tmp_path: Path) -> None:
    keep(engine, overlap=0.5, filter='{"owner": "a secret"}', missing=["a secret key"])
    keep(engine, **failed("TransientError: a secret host said no"))
    output = ask("--output", str(tmp_path)).output + ask("--json").output
    page = (tmp_path / "shadow.html").read_text()
    assert "secret" not in output + page + (tmp_path / "shadow.json").read_text()
    assert "0.125" not in page
    (pair,) = json.loads((tmp_path / "shadow.json").read_text())["pairs"]
    assert (pair["worst"][0]["id"], pair["worst"][0]["missing"], pair["worst"][0]["filtered"]) == (1, 1, True)


def test_the_page_stands_alone_with_its_plots(engine: sa.Engine, ask: Callable[..., Result], tmp_path: Path) -> None:
    keep(engine, ago="1 hour", overlap=0.8, rank=0.7)
    keep(engine)
    keep(engine, **failed("TimedOut: late"))
    result = ask("--output", str(tmp_path / "made" / "here"))
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "made" / "here" / "shadow.html") in result.output.replace("\n", "")
    page = Page((tmp_path / "made" / "here" / "shadow.html").read_text())
    assert page.tags.count("svg") == 3
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert "script" not in page.tags
    assert "The answers differ: 90.0 % of the hits are in common over 2 queries; pgvector failed at 1 of 3" in page.text
    for what, value in (
        ("queries", "3"),
        ("hits in common", "90.0 %"),
        ("queries with the same hits", "1"),
        ("queries that failed", "1"),
        (r"ms at pgvector \(p95\)", "2.0"),
    ):
        assert re.search(rf"\s{what}\s*{value}\s", page.text), what
    assert re.search(r"TimedOut\s+1\s", page.text)
    assert "All times are UTC" in page.text
    assert not re.search(r"\d:\d\d\.\d|\d[+-]\d\d:\d\d", page.text)


@pytest.mark.parametrize(
    ("overlaps", "tone", "said"),
    [
        ([1.0] * 99 + [0.9], "good", "The answers agree: 99.9 % of the hits are in common over 100 queries."),
        ([1.0, 0.96], "attention", "The answers nearly agree: 98.0 %"),
        ([0.9], "bad", "The answers differ: 90.0 %"),
        ([], "bad", "No query was answered by both; &lt;b&gt; failed at 1 of 1 queries."),
    ],
)
def test_the_page_begins_with_whether_the_stores_agree(
    engine: sa.Engine, ask: Callable[..., Result], tmp_path: Path, overlaps: list[float], tone: str, said: str
) -> None:
    for overlap in overlaps:
        keep(engine, secondary="<b>", overlap=overlap)
    if not overlaps:
        keep(engine, secondary="<b>", **failed("<b>: <i>"))
    assert ask("--output", str(tmp_path)).exit_code == 0
    html = (tmp_path / "shadow.html").read_text()
    assert not {"b", "i"} & set(Page(html).tags)
    (line,) = re.findall(r'<p class="verdict (\w+)">(.*)</p>', html)
    assert line[0] == tone
    assert said in line[1]


def test_without_matplotlib_the_page_has_no_plot_and_names_the_extra_once(
    engine: sa.Engine, ask: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(engine)
    monkeypatch.setattr("amprenta_vectors.plots.find_spec", lambda _: None)
    assert ask("--output", str(tmp_path)).exit_code == 0
    page = Page((tmp_path / "shadow.html").read_text())
    assert "svg" not in page.tags
    assert page.text.count("pip install 'amprenta_vectors[report]'") == 1


def test_the_terminal_says_the_same(engine: sa.Engine, ask: Callable[..., Result]) -> None:
    keep(engine, overlap=0.5, rank=0.25)
    keep(engine, **failed("TimedOut: late"), dropped=3)
    output = ask().output
    assert "pinecone, shadowed by pgvector" in output
    assert "2 queries: 0.5000 of the hits in common; 1 failed at the secondary; 3 not compared" in output
    assert "TimedOut" in output
    assert "where they agree least" in output


def test_a_secondary_that_never_answered_is_reported_too(
    engine: sa.Engine, ask: Callable[..., Result], tmp_path: Path
) -> None:
    keep(engine, **failed("TimedOut: late"))
    assert "no query compared" in ask("--output", str(tmp_path)).output
    assert "pgvector answered no query" in (tmp_path / "shadow.html").read_text()
    (pair,) = reported(ask("--json"))["pairs"]
    assert (pair["overlap"]["mean"], pair["secondary_ms"]["p50"], pair["worst"]) == (None, None, [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "VECTOR_MODE=shadow in the application keeps them"),
        (["--since", "1h"], "or an earlier --since"),
        (["--since", "yesterday"], "--since 24h"),
    ],
)
def test_where_nothing_was_kept_it_says_what_to_do(ask: Callable[..., Result], options: list[str], said: str) -> None:
    result = ask(*options)
    assert result.exit_code == 2
    assert said in result.output


def test_queries_that_were_not_compared_are_counted_with_the_next_that_is(
    engine: sa.Engine, upgraded_url: str, ask: Callable[..., Result]
) -> None:
    class Slow:
        """A store that answers at once until it is told to wait."""

        name, distance, seconds = "slow", "cosine", 0.0

        def query(self, *_: Any, **__: Any) -> list[Hit]:
            time.sleep(self.seconds)
            return [Hit("a", 1.0)]

        def close(self) -> None:
            pass

    primary: Any = Slow()
    secondary: Any = Slow()
    secondary.seconds = 0.01
    store = ShadowStore(primary, secondary, ShadowLog(sa.create_engine(upgraded_url), "pinecone", "pgvector"))
    for _ in range(3 * MOST_WAITING):
        store.query(np.ones(8, np.float32))
    store.close()
    assert store.dropped > 0
    (pair,) = reported(ask("--json"))["pairs"]
    assert pair["queries"] + pair["dropped"] == 3 * MOST_WAITING
    assert pair["dropped"] == store.dropped
