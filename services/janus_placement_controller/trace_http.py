"""``GET /trace`` and ``PUT /trace`` on the operations port: the sampled routing, out and in, as ``janus trace`` does.

Both need a proof of the cluster secret: what the router chose says something about what users wrote.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from janus.core.trace import Trace
from janus.errors import TraceError
from janus.runtime import proof
from janus.runtime.body import BodyTimeout, BodyTooLarge, read_body
from janus_placement_controller.statistics import Statistics

log = structlog.get_logger()

PATH = "/trace"
#: A window is a few MB, also of the largest models.
_MAX_BODY_BYTES = 64 << 20
_BODY_TIMEOUT_S = 30.0


def trace_route(statistics: Statistics, secret: bytes) -> Route:
    """Return the route."""

    async def serve(request: Request) -> Response:
        try:
            body = await read_body(request, max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)
        except BodyTooLarge as error:
            limit = f"a trace of more than {_MAX_BODY_BYTES >> 20} MiB; export one with fewer tokens"
            return _refusal(error.status, limit)
        except BodyTimeout as error:
            return _refusal(error.status, error.message)
        header = request.headers.get(proof.HEADER, "")
        problem = proof.problem_of(secret, request.method, PATH, body, header, now=time.time())
        if problem:
            return _refusal(401, problem)
        if request.method == "PUT":
            return await _put(statistics, body)
        content = await asyncio.to_thread(statistics.trace().to_bytes)
        return Response(content, media_type="application/octet-stream")

    return Route(PATH, serve, methods=["GET", "PUT"])


async def _put(statistics: Statistics, body: bytes) -> Response:
    try:
        trace = await asyncio.to_thread(Trace.from_bytes, body)
        statistics.load(trace)
    except TraceError as error:
        return _refusal(409, str(error))
    log.info("trace_imported", tokens=trace.tokens)
    return JSONResponse({"tokens": trace.tokens, **statistics.status()})


def _refusal(status: int, problem: str) -> Response:
    return JSONResponse({"problem": problem}, status_code=status)
