"""`/openapi.json`: the table of routes as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .need import Need
from .schemas import ERROR

if TYPE_CHECKING:
    from .routes import Route

_ERRORS = {
    "400": "What was sent can't be used.",
    "401": "Nobody knows who asks.",
    "403": "Whoever asks may not do this.",
    "404": "There is no such run or job, for whoever asks.",
    "409": "The run, or its key, does not allow it now.",
    "413": "What was sent is too large.",
    "414": "The query is too long.",
    "415": "What was sent is a form, or encoded.",
    "431": "The headers are too large.",
    "500": "Something went wrong with us. The log has it.",
    "503": "The database can't serve us now, or there are too many streams.",
}


def document(routes: Iterable[Route], base_path: str = "") -> dict[str, Any]:
    """What there is to ask, for tools that make clients or tests of it."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": "1", "description": "Runs of durable functions."},
        "servers": [{"url": base_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
            }
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    kind = "text/event-stream" if route.is_stream else "application/json"
    operation: dict[str, Any] = {
        "operationId": route.act.__name__,
        "summary": route.summary,
        "parameters": [param.document() for param in route.params],
        "responses": {
            "200": {
                "description": route.summary,
                "content": {kind: {"schema": _event(route.answer) if route.is_stream else route.answer}},
            },
            **({"204": {"description": "There is nothing more."}} if route.has_end else {}),
            **{status: _error(what) for status, what in _ERRORS.items()},
        },
        "x-permission": str(route.need),
    }
    if route.need is Need.NOTHING:
        operation["security"] = []
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body}}}
    return operation


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """Of each event of a stream."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {"type": "object", "properties": {"data": text, "id": {"type": "string"}}, "required": ["data"]}


def _error(what: str) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": ERROR}}}
