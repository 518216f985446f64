"""Every request as a line of the log, and every exception as an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amprenta_vectors.service.limits import Middleware
from amprenta_vectors.service.problems import of_error, to_log

log = logging.getLogger(__name__)

HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Observed(Middleware):
    """Log method, route, status and time of each request, and answer exceptions.

    The route is logged in place of the path, which may have ids. ``quiet`` paths, which probes request again and again,
    are logged at DEBUG only.
    """

    def __init__(self, app: ASGIApp, quiet: Collection[str]) -> None:
        super().__init__(app)
        self._quiet = quiet

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        began = time.perf_counter()
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            if status == 0:
                await of_error(error)(scope, receive, note)
            # The message of a caller's error may quote the request, and so may the traceback of a fault of ours.
            if status >= 500:
                log.log(logging.ERROR, "%s: %s", _route(scope), to_log(error))
        level = logging.DEBUG if scope["path"] in self._quiet else logging.INFO
        milliseconds = (time.perf_counter() - began) * 1000
        log.log(level, "%s %s in %.0f ms", _route(scope), status or "not answered", milliseconds)


def _route(scope: Scope) -> str:
    # Where no route was found, path and method are whatever the client sent.
    route = scope.get("route")
    return f"{scope['method']} {route.path}" if route is not None else "a request without a route"
