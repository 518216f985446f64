"""``products migrate``: what Chroma has is moved bit for bit, the rest is embedded, and what is wrong is said."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sqlalchemy as sa
from catalogue import ABSENT, PRODUCTS, UNMATCHED, rows
from chroma_tools import fill
from click.testing import CliRunner, Result
from databases import janitor

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backfill.engine.observer import MoveEvent
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ExitCode
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.moves.ends import open_table
from amprenta_vectors.sandbox.embedding_servers import OllamaServer
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.slice import open_slice
from amprenta_vectors.systems.products.migration import Migration, Wanted
from amprenta_vectors.systems.products.search import product_settings
from amprenta_vectors.systems.products.state import look_at_both

Run = Callable[..., Result]

READ_CHROMA = """
import sys, json, chromadb
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("products_all_products", embedding_function=None)
found = collection.get(include=["embeddings"])
print(json.dumps({key: [float(value) for value in vector] for key, vector in zip(found["ids"], found["embeddings"])}))
"""
AS_BEGUN = """
    DELETE FROM migration_progress;
    UPDATE products SET embedding = NULL;
    UPDATE migration_run
    SET state = 'running', planned_at = NULL, planned_keys = 0, finished_at = NULL, plan_owner = NULL
    WHERE id = (SELECT max(id) FROM migration_run WHERE source_kind = 'chroma')
"""
"""As a kill leaves the last run from Chroma before its first batch is stored, some time later."""
OF_CHROMA_ALONE = "DELETE FROM products WHERE embedding_text_hash IS NOT NULL; "


def state(engine: sa.Engine) -> dict[str, Any]:
    found = rows(engine, "SELECT id::text, embedding::text, embedding_model, embedding_version FROM products")
    return {row.id: row for row in found}


def test_the_dry_run_says_what_would_be_done_and_changes_nothing(run: Run, engine: sa.Engine) -> None:
    result = run("migrate", "--dry-run")
    assert result.exit_code == 0
    for line in (
        "[Step 1/6] Running pre-flight checks...",
        "  ✓ pgvector extension available",
        "  ✓ ChromaDB collection 'products_all_products' found",
        "  ✓ Database connection successful",
        "[Step 2/6] Analyzing current state...",
        f"  Total products in database: {PRODUCTS}",
        f"  Products with ChromaDB embeddings: {PRODUCTS - ABSENT}",
        "  Products with pgvector embeddings: 0",
        f"  Products missing pgvector embeddings: {PRODUCTS}",
        "[Step 3/6] Building migration plan...",
        f"  From ChromaDB: {PRODUCTS - ABSENT}; to embed: {ABSENT}",
        f"  Would migrate {PRODUCTS} products (DRY RUN)",
    ):
        assert line in result.output.splitlines(), line
    assert "sku-0042" in result.output
    assert rows(engine, "SELECT count(embedding) FROM products") == [(0,)]
    assert rows(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(0,)]


def test_chromas_vectors_arrive_bit_for_bit_and_the_rest_is_embedded(
    migrated: tuple[str, Result], migrated_engine: sa.Engine, chroma_folder: Path
) -> None:
    # Ids that are no product's were quarantined.
    assert migrated[1].exit_code == 3, migrated[1].output
    read = [sys.executable, "-c", READ_CHROMA, str(chroma_folder)]
    there = json.loads(subprocess.run(read, capture_output=True, text=True, check=True).stdout)
    here = state(migrated_engine)
    moved = [key for key in here if key in there]
    assert len(moved) == PRODUCTS - ABSENT
    for key in moved:
        vector = np.fromstring(here[key].embedding[1:-1], np.float32, sep=",")
        assert vector.tobytes() == np.array(there[key], np.float32).tobytes()
    assert all(row.embedding and row.embedding_version == 1 for row in here.values())
    assert {row.embedding_model for row in here.values()} == {"wordllama-l2-supercat"}
    assert rows(migrated_engine, "SELECT reason, count(*) FROM migration_quarantine GROUP BY 1") == [
        ("no_target_key", UNMATCHED)
    ]


def test_the_view_of_figures_is_that_of_the_end(migrated_engine: sa.Engine) -> None:
    statement = "SELECT sum(missing_embeddings), min(coverage_percent) FROM product_embedding_stats"
    assert rows(migrated_engine, statement) == [(0, 100)]


def test_the_summary_has_the_figures_and_the_spot_checks_name_real_products(
    migrated: tuple[str, Result], migrated_engine: sa.Engine
) -> None:
    output = migrated[1].output
    assert f"  Products with pgvector embeddings after migration: {PRODUCTS}" in output
    assert f"  Expected embeddings: {PRODUCTS}" in output
    named = set(re.findall(r"✓ (.+) has valid embedding", output))
    names = {row.name for row in rows(migrated_engine, "SELECT name FROM products WHERE active")}
    assert len(named) == 3
    assert named <= names
    summary = output[output.index("MIGRATION SUMMARY") :]
    assert f"Total products: {PRODUCTS}\nSuccessfully migrated: {PRODUCTS}\nSkipped: 0\nErrors: 0\n" in summary
    assert "Final pgvector coverage: 100.0%" in summary


def test_each_batch_and_the_progress_are_said(migrated: tuple[str, Result]) -> None:
    output = migrated[1].output
    assert f"[Step 4/6] Migrating {PRODUCTS} products..." in output
    batches = re.findall(r"  Processing batch (\d+)/(\d+) \((\d+) products\)\.\.\.", output)
    assert [int(number) for number, _, _ in batches] == list(range(1, len(batches) + 1))
    progress = re.findall(r"  Progress: (\d+)/(\d+) \((\d+\.\d)%\) - Migrated: (\d+), Errors: (\d+)", output)
    assert len(progress) == len(batches)
    done, total, share, written, errors = progress[-1]
    assert (done, share, written, errors) == (total, "100.0", str(PRODUCTS), str(UNMATCHED))


def test_again_only_what_came_since_is_embedded_and_chroma_is_left_alone(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    for name in ("an electric kettle", ""):
        rows(
            migrated_engine, "INSERT INTO products (id, name, price) VALUES (:id, :name, 3)", id=uuid.uuid4(), name=name
        )
    result = run("migrate", set={"DATABASE_URL": migrated_url})
    assert "run 3 finished: 1 rows written" in result.output
    assert "run 4" not in result.output
    assert f"Successfully migrated: 1\nSkipped: {PRODUCTS}\nErrors: 1\n" in result.output
    assert result.exit_code == 3
    assert rows(migrated_engine, "SELECT name FROM products WHERE embedding IS NULL") == [("",)]


def test_a_product_by_its_id_is_embedded_anew_and_no_other_is_touched(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    before = state(migrated_engine)
    chosen = next(iter(before))
    rows(migrated_engine, "UPDATE products SET description = 'boils water' WHERE id = :id", id=chosen)
    result = run("migrate", "--product-id", chosen.upper(), "--no-verify", set={"DATABASE_URL": migrated_url})
    assert result.exit_code == 0, result.output
    after = state(migrated_engine)
    assert after[chosen].embedding != before[chosen].embedding
    assert after[chosen].embedding_version == 2
    assert {key: row for key, row in after.items() if key != chosen} == {
        key: row for key, row in before.items() if key != chosen
    }


def test_force_embeds_every_product_from_its_text_and_names_what_compares_them(
    run: Run, system: dict[str, str], migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(
        migrated_engine, "UPDATE products SET description = 'boils water', name = 'a kettle', brand = '', category = ''"
    )
    result = run("migrate", "--force", "--batch-size", "30", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert result.exit_code == 0, result.output
    assert f"Successfully migrated: {PRODUCTS}\nSkipped: 0\n" in result.output
    assert len({row.embedding for row in state(migrated_engine).values()}) == 1
    command = "AMPRENTA_TABLE=products AMPRENTA_EMBEDDER=wordllama amprenta-vectors verify --source rows"
    assert command in result.output
    variables = {**system, "DATABASE_URL": migrated_url, "AMPRENTA_TABLE": "products"}
    verified = CliRunner().invoke(main, shlex.split(command)[3:], env=variables)
    assert verified.exit_code == 0, verified.output


def test_backfill_of_rows_with_force_embeds_what_came_from_chroma_and_keeps_the_hash_of_its_text(
    system: dict[str, str], migrated_url: str, migrated_engine: sa.Engine
) -> None:
    variables = {**system, "DATABASE_URL": migrated_url, "AMPRENTA_TABLE": "products"}
    command = ["backfill", "--source", "rows", "--force", "--no-verify"]
    result = CliRunner().invoke(main, command, env=variables, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert rows(migrated_engine, "SELECT count(embedding_text_hash) FROM products") == [(PRODUCTS,)]


def test_without_verification_nothing_is_compared_and_json_has_one_object_with_the_figures(run: Run) -> None:
    # The ids that are no product's are expected, and no reason to stop.
    result = run("migrate", "--no-verify", "--json", set={"AMPRENTA_MAX_BAD_SHARE": "0"})
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["event"] == "migrated"
    assert (events[-1]["products"], events[-1]["migrated"], events[-1]["unmatched"]) == (PRODUCTS, PRODUCTS, UNMATCHED)
    assert "verified" not in {event["event"] for event in events}


def test_a_run_that_was_begun_is_said_and_resumed_by_resume(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(migrated_engine, AS_BEGUN)
    refused = run("migrate", set={"DATABASE_URL": migrated_url})
    assert refused.exit_code == 2
    assert "run 1 into products.embedding is unfinished" in refused.output
    assert "--resume resumes it" in refused.output
    resumed = run("migrate", "--resume", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert f"run 1 finished: {PRODUCTS - ABSENT} rows written" in resumed.output
    assert f"Successfully migrated: {PRODUCTS}\n" in resumed.output
    assert rows(migrated_engine, "SELECT count(embedding) FROM products") == [(PRODUCTS,)]


def test_interrupted_it_names_its_own_command_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    stopped.set()
    monkeypatch.setattr("amprenta_vectors.cli.products.stop_on_signal", lambda **_: nullcontext(stopped))
    result = run("migrate")
    assert result.exit_code == 130
    assert re.findall("resume with: (.*)", result.output) == ["amprenta-vectors products migrate --resume"]


def test_resume_after_a_run_that_finished_moves_and_embeds_what_came_since(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(
        migrated_engine,
        "UPDATE products SET embedding = NULL WHERE id IN "
        "((SELECT id FROM products WHERE embedding_text_hash IS NULL LIMIT 30) "
        "UNION ALL (SELECT id FROM products WHERE embedding_text_hash IS NOT NULL LIMIT 1))",
    )
    result = run("migrate", "--resume", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert "run 3 finished: 30 rows written" in result.output
    assert f"Successfully migrated: 31\nSkipped: {PRODUCTS - 31}\n" in result.output
    assert rows(migrated_engine, "SELECT count(*) FROM products WHERE embedding IS NULL") == [(0,)]


def test_a_run_that_embedded_beside_it_is_resumed_where_nothing_is_to_be_embedded_any_more(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(migrated_engine, OF_CHROMA_ALONE + AS_BEGUN)
    result = run("migrate", "--resume", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert f"run 1 finished: {PRODUCTS - ABSENT} rows written" in result.output, result.output


def test_a_run_that_moved_all_there_was_is_resumed_where_a_product_came_since(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(migrated_engine, OF_CHROMA_ALONE + "UPDATE products SET embedding = NULL")
    run("migrate", "--no-verify", set={"DATABASE_URL": migrated_url})
    rows(migrated_engine, AS_BEGUN)
    rows(
        migrated_engine, "INSERT INTO products (id, name, price) VALUES (:id, 'an electric kettle', 3)", id=uuid.uuid4()
    )
    result = run("migrate", "--resume", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert f"run 3 finished: {PRODUCTS - ABSENT} rows written" in result.output, result.output
    assert "run 4 finished: 1 rows written" in result.output


@pytest.mark.parametrize("last", ["rows", "chroma"])
def test_what_a_killed_process_did_not_compare_is_compared_by_resume(
    run: Run, migrated_url: str, migrated_engine: sa.Engine, last: str
) -> None:
    rows(migrated_engine, OF_CHROMA_ALONE if last == "chroma" else "SELECT 1")
    rows(migrated_engine, "UPDATE migration_run SET verified_at = NULL")
    before = rows(migrated_engine, "SELECT id FROM migration_run ORDER BY 1")
    result = run("migrate", "--resume", "--json", set={"DATABASE_URL": migrated_url})
    assert "verified" in {json.loads(line)["event"] for line in result.stdout.splitlines()}, result.output
    assert rows(migrated_engine, "SELECT count(*) FROM migration_run WHERE verified_at IS NOT NULL") == [(1,)]
    # Nothing is moved a second time.
    assert rows(migrated_engine, "SELECT id FROM migration_run ORDER BY 1") == before


def test_a_product_whose_vector_in_chroma_cannot_be_stored_is_embedded_from_its_text(
    run: Run, migrated_url: str, migrated_engine: sa.Engine
) -> None:
    rows(
        migrated_engine,
        OF_CHROMA_ALONE + "UPDATE products SET embedding = NULL;"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE data_exception USING MESSAGE = 'not this one'; END $$; "
        "CREATE TRIGGER refuse BEFORE UPDATE ON products FOR EACH ROW WHEN (NEW.stock = -1 AND "
        "NEW.embedding_text_hash IS NULL AND NEW.embedding IS NOT NULL) EXECUTE FUNCTION refuse();"
        "UPDATE products SET stock = -1 WHERE id = (SELECT min(id::text)::uuid FROM products)",
    )
    result = run("migrate", "--no-verify", set={"DATABASE_URL": migrated_url})
    assert f"run 3 finished: {PRODUCTS - ABSENT - 1} rows written" in result.output
    assert "run 4 finished: 1 rows written" in result.output
    assert rows(migrated_engine, "SELECT count(*) FROM products WHERE embedding IS NULL") == [(0,)]


def test_it_runs_from_python_and_tells_an_observer_each_step(
    products_url: str, system: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**system, "DATABASE_URL": products_url}.items():
        monkeypatch.setenv(name, value)
    told: list[MoveEvent] = []
    migration = Migration(product_settings(source="chroma"), Wanted(), observer=told.append)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(migration.run).result() is ExitCode.QUARANTINED
    lines = [json.loads(json.dumps(event.to_json())) for event in told]
    assert [line["number"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5]
    assert [line["run"] for line in lines if line["event"] == "finished"] == [1, 2]
    assert lines[-1]["event"] == "migrated"
    assert (lines[-1]["migrated"], lines[-1]["coverage_percent"]) == (PRODUCTS, 100.0)
    assert capfd.readouterr() == ("", "")


def test_two_records_of_one_product_are_one_product_though_they_stand_on_two_pages(
    products_url: str, engine: sa.Engine
) -> None:
    ids = [row.id for row in rows(engine, "SELECT id::text FROM products ORDER BY id LIMIT 3")]

    class TwoPages:
        def iter_keys(self) -> Iterator[tuple[list[str], None]]:
            yield ids, None
            yield [ids[0].upper(), *(str(uuid.uuid4()) for _ in range(7))], None

        def fetch(self, keys: list[str]) -> VectorBatch:
            return VectorBatch(source_keys=keys, vectors=np.ones((len(keys), 256), np.float32))

    with engine.connect() as connection:
        table = open_table(product_settings(database_url=products_url), connection)
    state = look_at_both(engine, open_slice(engine, table, {}), cast(Source, TwoPages()))
    assert (state.records, state.in_chroma, state.to_move, state.absent) == (11, 3, 3, PRODUCTS - 3)
    # Of those that are no product's only the first are kept.
    assert (state.unmatched, len(state.shown)) == (7, 5)


@pytest.mark.parametrize("batch_size", ["500", "1"])
def test_two_records_of_one_product_are_told_apart_by_name_whether_one_batch_has_both_or_not(
    products_url: str, engine: sa.Engine, tmp_path: Path, batch_size: str
) -> None:
    ids = [row.id for row in rows(engine, "SELECT id::text FROM products ORDER BY id LIMIT 3")]
    records = [ids[0], f"product_{ids[0]}", ids[1], ids[2]]
    fill(tmp_path / "chroma", records, np.random.default_rng(1).standard_normal((4, 256), dtype=np.float32))
    variables = {
        "DATABASE_URL": products_url,
        "CHROMA_PATH": str(tmp_path / "chroma"),
        "AMPRENTA_TABLE": "products",
        "AMPRENTA_BATCH_SIZE": batch_size,
        "AMPRENTA_WORKERS": "1",
        "AMPRENTA_REPORT": str(tmp_path / "reports"),
    }
    done = CliRunner().invoke(main, ["backfill", "--keys-from", "source"], env=variables)
    first, second = sorted(records[:2])
    if batch_size == "1":
        assert done.exit_code == 1
        assert "0 missing, 0 extra, 1 different" in done.output
        (line,) = [line for line in done.output.splitlines() if line.startswith("  different: ")]
        told = re.fullmatch(r"  different: '(.+)': row (.+) has the vector of '(.+)', another record for .*", line)
        assert told is not None, line
        assert (sorted((told[1], told[3])), told[2]) == ([first, second], ids[0])
    else:
        assert done.exit_code == 3
        assert "is another spelling of the same key (quarantined)" in done.output


@pytest.mark.parametrize(
    ("arguments", "changes", "message", "hint"),
    [
        ([], {"CHROMA_COLLECTION": "shoes"}, "has no collection 'shoes'; it has: products_all_products", "CHROMA_COLL"),
        ([], {"CHROMA_PATH": "/nowhere"}, "holds no Chroma", "CHROMA_PATH=FOLDER"),
        (["--product-id", "42"], {}, "'42' is no uuid", "a products.id"),
        (["--product-id", "00000000-0000-0000-0000-00000000002a"], {}, "no product with the id 0000", "a products.id"),
        (["--force", "--product-id", "42"], {}, "--force and --product-id contradict", "every product"),
        (["--resume", "--restart"], {}, "--resume and --restart contradict", "one of them"),
        ([], {"AMPRENTA_EMBEDDER": None, "OLLAMA_HOST": "http://127.0.0.1:9"}, "did not answer", "ollama serve"),
        ([], {"EMBEDDING_MODEL": "nomic-embed-text"}, "EMBEDDING_MODEL is 'nomic-embed-text'", "AMPRENTA_EMBEDDER"),
        ([], {"CHROMA_HOST": "127.0.0.1", "CHROMA_PORT": "9"}, "no answer", "CHROMA_HOST"),
        ([], {"USE_PGVECTOR": "false", "PRODUCT_SEARCH_STRATEGY": "hybrid"}, "USE_PGVECTOR is false", "USE_PGVECTOR"),
    ],
)
def test_what_is_wrong_is_named_with_what_mends_it_and_nothing_is_written(
    run: Run,
    engine: sa.Engine,
    arguments: list[str],
    changes: dict[str, str | None],
    message: str,
    hint: str,
) -> None:
    result = run("migrate", *arguments, set=changes)
    assert result.exit_code in (1, 2)
    assert re.search(f"error: .*{re.escape(message)}", result.output), result.output
    assert re.search(f"hint: .*{re.escape(hint)}", result.output), result.output
    assert rows(engine, "SELECT count(embedding) FROM products") == [(0,)]
    assert rows(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(0,)]


@pytest.mark.parametrize(
    ("pulled", "message", "hint"),
    [
        ({}, "has no model 'nomic-embed-text'", "ollama pull nomic-embed-text"),
        ({"nomic-embed-text": 768}, "makes vectors of 768 dimensions", "AMPRENTA_EMBEDDER"),
        ({"nomic-embed-text": 256}, "are not from nomic-embed-text: of 50 texts", "set OLLAMA_API_MODEL_EMBEDDING"),
    ],
    ids=["not pulled", "another dimension", "another model"],
)
def test_an_embedder_that_did_not_make_chromas_vectors_is_refused(
    run: Run, engine: sa.Engine, pulled: dict[str, int], message: str, hint: str
) -> None:
    with OllamaServer(pulled or {"llama": 8}) as server:
        result = run("migrate", set={"AMPRENTA_EMBEDDER": None, "OLLAMA_HOST": server.host})
    assert result.exit_code == 2
    assert message in result.output
    assert hint in result.output
    assert rows(engine, "SELECT count(embedding) FROM products") == [(0,)]


def test_a_column_of_another_dimension_than_chroma_is_an_error_that_names_both(
    run: Run, postgres_server: EmbeddedPostgres, old_template: str
) -> None:
    with janitor(postgres_server, "wide", template=old_template) as database:
        url = postgres_server.url(database.dbname)
        upgrade(Settings.load(database_url=url), "products")
        result = run("migrate", set={"DATABASE_URL": url})
    assert result.exit_code == 2
    assert re.search(r"'products_all_products'.* has 256 dimensions, products.embedding has 768", result.output)


def test_before_the_section_is_upgraded_the_command_that_does_it_is_named(
    run: Run, postgres_server: EmbeddedPostgres, old_template: str
) -> None:
    with janitor(postgres_server, "not_upgraded", template=old_template) as database:
        result = run("migrate", set={"DATABASE_URL": postgres_server.url(database.dbname)})
    assert result.exit_code == 2
    assert "hint: alembic -n products upgrade head" in result.output
