"""Errors as OpenAI's clients read them: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

import math
from typing import Any

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from janus.errors import RequestError

log = structlog.get_logger()


class ModelNotFound(RequestError):
    """404: another model than the served one."""

    status = 404
    code = "model_not_found"

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(f"The model {asked[:200]!r} does not exist; this endpoint serves {served!r}", param="model")


class Unauthorized(RequestError):
    """401: the API key is missing or wrong."""

    status = 401
    code = "invalid_api_key"


class RequestTimeout(RequestError):
    """504: the request took longer than the gateway's limit."""

    status = 504
    code = "request_timeout"


_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON body of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: RequestError) -> Response:
    """The HTTP answer to ``error``."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error.status, error.message, param=error.param, code=error.code)
    return JSONResponse(body, status_code=error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Give every error of ``app`` this shape: ours, the router's 404 and 405, and a crash of a handler."""

    async def on_request_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = error_body(error.status_code, message, code=str(error.detail).lower().replace(" ", "_"))
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    async def on_crash(request: Request, error: Exception) -> Response:
        log.error("handler_crashed", path=request.url.path, exc_info=error)
        return JSONResponse(error_body(500, "internal error; see the gateway's log", code="internal_error"), 500)

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_crash)
