"""``include_object`` for environments in which another library compares functions, triggers and views as well."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context

from amprenta_vectors.ddl.marks import MADE

_MARKED = {
    "extension": "SELECT obj_description(e.oid, 'pg_extension') FROM pg_extension e WHERE e.extname = :name",
    "function": """
        SELECT obj_description(p.oid, 'pg_proc') FROM pg_proc p
        WHERE p.pronamespace = to_regnamespace(quote_ident(:schema)) AND p.proname = :name
          AND pg_get_function_arguments(p.oid) = :arguments
    """,
    "materialized_view": """
        SELECT obj_description(c.oid, 'pg_class') FROM pg_class c
        WHERE c.relnamespace = to_regnamespace(quote_ident(:schema)) AND c.relname = :name AND c.relkind = 'm'
    """,
    "trigger": """
        SELECT obj_description(t.oid, 'pg_trigger') FROM pg_trigger t
        WHERE t.tgrelid = to_regclass(:table) AND t.tgname = :name
    """,
}
"""The query for an object's comment, by the kind of object."""


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:
    """Return False for an extension, function, trigger or materialised view that an operation of ours made.

    For ``context.configure(include_object=…)`` beside alembic_utils, which would drop what it does not know: its
    entities have ``schema``, ``signature`` and, a trigger, ``on_entity``. Tables, columns and indexes need no filter.
    """
    if not reflected or type_ not in _MARKED:
        return True
    connection = context.get_context().connection
    assert connection is not None  # noqa: S101 - what is reflected was found in a database
    unqualified, _, arguments = object.signature.partition("(")
    parts = {
        "schema": object.schema,
        "name": unqualified.strip().strip('"'),
        "arguments": arguments.strip().removesuffix(")"),
        "table": getattr(object, "on_entity", None),
    }
    comments = connection.execute(sa.text(_MARKED[type_]), parts).scalars()
    return MADE not in comments.all()
