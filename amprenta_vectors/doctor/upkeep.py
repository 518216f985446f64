"""Checks of what wears with use: dead rows, statistics, the cache, and sizes beside the memory that PostgreSQL has."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from amprenta_vectors.doctor.finding import Finding, Patient, TableCheck
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.schema.engine_tables import ENGINE_TABLES

DEAD_SHARE, BLOATED_SHARE = 0.2, 0.5
"""Autovacuum starts at a share of 0.2; a table half of whose rows are dead it has not visited for long."""
LEAST_DEAD = 1000
HIT_SHARE = 0.95
LEAST_BLOCKS = 10_000
"""The fewest blocks (8 kB) of which a hit ratio says something."""

_DEAD = sa.text("""
    SELECT coalesce(sum(n_live_tup), 0)::bigint AS live, coalesce(sum(n_dead_tup), 0)::bigint AS dead,
           to_char(max(greatest(last_vacuum, last_autovacuum)), 'YYYY-MM-DD HH24:MI') AS vacuumed
    FROM pg_stat_all_tables WHERE relid = ANY(CAST(:relations AS oid[]))
""")

# By what the planner has, not by when ANALYZE ran last: a reset of the counters forgets that.
_UNANALYSED = sa.text("""
    SELECT n.nspname AS schema, c.relname AS name FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = ANY(CAST(:relations AS oid[]))
      AND NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = n.nspname AND s.tablename = c.relname)
      AND CASE c.relkind WHEN 'r' THEN pg_relation_size(c.oid) > 0
          ELSE EXISTS (SELECT FROM unnest(CAST(:relations AS oid[])) AS part (oid) WHERE pg_relation_size(part.oid) > 0)
          END
    ORDER BY c.relname
""")

_CACHE = sa.text("""
    SELECT coalesce(sum(t.heap_blks_hit + coalesce(t.toast_blks_hit, 0)), 0)::bigint AS table_hit,
           coalesce(sum(t.heap_blks_read + coalesce(t.toast_blks_read, 0)), 0)::bigint AS table_read,
           coalesce(sum(t.idx_blks_hit), 0)::bigint AS index_hit,
           coalesce(sum(t.idx_blks_read), 0)::bigint AS index_read,
           current_setting('shared_buffers') AS shared_buffers
    FROM pg_statio_all_tables t WHERE t.relid = ANY(CAST(:relations AS oid[]))
""")

_SIZES = sa.text("""
    WITH sizes AS (
        SELECT sum(pg_table_size(oid)) AS table_bytes, sum(pg_indexes_size(oid)) AS index_bytes
        FROM unnest(CAST(:relations AS oid[])) AS given (oid)
    )
    SELECT pg_size_pretty(table_bytes) AS table, pg_size_pretty(index_bytes) AS indexes,
           current_setting('shared_buffers') AS shared_buffers,
           current_setting('effective_cache_size') AS effective_cache_size,
           index_bytes > pg_size_bytes(current_setting('effective_cache_size')) AS outgrown
    FROM sizes
""")

_ENGINE_SIZES = sa.text("""
    WITH sizes AS (
        SELECT name, pg_total_relation_size(to_regclass(name)) AS bytes
        FROM unnest(CAST(:names AS text[])) AS given (name) WHERE to_regclass(name) IS NOT NULL
    )
    SELECT pg_size_pretty(sum(bytes)) AS total,
           string_agg(name || ' ' || pg_size_pretty(bytes), ', ' ORDER BY bytes DESC, name) AS each
    FROM sizes
""")


def dead_rows(patient: Patient) -> Iterator[Finding]:
    """Report old versions of rows that vacuum has not removed: searches go past them in table and index."""
    row = patient.connection.execute(_DEAD, {"relations": patient.relations}).one()
    share = row.dead / max(1, row.live + row.dead)
    if row.dead >= LEAST_DEAD and share >= DEAD_SHARE:
        bloated = share >= BLOATED_SHARE
        yield Finding(
            "serious" if bloated else "advice",
            f"{row.dead:,} of {row.live + row.dead:,} rows of {patient.table.qualified_name} are dead ({share:.0%}), "
            f"last vacuumed: {row.vacuumed or 'never'}",
            f"VACUUM (ANALYZE) {patient.typed}{'; amprenta-vectors index rebuild' if bloated else ''}",
        )


def missing_statistics(patient: Patient) -> Iterator[Finding]:
    """Report tables never analysed: PostgreSQL guesses what a filter leaves, and so whether to use the index."""
    for row in patient.connection.execute(_UNANALYSED, {"relations": patient.relations}):
        name = qualified(row.name, row.schema)
        yield Finding(
            "advice", f"{name} was never analysed: searches with a filter are planned by guess", f"ANALYZE {name}"
        )


def cache_hits(patient: Patient) -> Iterator[Finding]:
    """Report a table or indexes of which too little of what was asked for lay in PostgreSQL's own memory."""
    row = patient.connection.execute(_CACHE, {"relations": patient.relations}).one()
    for what, hit, read in (("table", row.table_hit, row.table_read), ("indexes", row.index_hit, row.index_read)):
        if hit + read >= LEAST_BLOCKS and hit / (hit + read) < HIT_SHARE:
            yield Finding(
                "advice",
                f"{hit / (hit + read):.1%} of the blocks of {patient.table.qualified_name} ({what}) came from "
                f"shared_buffers ({row.shared_buffers}), expected {HIT_SHARE:.0%} or more; SQL cannot tell whether the "
                "others came from the operating system's cache or from disk",
                "raise shared_buffers, up to a quarter of the server's memory: ALTER SYSTEM SET shared_buffers = '…', "
                "then restart the server",
            )


def sizes(patient: Patient) -> Iterator[Finding]:
    """Report the sizes of table and indexes beside the memory that PostgreSQL has, or is told of."""
    row = patient.connection.execute(_SIZES, {"relations": patient.relations}).one()
    yield Finding(
        "note",
        f"{patient.table.qualified_name}: table {row.table}, indexes {row.indexes}; shared_buffers "
        f"{row.shared_buffers}, effective_cache_size {row.effective_cache_size}; SQL cannot ask how much memory the "
        "server has",
    )
    if row.outgrown:
        yield Finding(
            "advice",
            f"the indexes ({row.indexes}) are larger than effective_cache_size ({row.effective_cache_size}): searches "
            "will read from disk",
            "where the server has the memory: ALTER SYSTEM SET effective_cache_size = '…'; where not, give it more, or "
            "index the column as halfvec, which takes half",
        )


def sizes_of_the_engine(patient: Patient) -> Iterator[Finding]:
    """Report the sizes of the tables that the engine keeps for itself, with their indexes; `prune` makes room."""
    row = patient.connection.execute(_ENGINE_SIZES, {"names": list(ENGINE_TABLES)}).one()
    yield Finding("note", f"the engine's own tables take {row.total}: {row.each}")


CHECKS: tuple[TableCheck, ...] = (dead_rows, missing_statistics, cache_hits, sizes, sizes_of_the_engine)
