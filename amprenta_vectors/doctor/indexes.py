"""Checks of the indexes: whether one of vectors serves, whether it is used, and what interrupted builds left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from amprenta_vectors.backfill.progress import indexes
from amprenta_vectors.doctor.finding import Finding, Patient, Severity, TableCheck
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.indexes import Index, builder_of, indexes_on
from amprenta_vectors.pg.ivfflat import fitting_lists
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.pg.types import INDEX_LIMITS, VectorType
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.models import MODEL_SCOPE, models_of
from amprenta_vectors.schema.vector_table import VectorTable

WORTH_AN_INDEX = 10_000
"""The number of rows from which an index is worth it: a search without one reads fewer in some milliseconds."""
_REBUILDING = ("_ccnew", "_ccold")
"""The endings, before a number, of the names that REINDEX CONCURRENTLY gives to what it makes and replaces."""

_LEAVES = sa.text("""
    SELECT c.oid::bigint, n.nspname AS schema, c.relname AS name,
           CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE coalesce(s.n_live_tup, 0) END::bigint AS rows
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.oid = ANY(CAST(:relations AS oid[])) AND c.relkind = 'r' ORDER BY c.relname
""")

_SINCE = sa.text("""
    SELECT to_char(stats_reset, 'YYYY-MM-DD') FROM pg_stat_database WHERE datname = current_database()
""")


@dataclass(frozen=True)
class Leaf:
    """A relation that holds rows: the table itself, or a partition. ``rows`` is the server's estimate."""

    oid: int
    schema: str
    name: str
    rows: int


def invalid_indexes(patient: Patient) -> Iterator[Finding]:
    """Report what an interrupted build left: no search uses it, and every write maintains it."""
    of_vectors = _indexes(patient)
    for index in indexes_on(patient.connection, patient.relations):
        if index.valid or index.partitioned:
            continue
        if index.oid in {each.oid for each in of_vectors}:
            alike = (other for other in of_vectors if other.table_oid == index.table_oid)
            served = any(other.serves(patient.table.distance) for other in alike)
            yield _invalid(patient, index, needed=not served, useless=served)
        else:
            yield _invalid(patient, index, needed=False, useless=False)


def _invalid(patient: Patient, index: Index, *, needed: bool, useless: bool) -> Finding:
    typed = _typed(index)
    builder = builder_of(patient.connection, index)
    if builder is not None:
        return Finding("note", f"index {typed} is not valid yet: pid {builder} may be building it")
    leftover = useless or index.name.rstrip("0123456789").endswith(_REBUILDING)
    return Finding(
        "serious" if needed else "advice",
        f"index {typed} ({index.size}) is not valid, left by an interrupted build: no search uses it",
        f"{'DROP' if leftover else 'REINDEX'} INDEX CONCURRENTLY {typed}",
    )


def missing_index(patient: Patient) -> Iterator[Finding]:
    """Report each leaf that has no index which searches can use."""
    found, of_models = _indexes(patient), _scopes_of_models(patient)
    for leaf in _leaves(patient):
        of_leaf = [index for index in found if index.table_oid == leaf.oid]
        if of_models and all(serving(patient.table, of_leaf, scope) is not None for scope in of_models):
            continue
        # An invalid one is another check's finding.
        if any(
            index.serves(patient.table.distance) or (index.fits(patient.table.distance) and not index.valid)
            for index in of_leaf
        ):
            continue
        yield _missing(patient, leaf, of_leaf)


def _scopes_of_models(patient: Patient) -> list[dict[str, str]]:
    """Return what tells the rows of each model with this column, where a model has rows of its own."""
    if MODEL_SCOPE not in patient.table.scope:
        return []
    models = models_of(patient.connection, patient.table)
    return [{MODEL_SCOPE: str(each.model.id)} for each in models if each.column == patient.table.embedding]


def _missing(patient: Patient, leaf: Leaf, of_leaf: list[Index]) -> Finding:
    table, build = patient.table, _build(patient, leaf)
    severity: Severity = "serious" if leaf.rows >= WORTH_AN_INDEX else "advice"
    waiting = [row.index_name for row in indexes.deferred_indexes(patient.connection, table.target)]
    if waiting:
        under_way = any(run.source for run in patient.unfinished_runs())
        after = "the last run into the column builds it" if under_way else "no run is left to build it"
        return Finding(
            "note" if under_way else severity,
            f"index {', '.join(waiting)} was deferred for a load; {after}",
            "" if under_way else build,
        )
    others = [f"{_typed(index)} ({index.opclass}{', partial' if index.partial else ''})" for index in of_leaf]
    drops = "".join(f"; DROP INDEX CONCURRENTLY {_typed(index)}" for index in of_leaf if not index.partial)
    name = qualified(leaf.name, leaf.schema)
    if others:
        return Finding(
            severity,
            f"searches of {table.target} are by {table.distance} over all rows, which {', '.join(others)} does not "
            f"serve: they read all rows of {name}, about {leaf.rows:,}{_by_halves(table)}",
            build + drops,
        )
    column = "vector index" if table.own_column is None else f"vector index on {table.embedding}"
    found = f"{name} has no {column}: each search reads all rows, about {leaf.rows:,}{_by_halves(table)}"
    return Finding(severity, found, build)


def _by_halves(table: VectorTable) -> str:
    """Return what pgvector does not index of a long vector."""
    if table.storage != "vector" or table.dimension <= INDEX_LIMITS["vector"]:
        return ""
    return f"; a vector({table.dimension}) is not indexed as it is, but cast to halfvec or to bits"


def _build(patient: Patient, leaf: Leaf) -> str:
    """Return the command that builds an index on a leaf."""
    table = patient.table
    if len(patient.relations) == 1:
        return f"{'' if table.own_column is None else f'AMPRENTA_TABLE={table.name} '}amprenta-vectors index build"
    # PostgreSQL builds none on a partitioned table concurrently.
    key = index_key(table.embedding, VectorType(table.storage, table.dimension), table.distance)
    return f"CREATE INDEX CONCURRENTLY ON {qualified(leaf.name, leaf.schema)} USING hnsw ({key.typed})"


def unused_index(patient: Patient) -> Iterator[Finding]:
    """Report an index that serves and that no search has used, although the application searches here."""
    if not patient.answers:
        return
    rows = {leaf.oid: leaf.rows for leaf in _leaves(patient)}
    for index in _indexes(patient):
        if index.serves(patient.table.distance) and not index.scans and rows[index.table_oid] >= WORTH_AN_INDEX:
            since = patient.connection.execute(_SINCE).scalar()
            yield Finding(
                "advice",
                f"index {_typed(index)} ({index.size}) was not used once since "
                f"{since or 'the server began to count'}: nobody searched, or PostgreSQL prefers to read all rows",
                f"amprenta-vectors canary; where it stays so: ANALYZE {patient.typed}",
            )


def lists_far_off(patient: Patient) -> Iterator[Finding]:
    """Report an ivfflat index whose lists do not suit its rows: one made before the load has one list for all."""
    leaves = {leaf.oid: leaf for leaf in _leaves(patient)}
    for index in _indexes(patient):
        rows = leaves[index.table_oid].rows
        if index.lists is None or (lists := fitting_lists(index.lists, rows)) == index.lists or rows < WORTH_AN_INDEX:
            continue
        alone = len(patient.relations) == 1
        typed = f"ALTER INDEX {_typed(index)} SET (lists = {lists}); REINDEX INDEX CONCURRENTLY {_typed(index)}"
        yield Finding(
            "serious" if patient.answers else "advice",
            f"index {_typed(index)} has {index.lists:,} lists for about {rows:,} rows; {lists:,} suit them",
            "amprenta-vectors index rebuild" if alone else typed,
        )


def _leaves(patient: Patient) -> list[Leaf]:
    rows = patient.connection.execute(_LEAVES, {"relations": patient.relations})
    return [Leaf(**row._mapping) for row in rows]


def _indexes(patient: Patient) -> list[Index]:
    return ann_indexes(patient.connection, patient.table)


def _typed(index: Index) -> str:
    """Return the index's name as a person types it."""
    return qualified(index.name, index.schema)


CHECKS: tuple[TableCheck, ...] = (invalid_indexes, missing_index, unused_index, lists_far_off)
