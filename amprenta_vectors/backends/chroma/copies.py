"""A private copy of Chroma's folder: its client writes when it opens one, and a source is only read."""

from __future__ import annotations

import os
import shutil
import tempfile
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
    try:
        for _ in range(MOST_COPIES):
            before = _state(folder)
            shutil.copytree(folder, os.path.join(copy.name, COPY))
            if _state(folder) == before:
                return copy
            shutil.rmtree(os.path.join(copy.name, COPY))
    except (OSError, shutil.Error) as error:
        copy.cleanup()
        raise SourceError(f"{folder} cannot be copied: {error}", hint="let this user read it") from None
    copy.cleanup()
    raise SourceError(
        f"{folder} is being written to: {MOST_COPIES} copies of it were out of date at once",
        hint="stop the application for the copy, or run a server on the folder (chroma run) and set CHROMA_HOST",
    )


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
            about = os.stat(path)
            found[path] = about.st_size, about.st_mtime_ns
    return found
