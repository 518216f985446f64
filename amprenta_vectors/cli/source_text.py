"""A source before it is opened, by its kind: where it is, and how to back it up."""

from __future__ import annotations

import json

from amprenta_vectors.backends.opening import kind_of
from amprenta_vectors.backends.rows.row_texts import text_columns_of
from amprenta_vectors.config import Settings
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.shown import show_url


def to_place(settings: Settings, table: VectorTable) -> str:
    """Return where the settings say that the vectors are. Raises `ConfigError` for what is missing."""
    match kind_of(settings, table):
        case "pinecone":
            settings.require("pinecone_api_key")
            index = settings.require("pinecone_index_name")
            namespace = settings.namespace or "(default)"
            return f"index {index!r} over {settings.pinecone_transport}, namespace {namespace}"
        case "simple":
            return f"the stores below {settings.simple_store_root}"
        case "chroma":
            host = settings.chroma_host
            where = f"{show_url(host)}:{settings.chroma_port}" if host else settings.chroma_path
            return f"collection {settings.chroma_collection!r} of Chroma at {where}"
        case "rows":
            embedder = settings.require("embedder")
            return f"its own {', '.join(text_columns_of(table))}, embedded by {embedder}"
        case "column" if table.old is not None:
            return f"column {table.old.column} of {table.old.table or 'the table itself'}"
        case "column":
            return "a column that amprenta.toml does not name"


def backup_command(settings: Settings, kind: SourceKind, day: str) -> list[str] | None:
    """Return the command that copies the source; None if that is its server's own affair, or it is in the database."""
    match kind:
        case "pinecone":
            index = settings.require("pinecone_index_name")
            call = f'Pinecone().backups.create(index_name={json.dumps(index, ensure_ascii=False)}, name="before-{day}")'
            return ["python", "-c", f"from pinecone import Pinecone; {call}"]
        case "simple":
            folder = settings.simple_store_root
        case "chroma" if settings.chroma_host is None:
            folder = settings.chroma_path
        case _:
            return None
    return ["cp", "-a", str(folder), f"{folder}_{day}"]
