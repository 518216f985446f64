"""The models system that the service answers by."""

from __future__ import annotations

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.service.api import ModelsService


async def open_service(settings: Settings) -> ModelsService:
    """Return the models system by the settings. Raises `ConfigError` for settings that it cannot be opened by."""
    raise ConfigError("this version has no models system to serve")
