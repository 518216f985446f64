"""The section `documents`: what its guide names is made, and what an application has of it already is used as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from fingerprint import fingerprint
from migrating import Database
from systems import DIMENSION, DOCUMENTS

from amprenta_vectors.errors import SchemaMismatch, ServerUnsuitable

FUNCTION = """
    CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.updated_at = timestamptz ''2001-01-01''; RETURN NEW; END'
"""
TABLE = f"""
    CREATE TABLE vector_documents (
        id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id VARCHAR(255) NOT NULL,
        collection_name VARCHAR(255) NOT NULL DEFAULT 'personal_assistant',
        text TEXT NOT NULL,
        embedding vector({DIMENSION}) NOT NULL,
        metadata JSONB DEFAULT '{{}}',
        created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
        updated_at TIMESTAMP WITH TIME ZONE DEFAULT NOW()
    )
"""
TRIGGER = """
    CREATE TRIGGER update_vector_documents_updated_at BEFORE UPDATE ON vector_documents
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()
"""
UNIQUE = "uq_vector_documents_user_collection_id"


def functions(db: Database) -> list[tuple[str, bool]]:
    """The functions of that name by their source, and whether they are marked as ours."""
    rows = db.execute(
        "SELECT prosrc, obj_description(oid, 'pg_proc') IS NOT NULL FROM pg_proc "
        "WHERE proname = 'update_updated_at_column'"
    )
    return [tuple(row) for row in rows]


def test_the_table_indexes_and_trigger_are_those_of_the_guide(db: Database) -> None:
    DOCUMENTS.upgrade(db)
    columns = db.execute("""
        SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = 'vector_documents'::regclass AND attnum > 0 ORDER BY attnum
    """)
    assert columns == [
        ("id", "uuid", True, "gen_random_uuid()"),
        ("user_id", "character varying(255)", True, None),
        ("collection_name", "character varying(255)", True, "'personal_assistant'::character varying"),
        ("text", "text", True, None),
        ("metadata", "jsonb", False, "'{}'::jsonb"),
        ("created_at", "timestamp with time zone", False, "now()"),
        ("updated_at", "timestamp with time zone", False, "now()"),
        ("embedding", f"vector({DIMENSION})", True, None),
        ("embedding_hash", "bigint", False, None),
        ("embedding_text_hash", "bigint", False, None),
    ]
    indexes = dict(
        tuple(row)
        for row in db.execute(
            "SELECT indexname, split_part(indexdef, ' ON public.vector_documents USING ', 2) FROM pg_indexes "
            "WHERE tablename = 'vector_documents'"
        )
    )
    assert indexes == {
        "vector_documents_pkey": "btree (id)",
        "idx_vector_documents_user_collection": "btree (user_id, collection_name)",
        UNIQUE: "btree (user_id, collection_name, id)",
        "idx_vector_documents_embedding_hnsw": "hnsw (embedding vector_cosine_ops) WITH (m='16', ef_construction='64')",
    }
    DOCUMENTS.insert(db)
    db.execute("UPDATE vector_documents SET updated_at = now() - interval '1 day', text = 'new'")
    assert db.scalar("SELECT min(updated_at) > now() - interval '1 minute' FROM vector_documents")


def test_without_a_setting_the_dimension_is_768(db: Database) -> None:
    db.upgrade(section="documents")
    assert db.columns("vector_documents")["embedding"] == "vector(768)"


def test_an_existing_function_is_used_never_replaced_and_never_dropped(db: Database) -> None:
    db.execute(FUNCTION)
    before = functions(db)
    DOCUMENTS.upgrade(db)
    assert functions(db) == before
    DOCUMENTS.insert(db)
    db.execute("UPDATE vector_documents SET text = 'new'")
    assert db.scalar("SELECT max(updated_at) = '2001-01-01' FROM vector_documents")
    DOCUMENTS.downgrade(db)
    assert functions(db) == before


def test_a_function_that_another_trigger_uses_by_now_stays_and_is_used_again(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    DOCUMENTS.upgrade(db)
    db.execute("CREATE TABLE theirs (updated_at timestamptz)")
    db.execute(TRIGGER.replace("vector_documents", "theirs"))
    DOCUMENTS.downgrade(db)
    assert "function update_updated_at_column(): something of yours depends on it; left as it is" in caplog.text
    assert len(functions(db)) == 1
    DOCUMENTS.upgrade(db)
    DOCUMENTS.check(db)
    db.execute("DROP TABLE theirs")
    DOCUMENTS.downgrade(db)
    assert functions(db) == []


def test_a_function_of_that_name_that_is_none_for_a_trigger_is_named_with_what_to_type(db: Database) -> None:
    db.execute("CREATE FUNCTION update_updated_at_column() RETURNS int LANGUAGE sql RETURN 1")
    with pytest.raises(SchemaMismatch, match=r"update_updated_at_column\(\) exists and returns integer") as caught:
        DOCUMENTS.upgrade(db)
    statement = caught.value.hint.split(",")[0].replace("…", "theirs")
    db.execute(statement)
    DOCUMENTS.upgrade(db)


def test_a_table_made_by_the_guide_itself_is_adopted_whole(db: Database) -> None:
    for statement in (
        "CREATE EXTENSION vector",
        TABLE,
        "CREATE INDEX idx_vector_documents_user_collection ON vector_documents (user_id, collection_name)",
        "CREATE INDEX idx_vector_documents_embedding_hnsw ON vector_documents USING hnsw (embedding vector_cosine_ops)",
        FUNCTION,
        TRIGGER,
    ):
        db.execute(statement)
    DOCUMENTS.insert(db)
    before = fingerprint(db)
    DOCUMENTS.upgrade(db)
    DOCUMENTS.check(db)
    assert db.index_is_valid(UNIQUE)
    rows = [row[0] for row in db.execute("SELECT to_jsonb(d) FROM vector_documents d ORDER BY id")]
    DOCUMENTS.downgrade(db, purge=True)
    assert [row for row in fingerprint(db) if not row[0].startswith(DOCUMENTS.version_table)] == before
    DOCUMENTS.upgrade(db)
    assert [row[0] for row in db.execute("SELECT to_jsonb(d) FROM vector_documents d ORDER BY id")] == rows


def test_rows_that_wait_to_be_embedded_are_no_obstacle(db: Database) -> None:
    DOCUMENTS.adopt(db)
    DOCUMENTS.upgrade(db)
    assert db.scalar("SELECT count(*) FROM vector_documents WHERE embedding IS NULL") == 20


def test_another_unique_index_on_user_collection_and_id_serves(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    DOCUMENTS.adopt(db)
    db.execute("CREATE UNIQUE INDEX theirs ON vector_documents (id, user_id, collection_name)")
    DOCUMENTS.upgrade(db)
    DOCUMENTS.check(db)
    assert f"another unique index does the same as {UNIQUE}: used instead" in caplog.text
    assert db.index_is_valid(UNIQUE) is None
    DOCUMENTS.downgrade(db)
    assert db.index_is_valid("theirs")


@pytest.mark.parametrize("name", [UNIQUE, f"{UNIQUE}_building"])
def test_an_index_that_an_interrupted_build_left_invalid_is_rebuilt(db: Database, name: str) -> None:
    DOCUMENTS.adopt(db)
    DOCUMENTS.upgrade(db, "documents_0002")
    db.execute(f"CREATE UNIQUE INDEX {name} ON vector_documents (user_id, collection_name, id)")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)", name=name)
    DOCUMENTS.upgrade(db)
    DOCUMENTS.check(db)
    assert db.index_is_valid(UNIQUE)
    assert db.index_is_valid(f"{UNIQUE}_building") is None


def test_a_build_killed_before_its_index_was_named_is_taken_up(db: Database) -> None:
    DOCUMENTS.adopt(db)
    DOCUMENTS.upgrade(db, "documents_0002")
    db.execute(f"CREATE UNIQUE INDEX {UNIQUE}_building ON vector_documents (user_id, collection_name, id)")
    DOCUMENTS.upgrade(db)
    assert db.index_is_valid(UNIQUE)
    DOCUMENTS.downgrade(db)
    assert db.index_is_valid(UNIQUE) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP COLUMN metadata", "exists without the columns relied on: metadata"),
        ("ALTER COLUMN id TYPE text", r"column vector_documents\.id is of type text; expected uuid"),
        ("DROP CONSTRAINT vector_documents_pkey", r"without a unique index on exactly \(id\)"),
    ],
)
def test_a_table_that_cannot_be_adopted_is_named_with_what_it_lacks(db: Database, change: str, said: str) -> None:
    DOCUMENTS.adopt(db)
    db.execute(f"ALTER TABLE vector_documents {change}")
    before = fingerprint(db)
    with pytest.raises(SchemaMismatch, match=said):
        DOCUMENTS.upgrade(db)
    relevant = [row for row in fingerprint(db) if row[0] in {each[0] for each in before} - {"plpgsql"}]
    assert relevant == [row for row in before if row[0] != "plpgsql"]


def test_a_role_that_does_not_own_a_table_is_told_what_to_grant(
    db: Database, as_role: Callable[[str], Database]
) -> None:
    owner, migrator = as_role("documents_owner"), as_role("documents_migrator")
    db.execute("CREATE EXTENSION vector")
    owner.execute(FUNCTION)
    DOCUMENTS.adopt(owner)
    with pytest.raises(ServerUnsuitable, match="may not alter table vector_documents") as caught:
        DOCUMENTS.upgrade(migrator)
    db.execute(caught.value.hint.split(",")[0])
    DOCUMENTS.upgrade(migrator)
    DOCUMENTS.check(migrator)
    DOCUMENTS.downgrade(migrator)


def test_a_function_of_ours_that_another_role_owns_by_now_is_named_with_what_to_grant(
    db: Database, as_role: Callable[[str], Database]
) -> None:
    db.execute("CREATE EXTENSION vector")
    migrator = as_role("documents_migrator")
    DOCUMENTS.upgrade(migrator)
    db.execute("ALTER FUNCTION update_updated_at_column() OWNER TO postgres")
    with pytest.raises(ServerUnsuitable, match="may not replace or drop function update_updated_at_column") as caught:
        DOCUMENTS.downgrade(migrator)
    assert "ALTER FUNCTION update_updated_at_column() OWNER TO documents_migrator" in caught.value.hint
    db.execute("ALTER FUNCTION update_updated_at_column() OWNER TO documents_migrator")
    DOCUMENTS.downgrade(migrator)
