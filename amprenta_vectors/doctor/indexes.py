"""The vector index: whether one serves, whether it is used, and what interrupted builds left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from amprenta_vectors.backfill import progress
from amprenta_vectors.ddl.catalogue import qualified
from amprenta_vectors.ddl.index_state import state_of
from amprenta_vectors.ddl.vector_index import VECTOR_INDEX_LIMIT
from amprenta_vectors.doctor.finding import Finding, Patient, Severity, TableCheck

WORTH_AN_INDEX = 10_000
"""Rows that a search looks through without an index in some milliseconds."""
_INDEXABLE = 4000
"""Dimensions that pgvector indexes, as halfvec; more only after binary quantisation."""
_REBUILDING = ("_ccnew", "_ccold")
"""How PostgreSQL names what REINDEX CONCURRENTLY makes and replaces, before a number."""

_LEAVES = sa.text("""
    SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name,
           CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE coalesce(s.n_live_tup, 0) END::bigint AS rows
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.oid = ANY(CAST(:relations AS oid[])) AND c.relkind = 'r' ORDER BY c.relname
""")

_INDEXES = sa.text("""
    SELECT i.indrelid::bigint AS leaf, n.nspname AS schema, c.relname AS name, i.indisvalid AS valid,
           i.indpred IS NOT NULL AS partial, o.opcname AS opclass, coalesce(s.idx_scan, 0) AS scans,
           pg_size_pretty(pg_relation_size(c.oid)) AS size
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass o ON o.oid = i.indclass[0]
    LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = c.oid
    WHERE i.indrelid = ANY(CAST(:relations AS oid[])) AND EXISTS (
        SELECT FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.objid = i.indexrelid AND d.refobjid = i.indrelid AND a.attname = :column
    )
    ORDER BY c.relname
""")

_SINCE = sa.text("""
    SELECT to_char(stats_reset, 'YYYY-MM-DD') FROM pg_stat_database WHERE datname = current_database()
""")


@dataclass(frozen=True)
class Leaf:
    """What holds rows: the table itself, or a partition. ``rows`` is the server's estimate."""

    oid: int
    schema: str
    name: str
    rows: int


@dataclass(frozen=True)
class AnnIndex:
    """A vector index of the embedding column on one leaf."""

    leaf: int
    schema: str
    name: str
    valid: bool
    partial: bool
    opclass: str
    scans: int
    size: str

    def fits(self, patient: Patient) -> bool:
        """Whether its operator class is the one that searches ask for; a quantised one is re-ranked."""
        distance = patient.table.distance
        return self.opclass in (f"vector_{distance}_ops", f"halfvec_{distance}_ops") or self.opclass.startswith("bit_")

    def serves(self, patient: Patient) -> bool:
        """Whether searches can use it."""
        return self.valid and not self.partial and self.fits(patient)

    @property
    def typed(self) -> str:
        """The name as a person types it."""
        return qualified(self.name, self.schema)


def invalid_indexes(patient: Patient) -> Iterator[Finding]:
    """What an interrupted build left: no search uses it, and every write maintains it."""
    found = _indexes(patient)
    for index in found:
        if index.valid:
            continue
        _, builder = state_of(patient.connection, index.name, index.schema)
        if builder is not None:
            yield Finding("note", f"index {index.typed} is not valid yet: pid {builder} may be building it")
            continue
        served = any(other.serves(patient) for other in found if other.leaf == index.leaf)
        leftover = served or index.name.rstrip("0123456789").endswith(_REBUILDING)
        yield Finding(
            "advice" if served else "serious",
            f"index {index.typed} ({index.size}) is not valid, left by an interrupted build: no search uses it",
            f"{'DROP' if leftover else 'REINDEX'} INDEX CONCURRENTLY {index.typed}",
        )


def missing_index(patient: Patient) -> Iterator[Finding]:
    """Whether each leaf has an index that searches can use."""
    if patient.table.dimension > _INDEXABLE:
        return
    found = _indexes(patient)
    for leaf in _leaves(patient):
        of_leaf = [index for index in found if index.leaf == leaf.oid]
        # An invalid one is another check's finding.
        if any(index.serves(patient) or (index.fits(patient) and not index.valid) for index in of_leaf):
            continue
        yield _missing(patient, leaf, of_leaf)


def _missing(patient: Patient, leaf: Leaf, of_leaf: list[AnnIndex]) -> Finding:
    table, build = patient.table, _build(patient, leaf)
    severity: Severity = "serious" if leaf.rows >= WORTH_AN_INDEX else "advice"
    waiting = [row.index_name for row in progress.deferred_indexes(patient.connection, table.target)]
    if waiting:
        under_way = any(run.source for run in patient.unfinished_runs())
        after = "the last run into the column builds it" if under_way else "no run is left to build it"
        return Finding(
            "note" if under_way else severity,
            f"index {', '.join(waiting)} was put off for a load; {after}",
            "" if under_way else build,
        )
    others = [f"{index.typed} ({index.opclass}{', partial' if index.partial else ''})" for index in of_leaf]
    drops = "".join(f"; DROP INDEX CONCURRENTLY {index.typed}" for index in of_leaf if not index.partial)
    name = qualified(leaf.name, leaf.schema)
    if others:
        return Finding(
            severity,
            f"searches of {table.target} are by {table.distance} over all rows, which {', '.join(others)} does not "
            f"serve: they read all rows of {name}, about {leaf.rows:,}",
            build + drops,
        )
    return Finding(severity, f"{name} has no vector index: each search reads all rows, about {leaf.rows:,}", build)


def _build(patient: Patient, leaf: Leaf) -> str:
    """The command that builds an index on a leaf."""
    table = patient.table
    if len(patient.relations) == 1:
        return "amprenta-vectors index build"
    # PostgreSQL builds none on a partitioned table concurrently.
    halfvec = table.storage == "halfvec" or table.dimension > VECTOR_INDEX_LIMIT
    column = qualified(table.embedding)
    key = f"({column}::halfvec({table.dimension}))" if halfvec and table.storage == "vector" else column
    opclass = f"{'halfvec' if halfvec else 'vector'}_{table.distance}_ops"
    return f"CREATE INDEX CONCURRENTLY ON {qualified(leaf.name, leaf.schema)} USING hnsw ({key} {opclass})"


def unused_index(patient: Patient) -> Iterator[Finding]:
    """An index that serves and that no search has used, although the application searches here."""
    if not patient.answers:
        return
    rows = {leaf.oid: leaf.rows for leaf in _leaves(patient)}
    for index in _indexes(patient):
        if index.serves(patient) and not index.scans and rows[index.leaf] >= WORTH_AN_INDEX:
            since = patient.connection.execute(_SINCE).scalar()
            yield Finding(
                "advice",
                f"index {index.typed} ({index.size}) was not used once since "
                f"{since or 'the server began to count'}: nobody searched, or PostgreSQL prefers to read all rows",
                f"amprenta-vectors canary; where it stays so: ANALYZE {patient.typed}",
            )


def _leaves(patient: Patient) -> list[Leaf]:
    rows = patient.connection.execute(_LEAVES, {"relations": patient.relations})
    return [Leaf(**row._mapping) for row in rows]


def _indexes(patient: Patient) -> list[AnnIndex]:
    values = {"relations": patient.relations, "column": patient.table.embedding}
    return [AnnIndex(**row._mapping) for row in patient.connection.execute(_INDEXES, values)]


CHECKS: tuple[TableCheck, ...] = (invalid_indexes, missing_index, unused_index)
