"""What every torture asks for afterwards: each vector there to the bit, written once, and checksums that agree."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import sqlalchemy as sa
from backfill_tools import count_writes, execute, expected, stored, writes_per_key

from amprenta_vectors.batch import Vectors

_KEEP_KEYS = """
CREATE TABLE keys_of_batch (batch bigint, keys text[]);
CREATE FUNCTION keep_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO keys_of_batch VALUES (OLD.batch, OLD.keys);
    RETURN NULL;
END $$;
CREATE TRIGGER keep_keys AFTER UPDATE ON migration_progress FOR EACH ROW
    WHEN (NEW.status = 'done' AND OLD.status <> 'done') EXECUTE FUNCTION keep_keys();
"""


def watch(engine: sa.Engine) -> None:
    """From now on record every write of an embedding, and the keys of every batch as it is done."""
    count_writes(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(_KEEP_KEYS)


def assert_whole(engine: sa.Engine, ids: Sequence[str], vectors: Vectors) -> None:
    """After a run of all ``ids`` that was watched: nothing lost, nothing changed, nothing twice, all of it recorded."""
    assert stored(engine) == expected(ids, vectors)
    assert writes_per_key(engine) == dict.fromkeys(ids, 1)
    assert execute(engine, "SELECT state, planned_keys FROM migration_run WHERE source IS NOT NULL") == [
        ("finished", len(ids))
    ]
    figures = "SELECT sum(rows_written)::int, sum(rows_skipped)::int, count(*) FILTER (WHERE status <> 'done')"
    assert execute(engine, figures + " FROM migration_progress") == [(len(ids), 0, 0)]
    assert execute(engine, "SELECT count(*) FROM migration_quarantine") == [(0,)]
    assert execute(engine, "SELECT count(*) FROM migration_index WHERE built_at IS NULL") == [(0,)]
    bytes_of = dict(zip(ids, (vector.astype(">f4").tobytes() for vector in vectors), strict=True))
    recorded = execute(engine, "SELECT batch, checksum FROM migration_progress ORDER BY batch")
    kept = dict(execute(engine, "SELECT batch, keys FROM keys_of_batch"))
    assert recorded == [(batch, zlib.crc32(b"".join(map(bytes_of.__getitem__, kept[batch])))) for batch in sorted(kept)]
