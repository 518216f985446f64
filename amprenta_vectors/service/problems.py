"""Errors as problem details (RFC 9457), which quote no secret, no query and no stack trace."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import PurePath
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from amprenta_vectors.errors import (
    AmprentaError,
    DimensionMismatch,
    NotUpgraded,
    RateLimited,
    TransientError,
    UnknownModel,
)
from amprenta_vectors.pg.errors import for_a_log, is_connection_lost, sqlstate, to_error

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
"""The Retry-After of a transient error that says none itself."""


class FieldError(BaseModel):
    """One value of a request that was not accepted."""

    pointer: str = Field(description="JSON pointer into the body, or the name of the parameter")
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457), with media type `application/problem+json`."""

    type: str = Field("about:blank", description="always `about:blank`: the status says what kind of problem it is")
    title: str = Field(description="the phrase of the status")
    status: int
    detail: str
    errors: list[FieldError] | None = Field(None, description="with 422, the values that were not accepted")


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: Sequence[FieldError] = ()
) -> Response:
    """Return problem details as a response."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=list(errors) or None)
    return Response(body.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def of_error(error: Exception) -> Response:
    """Return the response to an exception of the models system, of its database, or of a fault in this package."""
    if isinstance(error, DBAPIError):
        error = to_error(error, "the database refused a statement")
    match error:
        case UnknownModel():
            return problem(422, "no model of that name is registered; GET /api/v1/models/search lists those that are")
        case TransientError():
            seconds = math.ceil(error.retry_after or 0) if isinstance(error, RateLimited) else 0
            headers = {"Retry-After": str(seconds or RETRY_SECONDS)}
            return problem(503, "the database or an embedding service does not answer now", headers=headers)
        case DimensionMismatch():
            return problem(500, "the model gives embeddings of another dimension than it is registered with")
        case NotUpgraded():
            return problem(500, "the database lacks what this version of the service needs")
        case AmprentaError():
            return problem(500, "the service is not set up for this request; its log says what is missing")
        case _:
            return problem(500, "the request failed by a fault of the service")


def to_log(error: Exception) -> str:
    """Return an error for the log: its message if that quotes no query, else only its type and where it was raised."""
    if isinstance(error, AmprentaError) or sqlstate(error) or is_connection_lost(error):
        return for_a_log(error)
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.name} ({PurePath(frame.filename).name}:{frame.lineno})" for frame in reversed(frames))
    return f"{type(error).__name__} in {places}"


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what a route or FastAPI refused: 404, 405, a body that cannot be parsed."""
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type, it is registered for nothing else
    return problem(error.status_code, error.detail, headers=error.headers)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer a request that failed validation, without repeating its values."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - for the type, it is registered for nothing else
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return problem(400, "the body is not JSON")
    if isinstance(error.body, bytes):
        # FastAPI leaves a body unparsed only if its Content-Type is not JSON.
        return problem(415, "expected a JSON body, with Content-Type: application/json")
    errors = [FieldError(pointer=_pointer(item["loc"]), detail=item["msg"]) for item in found]
    return problem(422, "values of the request were not accepted", errors=errors)


def _pointer(location: Sequence[Any]) -> str:
    source, *path = location
    if source != "body":
        return ".".join(str(part) for part in path)
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
