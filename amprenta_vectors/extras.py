"""Packages that only some users need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from amprenta_vectors.errors import MissingExtra


def require_extra(module: str, extra: str) -> ModuleType:
    """The imported ``module``. Raises `MissingExtra` naming what to install where it is absent."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the package {error.name!r} is not installed", hint=f"pip install 'amprenta_vectors[{extra}]'"
        ) from error
