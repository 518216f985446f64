"""The application: routes, what stands around each of them, and its description by OpenAPI."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from amprenta_vectors.service import health, routes
from amprenta_vectors.service.api import ModelsService
from amprenta_vectors.service.bearer import Authentication, LocalHostOnly
from amprenta_vectors.service.limits import BodyLimit, InHandLimit, TimeLimit
from amprenta_vectors.service.observed import Observed
from amprenta_vectors.service.problems import Problem, on_http_error, on_invalid
from amprenta_vectors.service.reference import to_page
from amprenta_vectors.service.tokens import TokenVerifier

OPENAPI, PAGE = "/openapi.json", "/docs"
FREE = frozenset({health.LIVE, health.READY, OPENAPI, PAGE})
"""What needs no token: it tells nothing of what is stored."""


def create_app(service: ModelsService, verifier: TokenVerifier | None, request_seconds: float) -> FastAPI:
    """Return the application over a service that the caller closes; without ``verifier`` for this machine only."""
    app = FastAPI(
        title="amprenta_vectors",
        version=version("amprenta_vectors"),
        description="Search by any registered embedding model, and embed documents by it.",
        openapi_url=OPENAPI,
        # Its own pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: on_http_error, RequestValidationError: on_invalid},
        # The first is the outermost.
        middleware=[
            Middleware(Observed, quiet=FREE),
            Middleware(LocalHostOnly) if verifier is None else Middleware(Authentication, verifier=verifier, free=FREE),
            Middleware(BodyLimit),
            Middleware(InHandLimit, free=FREE),
            Middleware(TimeLimit, seconds=request_seconds),
        ],
    )
    app.state.service = service
    app.state.readiness = health.Readiness(service)
    app.include_router(routes.router)
    app.include_router(health.router)
    app.openapi = partial(_describe, app)  # type: ignore[method-assign]

    @app.get(PAGE, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(to_page(app.openapi()))

    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with problem details where FastAPI describes errors of its own form."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document["components"]["schemas"]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs"))
        schemas[Problem.__name__] = problem
        app.openapi_schema = document
    return app.openapi_schema
