"""The stores below a root, ``USER/vector_store_COLLECTION/``: which there are, and which may not be touched."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from amprenta_vectors.backends.simple.folder import FILES, path_of
from amprenta_vectors.errors import SourceError

PREFIX = "vector_store_"
UNLISTED = "*"
"""The name used for all collections of a user whose folder cannot be listed."""


@dataclass(frozen=True)
class FoundStore:
    """A store's folder as it is named; ``refusal`` says why it may not be read, removed or copied."""

    path: Path
    refusal: SourceError | None = None


def find_stores(root: Path) -> dict[str, FoundStore]:
    """Return every store by ``USER/COLLECTION``, in order; one for all of a user whose folder cannot be listed.

    A name that is not UTF-8 is shown escaped. Raises `SourceError` if the root cannot be listed.
    """
    users = [Path(entry.path) for entry in listed(root) if _is_folder(Path(entry.path))]
    paths = [path for user in users for path in _stores_of(user)]
    real_users = {user.name: os.path.realpath(user) for user in users}
    real = {path: os.path.realpath(path) for path in paths}
    names = Counter(real.values())
    found: dict[str, FoundStore] = {}
    for path in paths:
        refusal = _refusal(path, real[path], real_users)
        if refusal is None and names[real[path]] > 1:
            others = ", ".join(shown(other) for other in paths if real[other] == real[path] and other != path)
            refusal = SourceError(
                f"{shown(path)} and {others} are one folder",
                hint="leave one of the names, that of its owner, and remove the symbolic links",
            )
        found[shown(f"{path.parent.name}/{path.name.removeprefix(PREFIX)}")] = FoundStore(path, refusal)
    return found


def _refusal(path: Path, real: str, real_users: dict[str, str]) -> SourceError | None:
    user = path.parent.name
    if path.name == f"{PREFIX}{UNLISTED}":
        try:
            listed(path.parent)
        except SourceError as error:
            return error
    if not _is_utf8(user) or not _is_utf8(path.name):
        return SourceError(f"the name of {shown(path)} is not UTF-8", hint="rename the folder")
    own = real_users[user]
    others = [name for name, other in real_users.items() if own != other and _is_within(own, other)]
    if others or not _is_within(real, own):
        whose = f"a folder of {shown(others[0])!r}" if others else f"outside of the folder of {user!r}"
        return SourceError(
            f"{shown(path)} is a symbolic link to {shown(real)}, {whose}",
            hint="remove the link; a copy of the folder in its place is the user's own",
        )
    return None


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _stores_of(user: Path) -> list[Path]:
    try:
        names = [entry.name for entry in listed(user)]
    except SourceError:
        return [user / f"{PREFIX}{UNLISTED}"]
    folders = [user / name for name in names if name.startswith(PREFIX) and name != PREFIX]
    return [folder for folder in folders if _has_files(folder)]


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, in order. Raises `SourceError`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        message = f"{shown(folder)} cannot be listed: {error.strerror}"
        raise SourceError(message, hint="let this user read it") from None


def shown(text: object) -> str:
    """Return a name of the file system as text, what is not UTF-8 in it escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _is_utf8(name: str) -> bool:
    return shown(name) == name


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # It exists and cannot be looked into: listing it says why.
        return True


def _has_files(folder: Path) -> bool:
    """Return whether a store has files: the old application makes the folder before it has any to put there."""
    try:
        return folder.is_dir() and any(os.path.lexists(path_of(folder, name)) for name in FILES)
    except OSError:
        # The folder exists and cannot be looked into: reading it says why.
        return True
