"""The named parts of ``alembic.ini``, one a system."""

from __future__ import annotations

from dataclasses import dataclass


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
    )
}
