"""Opens the source that the settings name; each kind is loaded only when it is wanted."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import Origin
from amprenta_vectors.config import Settings
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable


def kind_of(settings: Settings, table: VectorTable) -> SourceKind:
    """Return the kind of source that ``AMPRENTA_SOURCE`` names, else the one that usually fills ``table``."""
    return settings.source or table.source


def notice_before_opening(settings: Settings, table: VectorTable) -> str | None:
    """Return what a person should know before the origin is opened, which may take a while; None if it does not."""
    if kind_of(settings, table) != "chroma":
        return None
    from amprenta_vectors.backends.chroma.copies import notice_of_copy

    return notice_of_copy(settings)


def notices_of(origin: Origin) -> list[str]:
    """Return what a person should know of an origin that was opened: what it has and a move will not carry over."""
    if origin.kind != "column":
        return []
    from amprenta_vectors.backends.column.source import ColumnOrigin

    return origin.notices() if isinstance(origin, ColumnOrigin) else []


def open_origin(settings: Settings, table: VectorTable, engine: Engine | None) -> Origin:
    """Open the origin of the kind that `kind_of` gives.

    For rows and columns, ``table`` is from the catalogue and read through ``engine``. Raises `ConfigError` for a
    setting that the kind needs and lacks, `SourceNotFound`, `CredentialsRefused`, `MissingExtra`, `TransientError`.
    """
    match kind_of(settings, table):
        case "pinecone":
            from amprenta_vectors.backends.pinecone.origin import open_pinecone_origin

            return open_pinecone_origin(settings)
        case "simple":
            from amprenta_vectors.backends.simple.source import open_simple_origin

            return open_simple_origin(settings)
        case "chroma":
            from amprenta_vectors.backends.chroma.source import open_chroma_origin

            return open_chroma_origin(settings)
        case "rows":
            if engine is None:
                raise ValueError("rows are read through an engine")
            from amprenta_vectors.backends.rows.source import open_rows_origin

            return open_rows_origin(settings, table, engine)
        case "column":
            if engine is None:
                raise ValueError("a column is read through an engine")
            from amprenta_vectors.backends.column.source import open_column_origin

            return open_column_origin(settings, table, engine)
