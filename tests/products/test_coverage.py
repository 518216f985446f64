"""``products coverage``: how many active products can be found, and which cannot."""

from __future__ import annotations

import json
from collections.abc import Callable

import sqlalchemy as sa
from catalogue import INACTIVE, PRODUCTS, rows
from click.testing import Result

Run = Callable[..., Result]


def test_active_products_are_counted_and_those_without_an_embedding_listed(run: Run, engine: sa.Engine) -> None:
    active = PRODUCTS - INACTIVE
    vector = "[" + ",".join(["1"] * 256) + "]"
    rows(
        engine,
        "UPDATE products SET embedding = CAST(:vector AS vector) WHERE id > '22222222-0000-0000-0000-000000000000'",
        vector=vector,
    )
    expected = rows(engine, "SELECT id::text, name FROM products WHERE active AND embedding IS NULL ORDER BY id")
    result = run("coverage", "--limit", "2")
    assert result.exit_code == 0
    first, *listed = result.output.splitlines()
    assert first.startswith(f"{active} active products: {active - len(expected)} with an embedding, {len(expected)} ")
    assert listed[:2] == [f"  {key}  {name}" for key, name in expected[:2]]
    assert listed[2] == f"  … {len(expected) - 2} more; --limit N lists them"
    figures = json.loads(run("coverage", "--limit", "1000", "--json").output)
    assert [(product["id"], product["name"]) for product in figures["missing"]] == expected
    assert (figures["total_products"], figures["missing_embeddings"]) == (active, len(expected))


def test_a_full_catalogue_has_nothing_to_mend(run: Run, engine: sa.Engine) -> None:
    rows(engine, "DELETE FROM products")
    assert run("coverage").output == "0 active products: 0 with an embedding, 0 without (100.0 %)\n"
