"""Packages that only some users need, imported where they are used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

from amprenta_vectors.errors import MissingExtra


def require_extra(module: str, extra: str) -> ModuleType:
    """Import and return ``module``. Raises `MissingExtra` naming what to install if it is absent."""
    with needing(extra):
        return importlib.import_module(module)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Raise `MissingExtra` if an import inside fails: for a module that is nothing without ``extra``."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the package {error.name!r} is not installed", hint=f"pip install 'amprenta_vectors[{extra}]'"
        ) from error


def network_errors() -> tuple[type[Exception], ...]:
    """Return the errors that clients of services raise if a connection or an answer breaks off.

    All the clients are built upon httpx. ``httpx2`` is the same library under another name, which a client may prefer
    if it is installed.
    """
    installed = [name for name in ("httpx", "httpx2") if find_spec(name)]
    return (ConnectionError, *(importlib.import_module(name).TransportError for name in installed))
