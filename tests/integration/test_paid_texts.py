"""Texts embedded by a service that charges for them: the limit on the cost, each text once, what is said of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import LEASE_SECONDS, execute, run_job, to_job
from click.testing import CliRunner, Result
from paid_texts import PRICE, HardService, embed_with_a_limit_and_a_kill, embedded, fill_pages, variables_for
from waiting import until

from amprenta_vectors.backends.rows.source import RowsOrigin
from amprenta_vectors.backfill.progress import texts
from amprenta_vectors.backfill.progress.charges import to_money
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.cli import main
from amprenta_vectors.config import SourceLimits
from amprenta_vectors.embedders.openai import OpenAIEmbedder
from amprenta_vectors.embedders.protocol import Embedded, Limits, Model
from amprenta_vectors.embedders.tokens import ERROR, likely_tokens, most_tokens
from amprenta_vectors.errors import LimitReached
from amprenta_vectors.sandbox.embedding_servers import Answer, openai_refusal
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.vector_table import VectorTable

ROWS = 200


def test_four_processes_stay_below_the_cost_and_embed_nothing_twice_but_what_a_kill_lost(
    engine: sa.Engine, tmp_path: Path
) -> None:
    embed_with_a_limit_and_a_kill(engine, tmp_path, 1000, batch_size=10)


@pytest.fixture
def service() -> Iterator[HardService]:
    """A service that bills, and fails only where a test has it fail."""
    with HardService(fails=False) as service:
        yield service


@pytest.fixture
def pages(engine: sa.Engine, service: HardService, tmp_path: Path) -> dict[str, str]:
    """Pages without vectors, and the environment of one who embeds them."""
    fill_pages(engine, ROWS)
    return variables_for(engine, service, tmp_path, AMPRENTA_BATCH_SIZE="10")


def run(variables: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=variables)


def counted(engine: sa.Engine) -> int:
    tokens: int = execute(engine, "SELECT CAST(sum(read_units) AS bigint) FROM migration_run")[0][0]
    return tokens


def last_run(engine: sa.Engine) -> int:
    number: int = execute(engine, "SELECT max(id) FROM migration_run")[0][0]
    return number


def different(engine: sa.Engine) -> int:
    number: int = execute(engine, "SELECT count(DISTINCT body) FROM pages")[0][0]
    return number


def test_a_text_that_rows_of_many_batches_have_is_billed_once_and_what_is_counted_is_what_is_billed(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    result = run(pages, "backfill", "--workers", "4", "--no-verify")
    assert result.exit_code == 0, result.output
    assert len(embedded(engine)) == ROWS > different(engine)
    assert len(service.billed) == different(engine)
    assert set(service.billed.values()) == {1}
    assert counted(engine) == service.tokens
    assert f"tokens: {service.tokens:,}, which cost {to_money(service.cost)}" in result.output
    assert execute(engine, "SELECT count(*) FROM migration_text") == [(0,)]


def test_what_was_paid_for_before_a_request_fails_is_not_paid_for_again(
    pages: dict[str, str], engine: sa.Engine, service: HardService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAIEmbedder, "limits", Limits(texts=4))
    service.faults_at = {
        2: openai_refusal(500, "server_error"),
        3: Answer(0),
        4: openai_refusal(429, "rate_limit_exceeded"),
        6: openai_refusal(400, "invalid_request_error"),
    }
    result = run(pages, "backfill", "--workers", "1", "--no-verify", "--limit", "10")
    assert result.exit_code == 0, result.output
    assert len(embedded(engine)) == 10
    assert set(service.billed.values()) == {1}
    # What was answered with an error, or not at all, may have been charged; what was refused was not.
    assert counted(engine) > service.tokens


def test_a_refusal_slows_every_process_of_the_run_down(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    refusal = openai_refusal(429, "rate_limit_exceeded")
    service.faults_at = {3: Answer(refusal.status, refusal.body, {"Retry-After": "1"})}
    assert run({**pages, "AMPRENTA_FETCH_PER_SECOND": "50"}, "backfill", "--no-verify").exit_code == 0
    (rate, silence), *_ = execute(
        engine, "SELECT rate, blocked_until - lowered_at FROM migration_limit WHERE kind = 'fetch'"
    )
    assert 35 <= rate < 50
    assert silence.total_seconds() == pytest.approx(1.0, abs=0.01)


def test_tokens_by_the_second_are_leased_by_all_processes_together(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    result = run(pages, "backfill", "--no-verify", "--limit", "20", "--tokens-per-second", "4000")
    assert result.exit_code == 0, result.output
    assert execute(engine, "SELECT rate FROM migration_limit WHERE kind = 'tokens'") == [(4000.0,)]


def test_a_limit_without_a_price_is_refused_and_says_what_to_type(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    without = {name: value for name, value in pages.items() if name != "AMPRENTA_TOKEN_PRICE"}
    refused = run(without, "backfill", "--max-cost", "1")
    assert refused.exit_code == 2
    assert "the cost is limited to 1 (AMPRENTA_MAX_COST), and no price of tokens is set" in refused.output
    assert "export AMPRENTA_TOKEN_PRICE=" in refused.output
    assert (service.requests, execute(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL")) == (
        [],
        [(0,)],
    )
    assert run({**without, "AMPRENTA_TOKEN_PRICE": "0.02"}, "backfill", "--max-cost", "1", "--no-verify").exit_code == 0


def test_the_limit_is_said_in_money_and_raised_from_another_terminal(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    stopped = run(pages, "backfill", "--max-cost", "0.1", "--no-verify")
    assert stopped.exit_code == 1, stopped.output
    assert "tokens (0.0" in stopped.output
    assert "of 0.1000), and the next request may cost" in stopped.output
    assert service.cost <= counted(engine) / 1_000_000 * PRICE <= 0.1
    [listed] = [line for line in run(pages, "status").output.splitlines() if "tokens" in line and "at most" in line]
    assert listed.strip().endswith("of 0.1000 at most")
    told = json.loads(run(pages, "status", "--json").output)["runs"][0]
    assert (told["read_units"], told["tokens"]["max_cost"], told["tokens"]["price"]) == (None, 0.1, PRICE)
    assert told["tokens"]["cost"] == pytest.approx(counted(engine) / 1_000_000 * PRICE)
    raised = run(pages, "limits", str(last_run(engine)), "--max-cost", "50")
    assert "a price of 20 for a million tokens, a cost of at most 50 in all" in raised.output
    # The price and the limit are the run's: a process that sets neither keeps to them.
    without = {name: value for name, value in pages.items() if name != "AMPRENTA_TOKEN_PRICE"}
    ended = run(without, "backfill", "--resume", "--no-verify")
    assert ended.exit_code == 0, ended.output
    assert set(service.billed.values()) == {1}
    reports = sorted(Path(pages["AMPRENTA_REPORT"]).glob("**/*.json"), key=lambda path: path.stat().st_mtime)
    report = reports[-1]
    assert json.loads(report.read_text())["tokens"]["spent"] == counted(engine)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"OPENAI_API_KEY": "not-this-one"}, "it does not accept the key\n  hint: export OPENAI_API_KEY=…"),
        ({"OPENAI_EMBEDDING_MODEL": "no-model"}, "it has no model 'no-model'\n  hint: export OPENAI_EMBEDDING_MODEL=…"),
    ],
)
def test_a_key_that_is_refused_and_a_model_that_is_not_there_end_the_command_and_cost_nothing(
    pages: dict[str, str], engine: sa.Engine, service: HardService, change: dict[str, str], expected: str
) -> None:
    refused = run({**pages, **change}, "backfill", "--max-cost", "1")
    assert refused.exit_code == 2, refused.output
    assert expected in refused.output
    assert "not-this-one" not in refused.output
    assert (service.tokens, counted(engine)) == (0, 0)
    assert run(pages, "backfill", "--resume", "--max-cost", "100", "--no-verify").exit_code == 0


def test_a_limit_on_a_run_that_has_no_price_is_refused_until_one_is_given(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    without = {name: value for name, value in pages.items() if name != "AMPRENTA_TOKEN_PRICE"}
    assert run(without, "backfill", "--no-verify", "--limit", "10").exit_code == 0
    order = ("limits", str(last_run(engine)), "--max-cost", "3")
    refused = run(without, *order)
    assert refused.exit_code == 2
    assert "the run has no price of tokens" in refused.output
    assert "a price of 0.5 for a million tokens" in run(without, *order, "--token-price", "0.5").output
    assert "a cost of at most 3 in all" in run(without, *order).output
    assert run(without, *order, "--clear").exit_code == 2


def test_what_embedding_will_cost_is_said_before_and_is_right_within_the_error_that_is_said(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    planned = run(pages, "backfill", "--dry-run", "--max-cost", "0.01")
    assert planned.exit_code == 0, planned.output
    assert service.requests == []
    assert f"within {ERROR:.0%}, in {different(engine)} different texts of {ROWS}" in planned.output
    assert "at 20 for a million tokens" in planned.output
    assert "at most 0.0100 is allowed" in planned.output
    assert "the limit on the cost stops the run before its end" in planned.output
    assert "read units" not in planned.output
    estimated = int(planned.output.partition("tokens: about ")[2].partition(", within")[0].replace(",", ""))
    assert run(pages, "backfill", "--no-verify").exit_code == 0
    # The service's tokens are Llama's, of which English and code have a quarter more than of OpenAI's.
    assert 0.7 * service.tokens <= estimated <= 1.1 * service.tokens
    assert "tokens: about 0, within 25%, in 0 different texts of 0" in run(pages, "backfill", "--dry-run").output
    planned = run({**pages, "AMPRENTA_TOKEN_PRICE": ""}, "backfill", "--dry-run", "--keys-from", "source")
    assert "cost: not known: export AMPRENTA_TOKEN_PRICE" in planned.output


def test_the_verification_is_counted_and_limited_too(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    assert run(pages, "backfill", "--no-verify", "--max-cost", "2").exit_code == 0
    before = service.tokens
    verified = run({**pages, "AMPRENTA_MAX_COST": "0.001"}, "verify")
    assert verified.exit_code == 1
    assert "tokens are spent, and the next request may cost" in verified.output
    assert "AMPRENTA_MAX_COST" in verified.output
    assert (service.tokens - before) / 1_000_000 * PRICE <= 0.001


def test_the_verification_embeds_again_at_the_cost_of_the_run_and_keeps_nothing(
    pages: dict[str, str], engine: sa.Engine, service: HardService
) -> None:
    result = run(pages, "backfill")
    assert result.exit_code == 0, result.output
    assert f"verified {ROWS} vectors" in result.output
    assert set(service.billed.values()) == {2}
    assert counted(engine) == service.tokens
    assert execute(engine, "SELECT count(*) FROM migration_text") == [(0,)]


# Texts that others hold.


class Counting:
    """A service in memory, which counts what it is asked, and can be held up."""

    def __init__(self, tokens: int | None = None) -> None:
        self.model = Model("counting", 64, "counting")
        self.limits = Limits(texts=1000)
        self.asked: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._tokens = tokens

    def embed(self, texts: Sequence[str]) -> Any:
        return self.request(texts).vectors

    def request(self, texts: Sequence[str]) -> Embedded:
        self.asked += texts
        self.goes_on.wait()
        vectors = np.array([np.full(64, len(text)) for text in texts], np.float32)
        return Embedded(vectors, self._tokens)


TABLE = VectorTable(name="pages", table="pages", key=("id",), text="body", dimension=64, source="rows")


def page_job(engine: sa.Engine, service: Counting, **changes: Any) -> Any:
    with engine.connect() as connection:
        table = resolve_table(connection, TABLE)
    source = RowsOrigin(engine, table, service).open(table, "", with_metadata=False)
    key_map = OwnKeys([table.column_types[name] for name in table.key])
    return to_job(engine, source, table=table, key_map=key_map, keys_from="table", **{"batch_size": 10, **changes})


def make_pages(engine: sa.Engine, body: str, rows: int) -> None:
    execute(engine, "CREATE TABLE pages (id integer PRIMARY KEY, body text, embedding vector(64))")
    execute(engine, f"INSERT INTO pages SELECT n, {body} FROM generate_series(1, :rows) n", rows=rows)


def test_who_meets_a_text_that_another_embeds_waits_for_its_vector(engine: sa.Engine) -> None:
    make_pages(engine, "'the same'", 40)
    service = Counting(tokens=3)
    service.goes_on.clear()
    job = page_job(engine, service, workers=4)
    worker = threading.Thread(target=run_job, args=(engine, job))
    worker.start()
    until(lambda: bool(service.asked))
    until(lambda: execute(engine, "SELECT count(*) FROM migration_progress WHERE status = 'running'") == [(4,)])
    assert execute(engine, "SELECT count(embedding) FROM pages") == [(0,)]
    lease = "SELECT lease_expires_at FROM migration_text"
    first = execute(engine, lease)
    until(lambda: execute(engine, lease) > first)
    service.goes_on.set()
    worker.join()
    assert service.asked == ["the same"]
    assert execute(engine, "SELECT count(embedding) FROM pages") == [(40,)]
    assert counted(engine) == 3


def test_a_text_whose_holder_is_gone_is_taken_over_and_one_that_is_renewed_is_not(engine: sa.Engine) -> None:
    make_pages(engine, "'page ' || n", 1)
    run_job(engine, page_job(engine, Counting()))
    run_id = execute(engine, "SELECT max(id) FROM migration_run")[0][0]
    one, two = b"1" * 32, b"2" * 32

    def take(owner: str, lease_seconds: float) -> set[bytes]:
        with transaction(engine) as connection:
            return texts.take(connection, run_id, owner, {one, two}, lease_seconds)[0]

    assert take("gone", 0.01) == {one, two}
    until(lambda: take("here", LEASE_SECONDS) == {one, two})
    with transaction(engine) as connection:
        texts.renew(connection, run_id, "here", 60.0)
        texts.give_back(connection, run_id, "gone", {one, two})
    assert take("late", 60.0) == set()
    with transaction(engine) as connection:
        texts.publish(connection, run_id, {one: b"first"})
        texts.publish(connection, run_id, {one: b"second"})
        texts.give_back(connection, run_id, "here", {one, two})
        assert texts.take(connection, run_id, "late", {one, two}, 60.0) == ({two}, {one: b"first"})


def test_texts_of_a_run_that_was_cancelled_go_with_the_next_one_that_ends(engine: sa.Engine) -> None:
    make_pages(engine, "'page ' || n", 30)
    limits = SourceLimits(token_price=1.0, max_cost=0.0001)
    with pytest.raises(LimitReached):
        run_job(engine, page_job(engine, Counting(tokens=50), source_limits=limits))
    assert execute(engine, "SELECT count(vector) > 0 FROM migration_text") == [(True,)]
    run_job(engine, page_job(engine, Counting()), mode="restart")
    assert execute(engine, "SELECT count(*) FROM migration_text") == [(0,)]


def test_where_a_service_does_not_count_the_estimate_and_its_error_are_counted(engine: sa.Engine) -> None:
    make_pages(engine, "'a page about the number ' || n", 10)
    run_job(engine, page_job(engine, Counting(), workers=1))
    asked = [f"a page about the number {number}" for number in range(1, 11)]
    assert counted(engine) == likely_tokens(asked) < most_tokens(asked)


def test_what_a_service_counts_beyond_what_was_reserved_is_counted_and_stops_the_next_request(
    engine: sa.Engine,
) -> None:
    make_pages(engine, "'page ' || n", 30)
    limits = SourceLimits(token_price=1.0, max_cost=0.001)
    with pytest.raises(LimitReached, match=r"5,000 of 1,000 tokens"):
        run_job(engine, page_job(engine, Counting(tokens=5000), workers=1, source_limits=limits))
    assert counted(engine) == 5000


def test_an_embedder_that_gives_only_vectors_is_neither_metered_nor_kept(engine: sa.Engine) -> None:
    make_pages(engine, "'page ' || n", 10)
    service = Counting()
    plain: Any = type("Plain", (), {"model": service.model, "embed": staticmethod(service.embed)})()
    assert run_job(engine, page_job(engine, plain)).counts.written == 10
    assert counted(engine) == 0
