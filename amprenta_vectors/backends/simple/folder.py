"""The folder of a simple vector store: who may touch its files meanwhile, and where each of them is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amprenta_vectors.errors import SourceError, SourceNotFound

VECTORS_FILE = "vectors.pkl"
METADATA_FILE = "metadata.json"
FILES = (VECTORS_FILE, METADATA_FILE)

NEXT, COMMITTED = ".next", ".committed"
"""Folders in the store's own: files being written, and files that are to take the places of the old ones.

That the first is renamed to the second is what makes a change: before it nothing has happened, and after it whoever
writes next finishes the work of a process that died.
"""


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold ``folder`` against writers, or ``alone``; who holds it cannot take it again.

    Raises `SourceNotFound` where it is not there, and `SourceError` for whatever `OSError` is raised meanwhile.
    """
    # As only POSIX locks; an application on another backend need not have it.
    import fcntl

    try:
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            raise SourceNotFound(f"{folder} is not there", hint="take it from a backup") from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(held)
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read or written: {error.strerror}",
            hint="let this user read and write there, and let there be room on its disk",
        ) from error


def path_of(folder: Path, name: str) -> Path:
    """Where the content of a file is: of a change that was made and not finished, what is to take its place."""
    committed = folder / COMMITTED / name
    return committed if committed.exists() else folder / name
