"""Names as PostgreSQL writes and reads them."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql.base import PGDialect

LONGEST_NAME = 63
"""Bytes of a name; PostgreSQL cuts off what is beyond (NAMEDATALEN, less its NUL)."""

# Not a driver's own dialect, which doubles percent signs.
_quote_if_needed = PGDialect(paramstyle="named").identifier_preparer.quote  # type: ignore[no-untyped-call]


def quoted(*parts: str | None) -> str:
    """Return ``parts`` as a dotted, quoted identifier, as ``to_regclass`` reads it; None parts are left out."""
    # SQLAlchemy's own quoting doubles percent signs for the driver, which a bound value must not have.
    return ".".join('"{}"'.format(part.replace('"', '""')) for part in parts if part)


def qualified(name: str, schema: str | None = None) -> str:
    """Return a name as a person types it: with its schema where one is given, quoted only where it must be."""
    return ".".join(_quote_if_needed(part) for part in (schema, name) if part)


def literal(value: str) -> str:
    """Return a text as a literal of SQL, for statements that take no parameters."""
    # With E, a backslash means itself whatever standard_conforming_strings says.
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in value else f"'{escaped}'"


def compose(template: str, **parts: str) -> str:
    """Return a statement with each ``{name}`` filled in: by `qualified`, `literal`, or what was composed so.

    For statements that take no parameters, DDL above all; braces that stand for nothing stay.
    """
    for name, part in parts.items():
        template = template.replace(f"{{{name}}}", part)
    return template


def suffixed(name: str, suffix: str) -> str:
    """Return ``name`` with ``suffix`` in at most 63 bytes; the name is cut where both do not fit."""
    return name.encode()[: LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix
