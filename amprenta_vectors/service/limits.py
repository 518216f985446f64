"""Limits on one request and on all together: size of the body, time to arrive and to be answered, requests in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amprenta_vectors.service.problems import problem

MAX_BODY_BYTES = 256 * 1024
"""More than the longest query has with every character escaped."""
BODY_SECONDS = 10.0
"""How long a body may take to arrive."""
MAX_IN_HAND = 64
"""Requests that are handled at once; they share a few database connections, and more would only wait longer."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and discarded, so that the client can read the answer."""


class Middleware:
    """A layer around the application, for requests only."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and pass on what is none."""
        if scope["type"] == "http":
            await self.handle(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        raise NotImplementedError


class BodyLimit(Middleware):
    """Read the whole body before the request is handled: 413 if it is too large, 408 if it does not arrive in time."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if _declared_length(scope) > MAX_BODY_BYTES:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY_BYTES or not message.get("more_body", False):
                        break
        except TimeoutError:
            await refuse(problem(408, f"the body did not arrive within {BODY_SECONDS:g} s"), scope, receive, send)
            return
        if len(body) > MAX_BODY_BYTES:
            await self._too_large(scope, receive, send)
            return
        await self.app(scope, _replay(bytes(body), receive), send)

    async def _too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is larger than {MAX_BODY_BYTES:,} bytes"
        await refuse(problem(413, detail), scope, receive, send)


class InHandLimit(Middleware):
    """Answer 503 while `MAX_IN_HAND` other requests are handled; ``free`` paths are always let in."""

    def __init__(self, app: ASGIApp, free: Collection[str]) -> None:
        super().__init__(app)
        self._free = free
        self._in_hand = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["path"] in self._free:
            await self.app(scope, receive, send)
            return
        if self._in_hand >= MAX_IN_HAND:
            busy = problem(503, f"{MAX_IN_HAND} requests are being handled already", headers={"Retry-After": "1"})
            await busy(scope, receive, send)
            return
        self._in_hand += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._in_hand -= 1


class TimeLimit(Middleware):
    """Cancel a request that takes longer than ``seconds``, and answer 504."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        super().__init__(app)
        self._seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self.app(scope, receive, note)
        except TimeoutError:
            if not limit.expired():
                raise
            if not started:
                late = problem(504, f"the request was not done within {self._seconds:g} s")
                await late(scope, receive, send)


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body was read whole, and close the connection.

    Closing while the client still sends resets the connection, and the client may lose the answer. So the answer is
    sent whole, and the body is discarded for `LINGER_SECONDS` before the close (nginx: lingering_close).
    """
    if not _has_body(scope):
        await response(scope, receive, send)
        return
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _declared_length(scope: Scope) -> int:
    # The server has checked that it is a number; a chunked body has none.
    return int(_headers(scope).get(b"content-length", b"0"))


def _has_body(scope: Scope) -> bool:
    return b"transfer-encoding" in _headers(scope) or _declared_length(scope) > 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that gives the body that was read, then what the server sends."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
