"""The folder of a simple vector store: its lock, and where each of its files is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amprenta_vectors.errors import SourceError, SourceNotFound

VECTORS_FILE = "vectors.pkl"
METADATA_FILE = "metadata.json"
FILES = (VECTORS_FILE, METADATA_FILE)

NEXT, COMMITTED = ".next", ".committed"
"""Folders within the store's own: files being written, and files that are to replace the old ones.

Renaming the first to the second is what makes a change: before it nothing has happened, and after it the next writer
finishes the work of a process that died.
"""


@contextmanager
def naming_os_errors(folder: Path) -> Iterator[None]:
    """Raise `SourceError` for an `OSError`; it names the file at fault, or ``folder``."""
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{error.filename or folder} cannot be read or written: {error.strerror}",
            hint="let this user read and write there, and let there be room on its disk",
        ) from error


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold ``folder`` against writers, or ``alone``; a holder cannot take it again.

    Raises `SourceNotFound` if the folder does not exist, and `SourceError` for any `OSError` raised meanwhile.
    """
    # Only POSIX has this module; an application on another backend need not.
    import fcntl

    with naming_os_errors(folder):
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            raise SourceNotFound(f"{folder} is not there", hint="take it from a backup") from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(held)


def read_file(folder: Path, name: str) -> bytes:
    """Return the content of a file of a store. Raises as `check_file` does."""
    check_file(folder, name)
    with path_of(folder, name).open("rb") as file:
        return file.read()


def check_file(folder: Path, name: str) -> None:
    """Look whether a file of a store may be read.

    Raises `SourceError` for what is no regular file (a pipe, a device), which might be read for ever, and for a
    symbolic link to somewhere else.
    """
    path = path_of(folder, name)
    owner, real = os.path.dirname(os.path.realpath(folder)), os.path.realpath(path)
    if not real.startswith(owner.rstrip("/") + "/"):
        raise SourceError(
            f"{path} is a symbolic link to {real}, outside of {owner}",
            hint="remove the link, and put a copy of the file in its place",
        )
    if not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(f"{path} is no regular file", hint="take it from a backup")


def path_of(folder: Path, name: str) -> Path:
    """Return the path of a file's content: if a committed change is not finished, the file that replaces it."""
    committed = folder / COMMITTED / name
    return committed if committed.exists() else folder / name
