"""An HTTP request as the API sees it: its route, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson

from amprenta_vectors.sandbox.pinecone.refusals import Refused

_ROUTES = {
    ("GET", "/indexes"): "describe",
    ("GET", "/namespaces"): "namespaces",
    ("GET", "/vectors/list"): "list",
    ("GET", "/vectors/fetch"): "fetch",
    ("POST", "/vectors/fetch_by_metadata"): "fetch_by_metadata",
    ("POST", "/vectors/upsert"): "upsert",
    ("POST", "/vectors/update"): "update",
    ("POST", "/vectors/delete"): "delete",
    ("POST", "/query"): "query",
    ("POST", "/describe_index_stats"): "stats",
}
_NAMED_ROUTES = {("GET", "/indexes"): "describe", ("GET", "/namespaces"): "namespaces"}
_DOCUMENT_ROUTES = {"list": "list", "fetch": "fetch", "upsert": "upsert", "search": "query"}


@dataclass(frozen=True)
class Request:
    """An HTTP request; ``query`` has the last value of each parameter, but all of ``ids``."""

    route: str
    name: str
    """The name in the path, of an index or a namespace, where the route has one, else empty."""
    documents: bool
    """Whether the route is one of those that a document index has."""
    query: Mapping[str, list[str]]
    body: bytes

    def parameter(self, name: str) -> str | None:
        """Return a query parameter; None if it is not given."""
        values = self.query.get(name)
        return values[-1] if values else None

    def limit(self) -> int | None:
        """Return the parameter ``limit``; None if it is not given. Raises `Refused` if it is no number."""
        text = self.parameter("limit")
        if text is None:
            return None
        try:
            return int(text)
        except ValueError as error:
            raise Refused(400, f"limit must be a number, got '{text}'") from error

    def json(self) -> dict[str, Any]:
        """Return the body, empty if there is none. Raises `Refused` if it is not a JSON object."""
        try:
            value = orjson.loads(self.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"The request body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Refused(400, "The request body must be a JSON object")
        return value


def find_route(method: str, path: str) -> tuple[str, str, bool] | None:
    """Return the route's name, any name in its path, and whether it is for documents; None if there is no route."""
    if (method, path) in _ROUTES:
        return _ROUTES[method, path], "", False
    parent, _, name = path.rpartition("/")
    route = _NAMED_ROUTES.get((method, parent))
    if route is not None and name:
        return route, unquote(name), False
    match parent.split("/"):
        case ["", "namespaces", namespace, "documents"] if method == "POST" and namespace and name in _DOCUMENT_ROUTES:
            return _DOCUMENT_ROUTES[name], unquote(namespace), True
    return None


def text_of(body: Mapping[str, Any], name: str) -> str:
    """Return a text in a JSON body; empty if it is not given."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(400, f"{name} must be a string")
    return value


def integer_of(body: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number in a JSON body; None if it is not given."""
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise Refused(400, f"{name} must be a whole number")
    return value


def object_of(body: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return an object in a JSON body; None if it is not given."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(400, f"{name} must be an object")
    return value
