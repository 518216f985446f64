"""The server: where it listens, until when, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import uvicorn

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.service.api import ModelsService
from amprenta_vectors.service.app import create_app
from amprenta_vectors.service.limits import BODY_SECONDS, LINGER_SECONDS
from amprenta_vectors.service.tokens import WHAT_TO_SET, TokenVerifier, open_verifier

BACKLOG = 128

OpenService = Callable[[Settings], Awaitable[ModelsService]]
StoppedBy = Callable[[], AbstractContextManager[threading.Event]]
"""Makes the event that ends the server; called once the service is open."""


def run_server(
    settings: Settings,
    host: str,
    port: int,
    open_service: OpenService,
    stopped_by: StoppedBy,
    started: Callable[[str], None],
) -> None:
    """Serve until the event of ``stopped_by`` is set and the requests in hand have ended.

    ``started`` is given the address. Port 0 is one that the system chooses. Raises `ConfigError` for settings of tokens
    that are incomplete, an address that cannot be listened at, and one beyond this machine if no token is asked for.
    """
    verifier = open_verifier(settings)
    with _bind(host, port) as listener:
        if verifier is None and not _is_local(listener):
            raise ConfigError(
                f"{host} is reached from beyond this machine, and no setting of tokens is set", WHAT_TO_SET
            )
        asyncio.run(_serve(settings, verifier, listener, open_service, stopped_by, started))


async def _serve(
    settings: Settings,
    verifier: TokenVerifier | None,
    listener: socket.socket,
    open_service: OpenService,
    stopped_by: StoppedBy,
    started: Callable[[str], None],
) -> None:
    service = await open_service(settings)
    try:
        with stopped_by() as stop:
            server = _Server(_configuration(create_app(service, verifier, settings.request_seconds), settings), stop)
            listener.listen(BACKLOG)
            started(_address(listener))
            await server.serve(sockets=[listener])
    finally:
        await service.close()


def _configuration(app: Callable[..., object], settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        # The package logs requests itself, without paths and addresses.
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        server_header=False,
        # Nothing here depends on the address of a client.
        proxy_headers=False,
        # No request takes longer.
        timeout_graceful_shutdown=math.ceil(BODY_SECONDS + settings.request_seconds + LINGER_SECONDS),
    )


class _Server(uvicorn.Server):
    """A server that an event ends, and that leaves signals to the command."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; it is asked ten times a second."""
        return await super().on_tick(counter) or self._stop.is_set()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror}", hint="another --port, or another --host"
        ) from None
    return listener


def _is_local(listener: socket.socket) -> bool:
    """Return whether the address that was bound is loopback, whatever name it was given by."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
