"""Dated copies of a simple store's files, beside the folder that they are in; the files themselves are only read."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from amprenta_vectors.backends.simple.folder import FILES, check_file, locked, path_of
from amprenta_vectors.errors import ConfigError

_STAMP = "%Y%m%d_%H%M%S"
"""The format of a backup's time, in UTC."""


def back_up(root: Path, folder: Path, now: datetime) -> tuple[Path, bool]:
    """Copy the files of ``folder``, which is below ``root``; return the copy's folder, and whether it was made now.

    Files that have a copy identical to the byte are not copied again. Only those who may read the files may read a
    copy. Raises `ConfigError` if there is no room or no permission, `SourceError` for a folder that cannot be read.
    """
    with locked(folder, alone=False):
        for name in filter(lambda name: path_of(folder, name).exists(), FILES):
            check_file(folder, name)
        for _, copy in _copies(root, folder):
            if _same(folder, copy):
                return copy, False
        return _copy(root, folder, f"{now.astimezone(UTC):{_STAMP}}"), True


def _copy(root: Path, folder: Path, stamp: str) -> Path:
    backup, within = _backup_root(root, stamp), folder.relative_to(root)
    copy = backup / within
    try:
        backup.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        for level in [*reversed(within.parents), within][1:]:
            (backup / level).mkdir(exist_ok=True)
            (backup / level).chmod(stat.S_IMODE((root / level).stat().st_mode) | stat.S_IRWXU)
        for name in filter(lambda name: path_of(folder, name).exists(), FILES):
            unfinished = copy / f"{name}.partial"
            shutil.copy2(path_of(folder, name), unfinished)
            unfinished.replace(copy / name)
    except OSError as error:
        raise ConfigError(
            f"the files of {folder} cannot be copied to {copy}: {error.strerror}",
            hint="let this user write beside the root, and see that there is room for a copy of it",
        ) from None
    return copy


def backup_of(root: Path, folder: Path, before: datetime) -> Path | None:
    """Return the newest copy made before ``before`` that equals ``folder`` to the byte; None if there is none."""
    for made, copy in _copies(root, folder):
        if made <= before and _same(folder, copy):
            return copy
    return None


def last_backup_of(root: Path, folder: Path) -> Path | None:
    """Return the last copy of ``folder`` that has both files; None if there is none."""
    return next((copy for _, copy in _copies(root, folder) if all((copy / name).exists() for name in FILES)), None)


def backup_roots(root: Path) -> list[Path]:
    """Return the folders that copies of stores below ``root`` were made into, oldest first."""
    pattern = _backup_root(root, "*")
    return sorted(pattern.parent.glob(pattern.name))


def _backup_root(root: Path, stamp: str) -> Path:
    whole = root.resolve()
    return whole.parent / f"{whole.name}_backup_{stamp}"


def _copies(root: Path, folder: Path) -> Iterator[tuple[datetime, Path]]:
    """Yield when each copy of ``folder`` was started, and where it is, newest first."""
    prefix = _backup_root(root, "").name
    for found in reversed(backup_roots(root)):
        try:
            made = datetime.strptime(found.name.removeprefix(prefix), _STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        copy = found / folder.relative_to(root)
        # A copy that this user may not look into is somebody else's.
        if os.path.isdir(copy):
            yield made, copy


def _same(folder: Path, copy: Path) -> bool:
    found = {name: path_of(folder, name) for name in FILES}
    return all(path.exists() == (copy / name).exists() for name, path in found.items()) and all(
        filecmp.cmp(path, copy / name, shallow=False) for name, path in found.items() if path.exists()
    )
