"""An application that knows nothing of embeddings works on, before, during and after every upgrade and downgrade."""

from __future__ import annotations

import threading
from contextlib import closing

import psycopg2
from migrating import Database, settings_at, wait_until
from old_application import WritingLoad, use

from amprenta_vectors.pg import sessions

VALUES = (
    "UPDATE rag_chunks SET embedding = '[1,2,3]', embedding_model = 'm', updated_at = now() - interval '1 day' "
    "WHERE content LIKE 'text%'"
)
REVISIONS = ("core_0001", "rag_0001", "rag_0002", "rag_0003", "rag_0004")


def test_its_statements_work_at_every_revision_on_the_way_up_and_down(adopted: Database) -> None:
    use(adopted)
    for revision in REVISIONS:
        adopted.upgrade(revision, vector_dimension=3)
        use(adopted)
    adopted.execute(VALUES)
    adopted.execute("ALTER TABLE rag_chunks ALTER embedding SET NOT NULL")
    for revision in (*REVISIONS[-2::-1], "base"):
        adopted.downgrade(revision)
        if revision not in ("rag_0003", "rag_0002"):
            use(adopted)
    adopted.upgrade()
    use(adopted)
    assert adopted.execute("SELECT count(*), count(embedding) FROM rag_chunks") == [(100, 100)]


def test_no_write_fails_or_waits_for_long_while_the_schema_goes_up_down_and_up(
    adopted: Database, brief_tries: None
) -> None:
    more = "SELECT 'more-' || n, 'text ' || n FROM generate_series(1, 5000) n"
    adopted.execute(f"INSERT INTO rag_chunks (chunk_id, content) {more}")
    meanwhile = "FROM rag_chunks WHERE content = 'new' AND updated_at BETWEEN :retired AND :again"
    with (
        WritingLoad(adopted, threads=3, limit_seconds=30) as load,
        settings_at("ALTER TABLE rag_chunks", "lock_timeout") as limits,
    ):
        adopted.upgrade("rag_0002", vector_dimension=3)
        without = "SELECT chunk_id FROM rag_chunks WHERE embedding IS NULL AND content LIKE 'text%' LIMIT 500"
        for _ in range(15):
            adopted.execute(f"{VALUES} AND chunk_id IN ({without})")
        adopted.upgrade()
        adopted.downgrade()
        retired = adopted.scalar("SELECT clock_timestamp()")
        changes = f"SELECT count(*) {meanwhile.replace(':again', 'clock_timestamp()')}"
        wait_until(lambda: adopted.scalar(changes, retired=retired))
        again = adopted.scalar("SELECT clock_timestamp()")
        adopted.upgrade()
        wait_until(lambda: load.errors or len(load.waits) > 100)
    assert load.errors == []
    # What takes the table from everybody asks for it for no longer than one try.
    assert set(limits) == {("300ms",)}
    changed, stale = adopted.execute(f"SELECT count(*), count(embedding) {meanwhile}", retired=retired, again=again)[0]
    assert changed > 0, "no row changed while its embedding was retired: the test shows nothing"
    assert stale == 0
    assert adopted.scalar("SELECT count(*) FROM rag_chunks WHERE content LIKE 'text%' AND embedding IS NULL") == 0


def test_no_write_fails_while_a_reader_holds_the_table_and_the_upgrade_tries_again_and_again(
    adopted: Database, brief_tries: None
) -> None:
    upgrade = threading.Thread(target=adopted.upgrade)
    with (
        WritingLoad(adopted, threads=3, limit_seconds=30) as load,
        settings_at("ALTER TABLE rag_chunks ADD", "lock_timeout") as tries,
    ):
        with closing(psycopg2.connect(adopted.url)) as reader:
            reader.cursor().execute("SELECT FROM rag_chunks LIMIT 1")
            upgrade.start()
            # A write that waited for half a try shows that the upgrade was in the way.
            wait_until(lambda: load.errors or (len(tries) > 3 and max(load.waits) > sessions.LOCK_SECONDS / 2))
            assert "embedding" not in adopted.columns("rag_chunks")
        upgrade.join()
    assert load.errors == []
    assert set(tries) == {("300ms",)}
    assert adopted.index_is_valid("idx_rag_chunks_embedding")
