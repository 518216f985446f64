"""Where a person's rows may be that no statement here reaches: sources, backups, reports, and what PostgreSQL keeps."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from amprenta_vectors.backends.simple.backup import backup_roots
from amprenta_vectors.config import Settings


def places(
    settings: Settings, values: Sequence[str], owner: str | None, sources: Sequence[str], touched: Sequence[str]
) -> list[str]:
    """Return a line for each place; ``touched`` are the tables, as typed, that rows were taken out of."""
    return [
        *(f"the source: {source}" for source in sources),
        *_other_stores(settings),
        *_folders(settings.simple_store_root, owner),
        *_reports(settings.report, values),
        *(
            [f"old versions of the rows, until they are vacuumed: VACUUM (ANALYZE) {', '.join(touched)}"]
            if touched
            else []
        ),
        "copies of this database: dumps, base backups, archived WAL, standbys and subscribers",
        "logs, and tables of the application's own",
    ]


def _other_stores(settings: Settings) -> Iterator[str]:
    named = {"VECTOR_BACKEND": settings.vector_backend, "VECTOR_SECONDARY": settings.vector_secondary}
    for variable, name in named.items():
        if name not in (None, "pgvector"):
            yield f"the store that {variable} names: {name}"


def _folders(root: Path, owner: str | None) -> Iterator[str]:
    """Yield the folders of simple stores that are the user's, and the copies of them."""
    if owner is None:
        return
    backups = backup_roots(root) if root.parent.is_dir() else []
    for folder, what in ((root, "the files"), *((each, "a backup") for each in backups)):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        if owner in names:
            yield f"{what}: {folder / owner}"


def _reports(folder: Path, values: Sequence[str]) -> Iterator[str]:
    """Yield the reports that name one of ``values``, in each way in which one may quote it."""
    forms = {form.encode() for value in values for form in (value, html.escape(value), json.dumps(value)[1:-1])}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError:
            yield f"a report that cannot be read: {path}"
            continue
        if any(form in content for form in forms):
            yield f"a report: {path}"
