"""Reading a request body under a size limit and a deadline, both enforced while it arrives."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from janus.errors import RequestError


class BodyTooLarge(RequestError):
    """413: reading stopped at the limit."""

    status = 413
    code = "body_too_large"


class BodyTimeout(RequestError):
    """408: the body did not arrive in time."""

    status = 408
    code = "body_timeout"


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLarge: announced or real size is over ``max_bytes``; nothing beyond the limit is kept.
        BodyTimeout: it took longer than ``timeout_s`` seconds.
        starlette.requests.ClientDisconnect: the client is gone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError as error:
        raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s") from error
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the limit of {max_bytes} bytes")
