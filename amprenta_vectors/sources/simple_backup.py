"""Dated copies of a simple store's files, beside the folder that they are in; the files themselves are only read."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sources.simple_store import METADATA_FILE, VECTORS_FILE

FILES = (VECTORS_FILE, METADATA_FILE)

_STAMP = "%Y%m%d_%H%M%S"
"""In UTC."""


def back_up(root: Path, folder: Path, now: datetime) -> tuple[Path, bool]:
    """Copy the files of ``folder``, which is below ``root``; returns where they are, and whether they were copied now.

    Files whose last copy is the same to the byte are not copied again. Raises `ConfigError` where there is no room or
    no permission.
    """
    for _, copy in _copies(root, folder):
        if _same(folder, copy):
            return copy, False
    copy = _backup_root(root, f"{now.astimezone(UTC):{_STAMP}}") / folder.relative_to(root)
    try:
        copy.mkdir(parents=True, exist_ok=True)
        for name in filter(lambda name: (folder / name).exists(), FILES):
            unfinished = copy / f"{name}.partial"
            shutil.copy2(folder / name, unfinished)
            unfinished.replace(copy / name)
    except OSError as error:
        raise ConfigError(
            f"the files of {folder} cannot be copied to {copy}: {error.strerror}",
            hint="let this user write beside the root, and see that there is room for a copy of it",
        ) from None
    return copy, True


def backup_of(root: Path, folder: Path, before: datetime) -> Path | None:
    """A copy made before ``before`` that is what ``folder`` holds now, to the byte."""
    for made, copy in _copies(root, folder):
        if made <= before and _same(folder, copy):
            return copy
    return None


def _backup_root(root: Path, stamp: str) -> Path:
    whole = root.resolve()
    return whole.parent / f"{whole.name}_backup_{stamp}"


def _copies(root: Path, folder: Path) -> Iterator[tuple[datetime, Path]]:
    """When each copy of ``folder`` was begun, and where it is, the newest first."""
    pattern = _backup_root(root, "*")
    for found in sorted(pattern.parent.glob(pattern.name), reverse=True):
        try:
            made = datetime.strptime(found.name.removeprefix(pattern.name[:-1]), _STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        if (found / folder.relative_to(root)).is_dir():
            yield made, found / folder.relative_to(root)


def _same(folder: Path, copy: Path) -> bool:
    there = [(folder / name).exists() for name in FILES]
    return there == [(copy / name).exists() for name in FILES] and all(
        filecmp.cmp(folder / name, copy / name, shallow=False) for name in FILES if (folder / name).exists()
    )
