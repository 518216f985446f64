"""Which requests are let in: those with a valid token or, where none is configured, those from this machine."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from amprenta_vectors.service.limits import Middleware, refuse
from amprenta_vectors.service.problems import problem
from amprenta_vectors.service.tokens import TokenVerifier

LOCAL_HOSTS = ("127.0.0.1", "[::1]", "localhost")


class Authentication(Middleware):
    """Answer 401 to a request without a valid token, before its body is read; ``free`` paths need no token."""

    def __init__(self, app: ASGIApp, verifier: TokenVerifier, free: Collection[str]) -> None:
        super().__init__(app)
        self._verifier = verifier
        self._free = free

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        given = _all(scope, b"authorization")
        if scope["path"] in self._free or (len(given) == 1 and self._accepts(given[0])):
            await self.app(scope, receive, send)
            return
        # RFC 6750, 3.1: no code where no token was sent.
        challenge = 'Bearer error="invalid_token"' if given else "Bearer"
        refused = problem(401, "a valid bearer token is required", headers={"WWW-Authenticate": challenge})
        await refuse(refused, scope, receive, send)

    def _accepts(self, credentials: str) -> bool:
        scheme, _, token = credentials.partition(" ")
        return scheme.lower() == "bearer" and self._verifier.accepts(token.strip())


class LocalHostOnly(Middleware):
    """Answer 421 to a request whose Host is not a name of loopback.

    Without tokens a web page in a local browser could otherwise query the service, through a DNS name of its own that
    resolves to loopback (DNS rebinding).
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        given = _all(scope, b"host")
        host = given[0].lower() if len(given) == 1 else ""
        name, _, port = host.rpartition(":")
        if (name if port.isdecimal() else host) in LOCAL_HOSTS:
            await self.app(scope, receive, send)
        else:
            await refuse(problem(421, "without tokens the service answers for localhost only"), scope, receive, send)


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
