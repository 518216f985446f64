"""A private copy of Chroma's folder: its client writes when it opens one, and a source is only read."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, SourceError

COPIED_PER_SECOND = 200 * 1024 * 1024
"""Bytes a second that a copy is expected to take, for the notice before it."""
MOST_COPIES = 3
COPY = "chroma"
"""The folder's name within the copy, into which nobody else may look."""

State = dict[str, tuple[int, int]]
"""The size of each file, and when it was written."""


def copy_folder(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Copy a folder that nobody writes to meanwhile to where temporary files are; only the own user may read the copy.

    Raises `ConfigError` if there is no room, `SourceError` if the folder cannot be read or is written to all the time.
    """
    size, free = size_of(folder), shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise ConfigError(
            f"{folder} is {size:,} bytes, and {tempfile.gettempdir()}, where a copy of it is read, has {free:,} free",
            hint="export TMPDIR=FOLDER with more room, or CHROMA_HOST=HOST of a server on the folder (chroma run)",
        )
    copy = tempfile.TemporaryDirectory(prefix="amprenta-chroma-")
    with ExitStack() as undo:
        undo.callback(copy.cleanup)
        for _ in range(MOST_COPIES):
            if _copied(folder, Path(copy.name, COPY)):
                undo.pop_all()
                return copy
    raise SourceError(
        f"{folder} is being written to: {MOST_COPIES} copies of it were out of date at once",
        hint="stop the application for the copy, or run a server on the folder (chroma run) and set CHROMA_HOST",
    )


def _copied(folder: Path, copy: Path) -> bool:
    """Return whether the folder was copied as it was from begin to end; nothing of the copy is there otherwise."""
    before = _state(folder)
    failed: OSError | None = None
    try:
        shutil.copytree(folder, copy, ignore_dangling_symlinks=True)
    except OSError as error:
        failed = error
    if _state(folder) != before:
        # What failed may be that a file was gone.
        shutil.rmtree(copy, ignore_errors=True)
        return False
    if failed:
        raise SourceError(f"{folder} cannot be copied: {failed}", hint="let this user read it")
    return True


def size_of(folder: Path) -> int:
    """Return how many bytes the files of a folder have."""
    return sum(size for size, _ in _state(folder).values())


def notice_of_copy(settings: Settings) -> str | None:
    """Return what is copied before it is read, with its size and time; None for a server or a folder without Chroma."""
    folder = settings.chroma_path.resolve()
    if settings.chroma_host or not folder.is_dir():
        return None
    size = size_of(folder)
    return (
        f"{folder} is read from a copy in {tempfile.gettempdir()}, since Chroma writes to a folder that it opens: "
        f"{size / 1024 / 1024:,.1f} MB, about {-(-size // COPIED_PER_SECOND):,} s"
    )


def _state(folder: Path) -> State:
    found: State = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            # A link to nothing, a file that is gone by now, or one that copying will fail at.
            with suppress(OSError):
                about = os.stat(path)
                found[path] = about.st_size, about.st_mtime_ns
    return found
