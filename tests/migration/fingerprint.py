"""Two databases compared by all that a migration can make in them."""

from __future__ import annotations

import re
from typing import Any

from migrating import Database

# A retired name bears the moment of the downgrade, which no two downgrades share.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\S+")

_PROGRAMS = """
    SELECT c.relname::text, 'trigger', t.tgname::text,
           concat_ws(' ', pg_get_triggerdef(t.oid), obj_description(t.oid, 'pg_trigger'))
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT p.proname::text, 'function', pg_get_function_identity_arguments(p.oid),
           concat_ws(' ', pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc'))
    FROM pg_proc p
    WHERE p.prokind = 'f' AND p.pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    UNION ALL
    SELECT schemaname::text || '.' || viewname, 'view', '', definition FROM pg_views WHERE schemaname = 'public'
    UNION ALL
    SELECT matviewname::text, 'materialised view', '', definition FROM pg_matviews
    UNION ALL
    SELECT tablename::text, 'policy', policyname::text, concat_ws(' ', cmd, roles::text, qual, with_check)
    FROM pg_policies
    UNION ALL
    SELECT relname::text, 'owner and rights', pg_get_userbyid(relowner)::text,
           concat_ws(' ', relacl::text, relrowsecurity::text, reloptions::text)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3
"""


def fingerprint(db: Database) -> list[Any]:
    """Relations, columns, constraints, indexes, extensions, functions, triggers, views, policies and revisions."""
    rows = [
        tuple(_MOMENT.sub("…", value) if isinstance(value, str) else value for value in row) for row in db.catalogue()
    ]
    rows += [tuple(row) for row in db.execute(_PROGRAMS)]
    versions = db.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'amprenta\\_version\\_%'")
    return rows + [(name, *row) for (name,) in sorted(versions) for row in db.execute(f"SELECT * FROM {name}")]
