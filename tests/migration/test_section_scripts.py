"""What `--sql` prints of the other sections makes of a database what their online commands make of it."""

from __future__ import annotations

import pytest
from migrating import Database
from systems import DIMENSION, SYSTEMS, System
from test_offline import assert_says, psql, run, state, statements, twin, write  # noqa: F401 - a fixture among them
from test_products_section import FOREIGN

from amprenta_vectors.ddl.catalogue import MADE
from amprenta_vectors.errors import AmprentaError


@pytest.fixture(scope="module", params=["documents", "products"])
def system(request: pytest.FixtureRequest) -> System:
    """A section that is not the first."""
    return SYSTEMS[request.param]


@pytest.fixture(scope="module")
def up(system: System) -> str:
    """The upgrade as a script."""
    return write("-n", system.section, "-x", f"dimension={DIMENSION}", "upgrade", "head")


@pytest.fixture(scope="module")
def down(system: System) -> str:
    """The downgrade as a script."""
    return write("-n", system.section, "downgrade", "head:base")


@pytest.mark.parametrize("by_script", [False, True], ids=["commands", "script"])
@pytest.mark.parametrize(
    ("section", "revision", "index", "key"),
    [
        ("alembic", "rag_0002", "idx_rag_chunks_embedding", "USING hnsw (embedding vector_cosine_ops)"),
        ("documents", "documents_0002", "uq_vector_documents_user_collection_id", "(id)"),
        ("documents", "documents_0003", "idx_vector_documents_embedding_hnsw", "(id)"),
        ("products", "products_0002", "idx_products_stale_embeddings", "(updated_at)"),
        ("products", "products_0003", "idx_products_embedding_hnsw", "(id)"),
    ],
)
def test_what_a_failed_build_of_the_next_revision_left_goes_with_a_downgrade(
    db: Database, section: str, revision: str, index: str, key: str, by_script: bool
) -> None:
    system = SYSTEMS[section]
    system.adopt(db)
    system.upgrade(db, revision)
    system.fill(db)
    db.execute(f"CREATE INDEX {index}_building ON {system.table} {key}")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)", name=f"{index}_building")
    db.execute(f"CREATE INDEX {index} ON {system.table} {key}")
    db.execute(f"COMMENT ON INDEX {index} IS '{MADE}'")
    if by_script:
        run(db, write("-n", section, "downgrade", f"{revision}:base"))
    else:
        system.downgrade(db)
    assert (db.index_is_valid(f"{index}_building"), db.index_is_valid(index)) == (None, None)


@pytest.mark.parametrize("adopted", [False, True], ids=["made", "adopted"])
def test_a_script_makes_takes_back_and_brings_back_what_the_commands_do(
    db: Database,
    twin: Database,  # noqa: F811
    system: System,
    up: str,
    down: str,
    adopted: bool,
) -> None:
    for each in (db, twin):
        if adopted:
            system.adopt(each)
    system.upgrade(twin)
    for _ in range(2):
        run(db, up)
        assert state(db) == state(twin)
    for each in (db, twin):
        if not adopted:
            system.insert(each)
        system.fill(each)
    before = system.bits(db)
    system.downgrade(twin)
    run(db, down)
    assert state(db) == state(twin)
    system.upgrade(twin)
    run(db, up)
    assert state(db) == state(twin)
    assert system.bits(db) == before


def test_it_is_interrupted_now_and_then_and_the_next_run_goes_on(
    db: Database,
    twin: Database,  # noqa: F811
    system: System,
    up: str,
    down: str,
) -> None:
    for each in (db, twin):
        system.adopt(each)
    system.upgrade(twin)
    for script in (up, down):
        parts = statements(script)
        for number in range(1, len(parts), 8):
            assert "ERROR" not in psql(db, "".join(parts[:number])).stderr
        run(db, script)
        if script is up:
            assert state(db) == state(twin)
    system.downgrade(twin)
    assert state(db) == state(twin)


@pytest.mark.parametrize("statement", [each for each, _ in FOREIGN.values()], ids=FOREIGN.keys())
def test_a_script_uses_what_an_application_has_of_products_as_the_commands_do(
    db: Database,
    twin: Database,  # noqa: F811
    statement: str,
) -> None:
    system = SYSTEMS["products"]
    for each in (db, twin):
        each.execute("CREATE EXTENSION vector")
        system.adopt(each)
        each.execute(statement)
    system.upgrade(twin)
    run(db, write("-n", "products", "-x", f"dimension={DIMENSION}", "upgrade", "head"))
    assert state(db) == state(twin)
    system.downgrade(twin)
    run(db, write("-n", "products", "downgrade", "head:base"))
    assert state(db) == state(twin)


REFUSALS = {
    "type of the key": ("documents", "ALTER TABLE vector_documents ALTER id TYPE text"),
    "no column": ("documents", "ALTER TABLE vector_documents DROP metadata"),
    "no unique index": ("documents", "ALTER TABLE vector_documents DROP CONSTRAINT vector_documents_pkey"),
    "no function for a trigger": (
        "documents",
        "CREATE FUNCTION update_updated_at_column() RETURNS int LANGUAGE sql RETURN 1",
    ),
    "no view": ("products", "CREATE TABLE product_embedding_stats (n int)"),
}


@pytest.mark.parametrize(("section", "statement"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_the_upgrade_refuses_the_script_refuses_with_the_same_message(
    db: Database, section: str, statement: str
) -> None:
    system = SYSTEMS[section]
    system.adopt(db)
    db.execute(statement)
    stopped = psql(db, write("-n", section, "-x", f"dimension={DIMENSION}", "upgrade", "head"))
    with pytest.raises(AmprentaError) as caught:
        system.upgrade(db)
    assert_says(stopped, caught.value)


def test_what_a_view_of_the_applications_needs_stays_and_is_found_again(db: Database) -> None:
    system = SYSTEMS["products"]
    up = write("-n", "products", "-x", f"dimension={DIMENSION}", "upgrade", "head")
    run(db, up)
    made = state(db)[:-2]
    db.execute("CREATE VIEW theirs AS SELECT total_products FROM product_embedding_stats")
    db.execute("CREATE VIEW alike AS SELECT name FROM find_similar_products('[1,0,0,0]')")
    said = run(db, write("-n", "products", "downgrade", "head:base"))
    assert "materialised view product_embedding_stats: something of yours depends on it; left as it is" in said
    assert "function find_similar_products(" in said
    run(db, up)
    assert db.execute("SELECT * FROM alike") == []
    for view in ("theirs", "alike"):
        db.execute(f"DROP VIEW {view}")
    assert state(db)[:-2] == made
    system.check(db)
