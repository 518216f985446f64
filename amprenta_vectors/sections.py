"""The named parts of ``alembic.ini``, one a system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


@dataclass(frozen=True)
class Section:
    """A named part of ``alembic.ini``: the folders of its revisions, the table that records them, and its own table."""

    name: str
    folders: tuple[str, ...]
    version_table: str
    table: str


SECTIONS = {
    section.name: section
    for section in (
        Section("alembic", ("core", "rag"), "amprenta_version_rag", "rag_chunks"),
        Section("documents", ("core", "documents"), "amprenta_version_documents", "vector_documents"),
        Section("products", ("core", "products"), "amprenta_version_products", "products"),
        Section("models", ("core", "models"), "amprenta_version_models", "chunk_embeddings"),
    )
}


def upgrade_command(connection: Connection, section: str | None = None) -> str:
    """Return what to type so that the section's revisions make something that is missing.

    Where the database is at the last of them already, somebody dropped it by hand, and an upgrade alone does nothing.
    """
    # Only where something is amiss: an application that queries need not load Alembic, nor a help text SQLAlchemy.
    import sqlalchemy as sa
    from alembic.script import ScriptDirectory

    from amprenta_vectors.ddl.script import heads_of
    from amprenta_vectors.migrate import migrations_folder

    typed, known = (f"alembic -n {section}" if section else "alembic"), SECTIONS[section or "alembic"]
    # A role of an application need not be allowed to read it.
    may_read = sa.select(sa.func.has_table_privilege(sa.func.to_regclass(known.version_table), "SELECT"))
    if not connection.execute(may_read).scalar():
        return f"{typed} upgrade head"
    folders = [str(migrations_folder() / "versions" / each) for each in known.folders]
    heads = ScriptDirectory(str(migrations_folder()), version_locations=folders).get_heads()
    if heads_of(connection, known.version_table) != sorted(heads):
        return f"{typed} upgrade head"
    return f"{typed} stamp base && {typed} upgrade head makes anew what was dropped by hand"
