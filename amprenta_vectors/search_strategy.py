"""The settings of a product catalogue's search, as settings of backend, mode and secondary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from amprenta_vectors.errors import ConfigError

PRODUCTS_TABLE = "products"
Strategy = Literal["pgvector_primary", "chroma_primary", "hybrid"]

_STORES: dict[Strategy, dict[str, Any]] = {
    "pgvector_primary": {"vector_backend": "pgvector", "vector_mode": "fallback", "vector_secondary": "chroma"},
    "chroma_primary": {"vector_backend": "chroma", "vector_mode": "fallback", "vector_secondary": "pgvector"},
    "hybrid": {
        "vector_backend": "pgvector",
        "vector_mode": "hybrid",
        "vector_secondary": "chroma",
        "vector_hybrid_join": "union",
    },
}
_WITHOUT_PGVECTOR: dict[str, Any] = {
    "vector_backend": "chroma",
    "vector_mode": "single",
    "vector_secondary": None,
}
_THRESHOLDS = {"pgvector_similarity_threshold": 0.7, "chroma_similarity_threshold": 0.5}


def strategy_settings(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return what ``USE_PGVECTOR`` and ``PRODUCT_SEARCH_STRATEGY`` make of other settings; only for the product table.

    ``values`` are all settings by field, ``given`` the fields that were set. Raises `ConfigError` naming both of two
    that contradict each other.
    """
    if values["table"] != PRODUCTS_TABLE:
        return {}
    thresholds = {name: value for name, value in _THRESHOLDS.items() if name not in given}
    named = [name for name in ("use_pgvector", "product_search_strategy") if values[name] is not None]
    if not named and "vector_backend" in given:
        return thresholds
    stores = _stores(values["use_pgvector"], values["product_search_strategy"])
    for name, value in stores.items():
        if name in given and values[name] != value:
            said = " and ".join(f"{other.upper()} is {_spelled(values[other])}" for other in named)
            raise ConfigError(
                f"{said or 'the product table is searched by pgvector_primary'}, which means {name.upper()} "
                f"{_spelled(value)}; {name.upper()} is {_spelled(values[name])}",
                hint=f"unset {name.upper()}, or unset {' and '.join(map(str.upper, named))}"
                if named
                else "export VECTOR_BACKEND=… beside it, or PRODUCT_SEARCH_STRATEGY instead of it",
            )
    return stores | thresholds


def _stores(use_pgvector: bool | None, strategy: Strategy | None) -> dict[str, Any]:
    if use_pgvector is not False:
        return _STORES[strategy or "pgvector_primary"]
    if strategy in (None, "chroma_primary"):
        return _WITHOUT_PGVECTOR
    raise ConfigError(
        f"USE_PGVECTOR is false, and PRODUCT_SEARCH_STRATEGY {strategy} needs pgvector",
        hint="USE_PGVECTOR=true, or PRODUCT_SEARCH_STRATEGY=chroma_primary",
    )


def _spelled(value: object) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
