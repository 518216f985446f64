"""The folder of a simple vector store, read and rewritten under a lock: both files or neither."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from amprenta_vectors.backends.simple.contents import Contents, read_contents
from amprenta_vectors.backends.simple.edit import Entry, ShapeUnchangeable
from amprenta_vectors.backends.simple.folder import COMMITTED, FILES, NEXT, locked, naming_os_errors
from amprenta_vectors.backends.simple.reading import LegacyRecord, LegacyStore, read_held_store
from amprenta_vectors.errors import ConfigError


class SimpleFiles:
    """The two files in ``folder``, which need not exist yet; ``key`` decrypts and encrypts metadata.

    Users of this class wait for each other, threads and processes alike. The old application's own class knows no lock:
    it must not write meanwhile.
    """

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder = folder
        self._key = key

    def signature(self) -> tuple[Any, ...]:
        """Return a value that differs after every change of the files."""
        return tuple(_stat_of(self.folder / name) for name in (*FILES, COMMITTED))

    def read(self) -> LegacyStore:
        """Read the files; the store is empty if neither exists. Raises as `read_store` does."""
        if not self.folder.is_dir():
            return self._read()
        with locked(self.folder, alone=False):
            if not (self.folder / COMMITTED).exists():
                return self._read()
        with locked(self.folder, alone=True):
            self._finish()
            return self._read()

    def change(self, gone: Collection[str], added: Sequence[Entry]) -> None:
        """Remove the documents of the ids ``gone``, then add ``added``.

        Both files are written in the shape that they have, then read again and compared, before they replace the old
        ones. Raises `ConfigError` if the shape does not allow it, `SourceError` if the folder does not; then nothing
        has changed.
        """
        with naming_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, alone=True):
            self._finish()
            before = self._read()
            try:
                self._prepare(read_contents(self.folder, self._key), gone, added)
                self._check_prepared(before, gone, added)
                os.rename(self.folder / NEXT, self.folder / COMMITTED)
            except ShapeUnchangeable as error:
                raise ConfigError(
                    f"{self.folder} cannot be written to: {error} ({before.shape})",
                    hint="it can be read and migrated: scripts/migrate_simple_store.py, then VECTOR_BACKEND=pgvector",
                ) from None
            finally:
                shutil.rmtree(self.folder / NEXT, ignore_errors=True)
            _sync(self.folder)
            self._finish()

    def _read(self) -> LegacyStore:
        if not any((self.folder / name).exists() for name in FILES):
            return LegacyStore(self.folder, {}, {}, "no files")
        return read_held_store(self.folder, self._key)

    def _prepare(self, contents: Contents, gone: Collection[str], added: Sequence[Entry]) -> None:
        changed = contents.changed(gone, added)
        following = self.folder / NEXT
        shutil.rmtree(following, ignore_errors=True)
        following.mkdir()
        for name, content in zip(FILES, changed, strict=True):
            with (following / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if (self.folder / name).exists():
                shutil.copymode(self.folder / name, following / name)
        _sync(following)

    def _check_prepared(self, before: LegacyStore, gone: Collection[str], added: Sequence[Entry]) -> None:
        """Raise `ShapeUnchangeable` if the files written do not hold what was meant."""
        after = read_held_store(self.folder / NEXT, self._key)
        expected = {name: record for name, record in before.records.items() if name not in gone} | dict(added)
        alike = after.records.keys() == expected.keys() and all(
            _is_same(after.records[name], record) for name, record in expected.items()
        )
        if not alike or set(after.unpaired) != set(before.unpaired) - set(gone):
            raise ShapeUnchangeable("what would be written is read as something else")

    def _finish(self) -> None:
        """Move committed files into the place of the old ones."""
        committed = self.folder / COMMITTED
        if not committed.exists():
            return
        with naming_os_errors(self.folder):
            for name in FILES:
                if (committed / name).exists():
                    os.replace(committed / name, self.folder / name)
            _sync(self.folder)
            committed.rmdir()


def _is_same(one: LegacyRecord, other: LegacyRecord) -> bool:
    return (one.vector.tobytes(), one.text, one.metadata) == (other.vector.tobytes(), other.text, other.metadata)


def _stat_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sync(folder: Path) -> None:
    """Make renames in ``folder`` outlast a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
