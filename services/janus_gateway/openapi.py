"""``/openapi.json``: the request bodies are msgspec structs, so their schemas are put in by hand."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from janus_gateway.schema import ChatBody, CompletionBody

_REF = "#/components/schemas/{name}"
_ERROR: dict[str, Any] = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "The request is wrong; param names the field",
    401: "The API key is missing or wrong",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "Too much to do; come back after Retry-After seconds",
    503: "The cluster cannot serve now; come back after Retry-After seconds",
    504: "The request took too long",
}


def operation(body: str) -> dict[str, Any]:
    """The OpenAPI parts of a generation endpoint that takes ``body``."""
    answers: dict[str, Any] = {
        str(status): {
            "description": about,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
        }
        for status, about in _ERRORS.items()
    }
    answers["200"] = {
        "description": "The answer; with stream: true as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    content = {"application/json": {"schema": {"$ref": _REF.format(name=body)}}}
    return {"requestBody": {"required": True, "content": content}, "responses": answers}


def install(app: FastAPI) -> None:
    """Make ``app`` describe itself with our schemas."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, bodies = msgspec.json.schema_components((CompletionBody, ChatBody), ref_template=_REF)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies | {"Error": _ERROR})
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # the documented way to override it
