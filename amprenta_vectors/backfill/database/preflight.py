"""Checks of the target before a run, and notes on it that a person should read."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import ServerUnsuitable
from amprenta_vectors.pg.tables import table_of
from amprenta_vectors.schema.catalogue import check_visible, relation, relations_of
from amprenta_vectors.schema.vector_table import VectorTable

_RIGHTS = sa.text("""
    SELECT has_table_privilege(:name, 'SELECT') AS "SELECT", has_table_privilege(:name, 'UPDATE') AS "UPDATE",
           has_table_privilege(:name, 'INSERT') AS "INSERT",
           has_table_privilege(:name, 'DELETE') AS "DELETE",
           has_database_privilege(current_database(), 'TEMP') AS "TEMP",
           pg_is_in_recovery() AS standby,
           current_setting('default_transaction_read_only') = 'on' AS read_only,
           quote_ident(current_user) AS role, quote_ident(current_database()) AS database
""")

# The check that PostgreSQL itself makes before an UPDATE (CheckCmdReplicaIdentity in execReplication.c), on the
# relations that really hold the rows; a publication may name such a relation, the table, or its partitioned parent.
_PUBLISHED = sa.text("""
    SELECT c.oid::regclass::text AS name, c.relreplident = 'f' AS whole_rows, published.names,
           published.updates AND c.relreplident <> 'f' AND NOT EXISTS (
               SELECT FROM pg_index i
               WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                 AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
           ) AS refused, (
               SELECT quote_ident(x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
               WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND i.indisunique AND i.indpred IS NULL
                 AND i.indexprs IS NULL AND (
                     SELECT bool_and(a.attnotnull) FROM pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
                 )
               ORDER BY x.relname LIMIT 1
           ) AS fit_index
    FROM pg_class c CROSS JOIN LATERAL (
        SELECT array_agg(DISTINCT p.pubname::text ORDER BY p.pubname::text) AS names, bool_or(p.pubupdate) AS updates
        FROM pg_publication_tables t JOIN pg_publication p ON p.pubname = t.pubname
        WHERE to_regclass(format('%I.%I', t.schemaname, t.tablename)) IN (
            SELECT c.oid::regclass UNION SELECT relid FROM pg_partition_ancestors(c.oid)
        )
    ) AS published
    WHERE c.oid = ANY(CAST(:oids AS oid[])) AND c.relkind = 'r' AND published.names IS NOT NULL
    ORDER BY 1
""")

_OWNER = sa.text("""
    SELECT pg_get_userbyid(relowner) AS owner, pg_has_role(relowner, 'USAGE') AS may, current_user AS role
    FROM pg_class WHERE oid = to_regclass(:name)
""")

# A trigger of a partitioned table has a copy in each partition, which names it as its parent. tgtype has bits: 1 for
# each row, 2 before, 4 on INSERT, 16 on UPDATE (catalog/pg_trigger.h).
_TRIGGERS = sa.text("""
    SELECT t.tgname AS name, p.oid::regproc::text AS function, t.tgtype & 1 <> 0 AS each_row,
           t.tgtype & 3 = 3 AND p.prosrc ILIKE '%updated_at%' AS stamps
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = ANY(CAST(:oids AS oid[])) AND NOT t.tgisinternal AND t.tgparentid = 0
      AND t.tgenabled IN ('O', 'A') AND (t.tgtype & 4 <> 0 AND :insert OR t.tgtype & 16 <> 0 AND (
          t.tgattr::text = '' OR EXISTS (
              SELECT FROM pg_attribute a
              WHERE a.attrelid = t.tgrelid AND a.attnum = ANY(t.tgattr) AND a.attname = ANY(CAST(:filled AS text[])))))
    ORDER BY t.tgname
""")


def check_target(connection: Connection, table: VectorTable, *, insert: bool, delete: bool = False) -> None:
    """Raise `ServerUnsuitable`, naming the mend, if PostgreSQL would refuse a run into ``table``."""
    name = relation(table)
    row = connection.execute(_RIGHTS, {"name": name}).one()
    if row.standby:
        raise ServerUnsuitable("this server is a read-only standby", hint="point DATABASE_URL at the primary")
    if row.read_only:
        raise ServerUnsuitable(
            f"role {row.role} may only read: default_transaction_read_only is on",
            hint=f"ALTER ROLE {row.role} IN DATABASE {row.database} SET default_transaction_read_only = off",
        )
    check_visible(connection, table)
    needed = ["SELECT", "UPDATE", *(["INSERT"] if insert else []), *(["DELETE"] if delete else [])]
    lacking = [privilege for privilege in needed if not row._mapping[privilege]]
    if lacking:
        raise ServerUnsuitable(
            f"this role lacks {', '.join(lacking)} on {table.qualified_name}",
            hint=f"GRANT {', '.join(lacking)} ON {name} TO {row.role}",
        )
    if not row.TEMP:
        raise ServerUnsuitable(
            "this role may not make temporary tables", hint=f"GRANT TEMP ON DATABASE {row.database} TO {row.role}"
        )
    _check_replica_identity(connection, table)


def _check_replica_identity(connection: Connection, table: VectorTable) -> None:
    refused = [row for row in connection.execute(_PUBLISHED, {"oids": relations_of(connection, table)}) if row.refused]
    if not refused:
        return
    mends = [
        f"ALTER TABLE {row.name} REPLICA IDENTITY {f'USING INDEX {row.fit_index}' if row.fit_index else 'FULL'}"
        for row in refused
    ]
    raise ServerUnsuitable(
        f"PostgreSQL would refuse every update of {', '.join(row.name for row in refused)}: publication "
        f"{', '.join(refused[0].names)} passes updates on, and there is no replica identity to tell rows by",
        hint="; ".join(mends),
    )


def describe_target(connection: Connection, table: VectorTable, *, insert: bool) -> list[str]:
    """Return what does not stop a run into ``table`` but should be known, a sentence each."""
    return [
        *_ownership(connection, table),
        *_publications(connection, table),
        *_triggers(connection, table, insert=insert),
        *(_inserts(table) if insert else ()),
    ]


def _ownership(connection: Connection, table: VectorTable) -> Iterator[str]:
    found = table_of(connection, table.table, table.schema)
    if found is not None and found.partitioned:
        yield (
            f"table {table.qualified_name} is partitioned: its ANN index stays in place during the load, and is yours "
            "to drop and build"
        )
    row = connection.execute(_OWNER, {"name": relation(table)}).one()
    if not row.may:
        yield (
            f"table {table.qualified_name} belongs to {row.owner}, of which role {row.role} is no member: an ANN index "
            "stays in place during the load, and is built or dropped by a member only"
        )


def _publications(connection: Connection, table: VectorTable) -> Iterator[str]:
    published = connection.execute(_PUBLISHED, {"oids": relations_of(connection, table)}).all()
    names = sorted({name for row in published for name in row.names})
    if names:
        whole = " with what it was before (REPLICA IDENTITY FULL)" if any(row.whole_rows for row in published) else ""
        yield f"every row that is filled goes to the subscribers of publication {', '.join(names)} as well{whole}"


def _triggers(connection: Connection, table: VectorTable, *, insert: bool) -> Iterator[str]:
    names = (table.embedding, table.model, table.hash, table.text_hash)
    filled = [name for name in names if name is not None]
    values = {"oids": relations_of(connection, table), "insert": insert, "filled": filled}
    for row in connection.execute(_TRIGGERS, values):
        how_often = "each row that is filled" if row.each_row else "each batch"
        stamps = "; it names updated_at, so that filled rows may look changed" if row.stamps else ""
        yield f"trigger {row.name} runs {row.function}() for {how_often}{stamps}"


def _inserts(table: VectorTable) -> Iterator[str]:
    if table.to_fill:
        yield (
            f"a row of the source that {table.qualified_name} does not have is quarantined, unless a trigger gives "
            f"{', '.join(table.to_fill)} a value: NOT NULL without a default"
        )
