"""``VECTOR_MODE=shadow``: the primary's answers are its own, and what the secondary says is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import FilterError, TransientError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.agreement import agreement
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.shadow import MOST_WAITING, ShadowLog, ShadowStore
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.protocol import Hit, Record, VectorStore

DIMENSION = 8
VECTORS = np.random.default_rng(7).standard_normal((30, DIMENSION), dtype=np.float32)
RECORDS = [Record(f"k{i:02d}", vector, f"text {i}", {"even": i % 2 == 0}) for i, vector in enumerate(VECTORS)]


@pytest.fixture
def settings(emulator: Callable[..., PineconeEmulator], upgraded_url: str) -> Settings:
    return Settings.load(
        database_url=upgraded_url,
        pinecone_api_key="test-key",
        pinecone_index_name="test-index",
        pinecone_controller_host=emulator().host,
        vector_mode="shadow",
        vector_secondary="pgvector",
    )


@pytest.fixture
def primary(settings: Settings) -> Iterator[VectorStore]:
    store = open_pinecone_store(settings)
    store.upsert(RECORDS)
    yield store
    store.close()


def hits(*pairs: tuple[str, float]) -> list[Hit]:
    return [Hit(key, score) for key, score in pairs]


def test_agreement_is_by_key_rank_and_score() -> None:
    first = hits(("a", 0.9), ("b", 0.8), ("c", 0.7))
    same = agreement(first, first)
    assert (same.overlap, same.rank_agreement, same.score_drift, same.missing) == (1.0, pytest.approx(1.0), 0.0, ())
    turned = agreement(first, first[::-1])
    assert turned.overlap == 1.0
    # By hand: shares 0, 1/2, 1 at weights 1, 0.9, 0.81.
    assert turned.rank_agreement == pytest.approx((0.45 + 0.81) / 2.71)
    other = agreement(first, hits(("a", 0.5), ("x", 0.4)))
    assert (other.overlap, other.score_drift, other.missing) == (1 / 3, pytest.approx(0.4), ("b", "c"))
    assert (agreement([], []).overlap, agreement([], []).rank_agreement) == (1.0, 1.0)
    assert (agreement(first, []).overlap, agreement(first, []).score_drift) == (0.0, None)


def test_what_the_secondary_answers_is_kept_and_the_primary_answers(
    engine: sa.Engine, settings: Settings, primary: VectorStore
) -> None:
    pgvector = open_pgvector_store(settings)
    pgvector.upsert(RECORDS[:20])
    store = get_vector_store(settings)
    expected = primary.query(VECTORS[0], top_k=10, filter={"even": True})
    assert store.query(VECTORS[0], top_k=10, filter={"even": True}) == expected
    store.close()
    (row,) = execute(engine, "SELECT * FROM shadow_query")
    assert (row.primary_store, row.secondary_store, row.top_k, row.hits) == ("pinecone", "pgvector", 10, 10)
    assert row.filter == {"even": True}
    assert row.query == pytest.approx(VECTORS[0].tolist())
    assert row.missing == [hit.key for hit in expected if hit.key >= "k20"]
    assert row.missing
    assert row.overlap == pytest.approx(1 - len(row.missing) / 10)
    assert row.score_drift == pytest.approx(0, abs=1e-5)
    assert row.primary_ms > 0
    assert row.secondary_ms > 0
    assert row.error is None
    pgvector.close()


class Troubled:
    """A secondary whose ``query`` is what a test makes of it."""

    name = "troubled"
    distance = "cosine"

    def __init__(self, query: Callable[..., Any]) -> None:
        self.query = query

    def close(self) -> None:
        pass


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


TROUBLES: dict[str, Callable[..., Any]] = {
    "an error": failing(TransientError("the secondary is away")),
    "an error of another library": failing(RuntimeError("vector [1, 2] of my text")),
    "nothing": lambda *_, **__: None,
    "garbage": lambda *_, **__: [{"id": 7}, None],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_secondary_in_trouble_changes_no_answer_and_its_trouble_is_kept(
    engine: sa.Engine, upgraded_url: str, primary: VectorStore, trouble: str
) -> None:
    secondary: Any = Troubled(TROUBLES[trouble])
    record = ShadowLog(sa.create_engine(upgraded_url), "pinecone", "troubled")
    store = ShadowStore(primary, secondary, record)
    for vector in VECTORS[:5]:
        assert store.query(vector, top_k=5) == primary.query(vector, top_k=5)
    store.close()
    kept = execute(engine, "SELECT error, overlap FROM shadow_query")
    assert len(kept) == 5
    assert all(row.error and row.overlap is None and "my text" not in row.error for row in kept)


def test_a_secondary_that_hangs_holds_nobody_up_and_fills_no_memory(upgraded_url: str, primary: VectorStore) -> None:
    released = threading.Event()
    secondary: Any = Troubled(lambda *_, **__: released.wait(60))
    record = ShadowLog(sa.create_engine(upgraded_url), "pinecone", "troubled")
    store = ShadowStore(primary, secondary, record)
    answers = [store.query(VECTORS[i % 30], top_k=5) for i in range(MOST_WAITING + 20)]
    assert answers[:30] == [primary.query(vector, top_k=5) for vector in VECTORS]
    # Two are in hand, or on their way there.
    assert 18 <= store.dropped <= 20
    start = time.monotonic()
    store.close()
    assert time.monotonic() - start < 10
    released.set()


def test_comparisons_that_cannot_be_kept_are_no_callers_affair(
    engine: sa.Engine, upgraded_url: str, primary: VectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    execute(engine, "DROP TABLE shadow_query")
    secondary: Any = Troubled(lambda *_, **__: [])
    store = ShadowStore(primary, secondary, ShadowLog(sa.create_engine(upgraded_url), "pinecone", "troubled"))
    assert store.query(VECTORS[0], top_k=5) == primary.query(VECTORS[0], top_k=5)
    store.close()
    assert "a shadow query was not kept" in caplog.text


def failures(engine: sa.Engine) -> Iterator[Exception]:
    """Yield errors as they come, of PostgreSQL with its parameters, and ours."""
    for statement in (
        "SELECT CAST(:operand AS int)",
        "SELECT :operand FROM nowhere",
        "SELECT jsonb(CAST(:operand AS text))",
    ):
        try:
            with sa.create_engine(engine.url).connect() as connection:
                connection.execute(sa.text(statement), {"operand": "S3CR3T"})
        except sa.exc.DBAPIError as error:
            yield error
    yield FilterError("expected a number, got 'S3CR3T'")
    yield ValueError("S3CR3T is no operand")


def test_no_log_quotes_a_vector_or_what_a_filter_asked_for(
    upgraded_url: str, engine: sa.Engine, primary: VectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    vector = np.full(DIMENSION, 0.123456, dtype=np.float32)
    asked = {"vector": vector, "filter": {"even": {"$ne": "S3CR3T"}}}
    for failure in failures(engine):
        other: Any = Troubled(failing(failure))
        kept = ShadowStore(primary, other, ShadowLog(sa.create_engine(upgraded_url), "pinecone", "troubled"))
        kept.query(**asked)
        kept.close()
        if not isinstance(failure, FilterError):
            FallbackStore(other, primary, timeout_seconds=30).query(**asked)
            HybridStore(other, primary, join="union", timeout_seconds=30).query(**asked)
    assert len(execute(engine, "SELECT error FROM shadow_query")) == 5
    assert not [row for row in execute(engine, "SELECT error FROM shadow_query") if "S3CR3T" in row[0]]
    execute(engine, "ALTER TABLE shadow_query RENAME TO elsewhere")
    lost = ShadowStore(primary, primary, ShadowLog(sa.create_engine(upgraded_url), "pinecone", "troubled"))
    lost.query(**asked)
    lost.close()
    assert "a shadow query was not kept: UndefinedTable 42P01" in caplog.text
    assert "troubled failed" in caplog.text
    assert "S3CR3T" not in caplog.text
    assert "0.123" not in caplog.text
