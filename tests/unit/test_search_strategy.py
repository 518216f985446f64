"""The product guide's names are the store's own modes, and two settings that contradict each other are both named."""

from __future__ import annotations

from typing import Any

import pytest

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError


def stores(**settings: Any) -> tuple[Any, ...]:
    loaded = Settings.load(**{"table": "products", **settings})
    return loaded.vector_backend, loaded.vector_mode, loaded.vector_secondary


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USE_PGVECTOR", "PRODUCT_SEARCH_STRATEGY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("pgvector", "fallback", "chroma")),
        ({"product_search_strategy": "pgvector_primary"}, ("pgvector", "fallback", "chroma")),
        ({"product_search_strategy": "chroma_primary"}, ("chroma", "fallback", "pgvector")),
        ({"product_search_strategy": "hybrid"}, ("pgvector", "hybrid", "chroma")),
        ({"use_pgvector": True, "product_search_strategy": "chroma_primary"}, ("chroma", "fallback", "pgvector")),
        ({"use_pgvector": True}, ("pgvector", "fallback", "chroma")),
        ({"use_pgvector": False}, ("chroma", "single", None)),
        ({"use_pgvector": False, "product_search_strategy": "chroma_primary"}, ("chroma", "single", None)),
        ({"vector_backend": "pgvector"}, ("pgvector", "single", None)),
        (
            {"vector_backend": "chroma", "vector_mode": "shadow", "vector_secondary": "pgvector"},
            ("chroma", "shadow", "pgvector"),
        ),
        ({"product_search_strategy": "hybrid", "vector_backend": "pgvector"}, ("pgvector", "hybrid", "chroma")),
    ],
)
def test_each_strategy_is_a_mode_of_two_stores(settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert stores(**settings) == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_pgvector": False, "product_search_strategy": "hybrid"}, ["USE_PGVECTOR", "PRODUCT_SEARCH_STRATEGY"]),
        ({"use_pgvector": False, "product_search_strategy": "pgvector_primary"}, ["USE_PGVECTOR is false"]),
        ({"use_pgvector": False, "vector_backend": "pgvector"}, ["USE_PGVECTOR is false", "VECTOR_BACKEND"]),
        (
            {"product_search_strategy": "chroma_primary", "vector_backend": "pgvector"},
            ["PRODUCT_SEARCH_STRATEGY is 'chroma_primary'", "VECTOR_BACKEND is 'pgvector'"],
        ),
        (
            {"product_search_strategy": "hybrid", "vector_mode": "shadow"},
            ["PRODUCT_SEARCH_STRATEGY is 'hybrid'", "VECTOR_MODE is 'shadow'"],
        ),
        ({"product_search_strategy": "hybrid", "vector_hybrid_join": "intersection"}, ["VECTOR_HYBRID_JOIN"]),
        ({"vector_mode": "shadow"}, ["pgvector_primary", "VECTOR_MODE is 'shadow'"]),
    ],
)
def test_a_setting_that_contradicts_another_is_an_error_naming_both(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        stores(**settings)
    assert all(name in str(caught.value) for name in named), str(caught.value)
    assert caught.value.hint


def test_a_strategy_that_there_is_not_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRODUCT_SEARCH_STRATEGY", "both")
    with pytest.raises(ConfigError, match=r"PRODUCT_SEARCH_STRATEGY.*'both'"):
        Settings.load()


def test_products_have_thresholds_of_their_own_and_those_that_are_set_come_first() -> None:
    settings = Settings.load(table="products")
    assert (settings.pgvector_similarity_threshold, settings.chroma_similarity_threshold) == (0.7, 0.5)
    settings = Settings.load(table="products", pgvector_similarity_threshold=0.6, vector_backend="pgvector")
    assert (settings.pgvector_similarity_threshold, settings.chroma_similarity_threshold) == (0.6, 0.5)


def test_another_table_knows_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRODUCT_SEARCH_STRATEGY", "hybrid")
    settings = Settings.load()
    assert (settings.vector_backend, settings.vector_mode) == ("pinecone", "single")
    assert settings.pgvector_similarity_threshold is None
