"""Dated copies of a simple store's files, beside the folder that they are in; the files themselves are only read."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from amprenta_vectors.backends.simple.folder import FILES, check_file, locked, path_of
from amprenta_vectors.errors import ConfigError

_STAMP = "%Y%m%d_%H%M%S"
"""The format of the time when a backup was begun, in UTC."""


class Backup:
    """The copies that one command makes of stores below ``root``: all in one folder, made with the first of them."""

    def __init__(self, root: Path, begun: datetime) -> None:
        self._root = root
        self._stamp = f"{begun.astimezone(UTC):{_STAMP}}"
        self._made: Path | None = None

    def add(self, folder: Path) -> tuple[Path, bool]:
        """Copy the files of ``folder``; return the copy's folder, and whether it was made now.

        Files that have a copy identical to the byte are not copied again. Only those who may read the files may read
        a copy. Raises `ConfigError` if there is no room or no permission, `SourceError` for a folder that cannot be
        read.
        """
        with locked(folder, alone=False):
            for name in filter(lambda name: path_of(folder, name).exists(), FILES):
                check_file(folder, name)
            for _, copy in _copies(self._root, folder):
                if _same(folder, copy):
                    return copy, False
            copy = _backup_root(self._root, self._stamp) / folder.relative_to(self._root)
            try:
                self._made = self._made or self._make()
                copy = self._made / folder.relative_to(self._root)
                _copy(self._root, folder, self._made)
            except OSError as error:
                raise ConfigError(
                    f"the files of {folder} cannot be copied to {copy}: {error.strerror}",
                    hint="let this user write beside the root, and see that there is room for a copy of it",
                ) from None
        return copy, True

    def _make(self) -> Path:
        """Make the folder; one that another command began in the same second is that command's."""
        number = 1
        while True:
            backup = _backup_root(self._root, self._stamp if number == 1 else f"{self._stamp}_{number}")
            try:
                backup.mkdir(mode=stat.S_IRWXU)
            except FileExistsError:
                number += 1
            else:
                return backup


def _copy(root: Path, folder: Path, backup: Path) -> None:
    within = folder.relative_to(root)
    copy = backup / within
    for level in [*reversed(within.parents), within][1:]:
        (backup / level).mkdir(exist_ok=True)
        (backup / level).chmod(stat.S_IMODE((root / level).stat().st_mode) | stat.S_IRWXU)
    for name in filter(lambda name: path_of(folder, name).exists(), FILES):
        unfinished = copy / f"{name}.partial"
        shutil.copy2(path_of(folder, name), unfinished)
        unfinished.replace(copy / name)


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
    first = _backup_root(root, "")
    return sorted(path for path in first.parent.iterdir() if path.name.startswith(first.name) and path.is_dir())


def _backup_root(root: Path, stamp: str) -> Path:
    whole = root.resolve()
    return whole.parent / f"{whole.name}_backup_{stamp}"


def _copies(root: Path, folder: Path) -> Iterator[tuple[datetime, Path]]:
    """Yield when each copy of ``folder`` was made, and where it is, the backup begun last first."""
    whole, within = root.resolve(), folder.relative_to(root)
    begun: list[tuple[datetime, int, Path]] = []
    for found in whole.parent.iterdir():
        if named := re.fullmatch(rf"{re.escape(whole.name)}_backup_(\d{{8}}_\d{{6}})(?:_(\d+))?", found.name):
            with suppress(ValueError):
                stamp = datetime.strptime(named[1], _STAMP).replace(tzinfo=UTC)
                begun.append((stamp, int(named[2] or 1), found / within))
    for stamp, _, copy in sorted(begun, reverse=True):
        # A copy that this user may not look into is somebody else's.
        if os.path.isdir(copy):
            # A command may come to a store long after it began: when the last file was renamed into the folder counts.
            yield max(stamp, datetime.fromtimestamp(int(copy.stat().st_mtime), UTC)), copy


def _same(folder: Path, copy: Path) -> bool:
    found = {name: path_of(folder, name) for name in FILES}
    return all(path.exists() == (copy / name).exists() for name, path in found.items()) and all(
        filecmp.cmp(path, copy / name, shallow=False) for name, path in found.items() if path.exists()
    )
