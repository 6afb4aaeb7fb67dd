"""``/openapi.json``: the request bodies are msgspec structs, so their schemas are put in by hand.

The bounds here describe what ``parse`` and ``janus.core.sampling`` check; `make fuzz` holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from janus.core.sampling import MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, MAX_TEMPERATURE
from janus_gateway.parse import MAX_N, MAX_STOP_LENGTH, MAX_STOPS, ROLES
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
#: Keywords added to the schema of each field, beside its type.
_BOUNDS: dict[str, dict[str, Any]] = {
    "n": {"minimum": 1, "maximum": MAX_N},
    "max_tokens": {"minimum": 1},
    "max_completion_tokens": {"minimum": 1},
    "min_tokens": {"minimum": 0},
    "temperature": {"minimum": 0, "maximum": MAX_TEMPERATURE},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1, "maximum": (1 << 31) - 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "seed": {"minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": 100},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "top_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "stop": {"minLength": 1, "maxLength": MAX_STOP_LENGTH, "maxItems": MAX_STOPS},
    "stop_token_ids": {"maxItems": MAX_STOP_TOKEN_IDS},
    "prompt": {"minLength": 1, "minItems": 1},
    "messages": {"minItems": 1},
    "role": {"enum": list(ROLES)},
    "type": {"enum": ["text"]},
    # Listed so that they can be refused.
    "logit_bias": {"maxProperties": 0},
    "suffix": {"maxLength": 0},
    "tools": {"maxItems": 0},
    "functions": {"maxItems": 0},
}
_REQUIRED = {"CompletionBody": ["prompt"], "ChatBody": ["messages"]}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the errors with these statuses."""
    schema = {"$ref": _REF.format(name="Error")}
    return {
        str(status): {"description": about, "content": {"application/json": {"schema": schema}}}
        for status, about in _ERRORS.items()
        if status in statuses
    }


def operation(body: str) -> dict[str, Any]:
    """The OpenAPI parts of a generation endpoint that takes ``body``."""
    answers: dict[int | str, Any] = errors(*_ERRORS)
    answers["200"] = {
        "description": "The answer; with stream: true as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    content = {"application/json": {"schema": {"$ref": _REF.format(name=body)}}}
    return {"requestBody": {"required": True, "content": content}, "responses": answers}


def install(app: FastAPI, *, model_names: Sequence[str]) -> None:
    """Make ``app`` describe itself with our schemas."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                for documented in path.values():
                    # FastAPI's own answer to a wrong type; here that is a 400 like any other.
                    documented["responses"].pop("422", None)
            schema["components"] = {"schemas": _bodies(model_names) | {"Error": _ERROR}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # the documented way to override it


def _bodies(model_names: Sequence[str]) -> dict[str, Any]:
    _, bodies = msgspec.json.schema_components((CompletionBody, ChatBody), ref_template=_REF)
    for name, body in bodies.items():
        if name in _REQUIRED:
            body["required"] = _REQUIRED[name]
        for field, schema in body["properties"].items():
            # Keywords of another type than a branch's say nothing about it, so they can stand beside ``anyOf``.
            schema.update(_BOUNDS.get(field, {}))
            if field == "model":
                schema["enum"] = [*model_names, None]
    return bodies
