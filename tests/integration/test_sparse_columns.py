"""Sparse values beside the embedding: written, compared, and quarantined where the column cannot hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import API_KEY, INDEX_NAME, execute, on_the_wire, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.backfill.writing.encoding import sparse_bytes
from amprenta_vectors.batch import fit_sparse
from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

VECTORS = to_vectors(7)
MADE = {
    "plain": {"indices": [3, 0, 99], "values": [0.5, -1.25, 3.0]},
    "zeros": {"indices": [5, 6], "values": [0.0, 2.0]},
    "nothing": {"indices": [5], "values": [0.0]},
    "none": None,
    "beyond": {"indices": [1, 100], "values": [1.0, 1.0]},
    "uint32": {"indices": [4_294_967_295], "values": [1.0]},
    "filled": {"indices": [1], "values": [1.0]},
}
KEPT = {"plain": "{1:-1.25,4:0.5,100:3}/100", "zeros": "{7:2}/100", "nothing": "{}/100"}


@pytest.fixture(params=["grpc", "rest"])
def environment(
    request: Any, upgraded_url: str, engine: sa.Engine, emulator: Callable[..., PineconeEmulator], tmp_path: Path
) -> dict[str, str]:
    pinecone = emulator(metric="dotproduct")
    pinecone.load("", list(MADE), VECTORS, sparse=list(MADE.values()))
    execute(engine, "CREATE TABLE mixed (id text PRIMARY KEY, embedding vector(8), words sparsevec(100))")
    config = tmp_path / "own.toml"
    config.write_text(
        '[tables.mixed]\ntable = "mixed"\nkey = "id"\ndimension = 8\ndistance = "ip"\n'
        'sparse = "words"\nsparse_dimension = 100\n'
    )
    return {
        "DATABASE_URL": upgraded_url,
        "AMPRENTA_CONFIG": str(config),
        "AMPRENTA_TABLE": "mixed",
        "AMPRENTA_RETRY_SECONDS": "5",
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": pinecone.host,
        "PINECONE_GRPC_HOST": pinecone.grpc_host,
        "PINECONE_TRANSPORT": request.param,
    }


def run(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment)


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_sparse_values_go_to_their_column_and_what_does_not_fit_is_quarantined_without_its_row(
    environment: dict[str, str], engine: sa.Engine, keys_from: str
) -> None:
    if keys_from == "table":
        execute(engine, "INSERT INTO mixed (id) SELECT unnest(CAST(:ids AS text[]))", ids=list(MADE))
    done = run(environment, "backfill", "--keys-from", keys_from)
    assert done.exit_code == 3, f"{done.output}{done.exception!r}"
    rows = execute(engine, "SELECT id, vector_send(embedding), words::text FROM mixed")
    assert {key: bytes(vector) for key, vector, _ in rows} == {
        key: on_the_wire(row) for key, row in zip(MADE, VECTORS, strict=True)
    }
    assert {key: words for key, _, words in rows if words is not None} == {**KEPT, "filled": "{2:1}/100"}
    aside = dict(execute(engine, "SELECT key, detail FROM migration_quarantine WHERE reason = 'sparse_does_not_fit'"))
    assert aside == {
        "beyond": "sparse index 100; sparsevec(100) holds 0 to 99",
        "uint32": "sparse index 4294967295; sparsevec(100) holds 0 to 99",
    }
    # The dense vectors are all there, and so is every sparse value that fits.
    assert run(environment, "verify").exit_code == 0
    assert run(environment, "tables", "check").exit_code in (0, 2)


def test_a_sparse_value_that_differs_is_found(environment: dict[str, str], engine: sa.Engine) -> None:
    run(environment, "backfill", "--keys-from", "source", "--no-verify")
    execute(engine, "UPDATE mixed SET words = '{1:-1.25,4:0.5,100:3.5}/100' WHERE id = 'plain'")
    execute(engine, "UPDATE mixed SET words = NULL WHERE id = 'zeros'")
    execute(engine, "UPDATE mixed SET words = '{1:1}/100' WHERE id = 'none'")
    found = run(environment, "verify")
    assert found.exit_code == 1
    assert all(f"different: '{key}'" in found.output for key in ("plain", "zeros", "none"))
    assert "0 missing, 0 extra, 3 different" in found.output


def test_sparse_values_that_the_application_wrote_meanwhile_stay(
    environment: dict[str, str], engine: sa.Engine
) -> None:
    execute(engine, "INSERT INTO mixed (id, words) VALUES ('filled', '{9:9}/100')")
    run(environment, "backfill", "--keys-from", "source", "--no-verify")
    assert execute(engine, "SELECT words::text, embedding IS NULL FROM mixed WHERE id = 'filled'") == [
        ("{9:9}/100", False)
    ]


def test_with_force_the_sources_sparse_values_take_the_place_of_others_once(
    environment: dict[str, str], engine: sa.Engine
) -> None:
    run(environment, "backfill", "--keys-from", "source", "--no-verify")
    stored = execute(engine, "SELECT id, words::text FROM mixed ORDER BY id")
    execute(engine, "UPDATE mixed SET words = '{9:9}/100' WHERE id = 'plain'")
    execute(engine, "UPDATE mixed SET words = NULL WHERE id = 'zeros'")
    forced = run(environment, "backfill", "--force", "--no-verify")
    assert "2 rows written" in forced.output
    assert execute(engine, "SELECT id, words::text FROM mixed ORDER BY id") == stored
    assert "0 rows written" in run(environment, "backfill", "--force", "--no-verify").output


def test_the_bytes_of_sparse_values_are_those_that_postgresql_sends(engine: sa.Engine) -> None:
    indices = np.array([700, 2, 999_999_999], np.int64)
    values = np.array([1.5, -2.25, 3e-38], np.float32)
    statement = "SELECT sparsevec_send(CAST(:text AS sparsevec))"
    ((sent,),) = execute(engine, statement, text="{3:-2.25,701:1.5,1000000000:3e-38}/1000000000")
    assert sparse_bytes(fit_sparse(indices, values, 1_000_000_000), 1_000_000_000) == bytes(sent)


@pytest.mark.parametrize(
    ("indices", "values", "expected"),
    [
        ([1, 1], [1.0, 2.0], "a sparse index is given twice"),
        ([1], [1.0, 2.0], "1 sparse indices with 2 values"),
        ([1], [float("nan")], "a sparse value is NaN or infinite"),
        (list(range(16_001)), [1.0] * 16_001, "16001 sparse values; a sparsevec holds 16000"),
    ],
)
def test_what_a_sparsevec_cannot_hold_says_why(indices: list[int], values: list[float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        fit_sparse(np.array(indices), np.array(values, np.float32), 20_000)


def test_a_sparse_column_of_another_dimension_is_refused(environment: dict[str, str], engine: sa.Engine) -> None:
    execute(engine, "ALTER TABLE mixed DROP COLUMN words")
    execute(engine, "ALTER TABLE mixed ADD COLUMN words sparsevec(50)")
    refused = run(environment, "backfill", "--keys-from", "source")
    assert refused.exit_code == 2
    assert "column mixed.words is of type sparsevec(50); expected sparsevec(100)" in refused.output
    checked = run(environment, "tables", "check", "mixed")
    assert checked.exit_code == 2
    assert "expected column words sparsevec(100); found sparsevec(50)" in checked.output
