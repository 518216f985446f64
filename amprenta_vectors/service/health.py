"""Liveness and readiness, for orchestrators and load balancers."""

from __future__ import annotations

import asyncio
import logging
import time

from fastapi import APIRouter, HTTPException, Request

from amprenta_vectors.service.api import ModelsService
from amprenta_vectors.service.bodies import Health
from amprenta_vectors.service.problems import MEDIA_TYPE, Problem, to_log

log = logging.getLogger(__name__)

PING_SECONDS = 5.0
"""How long the database may take to answer."""
KEPT_SECONDS = 1.0
"""How long an answer is reused: anybody may request it, and not every request shall reach the database."""

LIVE, READY = "/health", "/health/ready"

router = APIRouter(tags=["health"])


class Readiness:
    """Whether the database answers; one request at a time asks it."""

    def __init__(self, service: ModelsService) -> None:
        self._service = service
        self._asking = asyncio.Lock()
        self._ready = False
        self._until = 0.0

    async def is_ready(self) -> bool:
        """Return whether the database answered within `PING_SECONDS`, just now or a moment ago."""
        async with self._asking:
            if time.monotonic() >= self._until:
                self._ready = await self._ask()
                self._until = time.monotonic() + KEPT_SECONDS
            return self._ready

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._service.ping()
        except Exception as error:
            log.warning("not ready: %s", to_log(error))
            return False
        return True


@router.get(LIVE, summary="Live")
async def live() -> Health:
    """Say that the process answers. Needs no token."""
    return Health()


@router.get(
    READY,
    summary="Ready",
    responses={
        503: {
            "description": "the database does not answer",
            "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
        }
    },
)
async def ready(request: Request) -> Health:
    """Say whether the database answers too; what was found stands for a second. Needs no token."""
    readiness: Readiness = request.app.state.readiness
    if not await readiness.is_ready():
        raise HTTPException(503, "the database does not answer", {"Retry-After": "2"})
    return Health()
