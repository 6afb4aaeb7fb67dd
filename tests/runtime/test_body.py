"""Request bodies: whole, or refused by size and by time while they arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from janus.runtime.body import BodyTimeout, BodyTooLarge, read_body


def request(*parts: bytes, announced: str = "", ends: bool = True) -> Request:
    """A request whose body arrives in ``parts``, and then ends, or is never complete."""
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        if not ends:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"content-length", announced.encode())] if announced else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def test_a_body_in_parts_is_put_together() -> None:
    assert await read_body(request(b"ab", b"cd", announced="4"), max_bytes=4, timeout_s=5) == b"abcd"


@pytest.mark.parametrize("announced", ["", "5", "9" * 40])
async def test_one_that_is_too_large_is_refused_before_its_end(announced: str) -> None:
    with pytest.raises(BodyTooLarge, match="larger than the limit of 4 bytes"):
        await read_body(request(b"abc", b"de", announced=announced, ends=False), max_bytes=4, timeout_s=5)


async def test_one_that_is_never_complete_is_refused_in_time() -> None:
    with pytest.raises(BodyTimeout, match=r"did not arrive within 0\.01 s"):
        await read_body(request(b"abc", ends=False), max_bytes=4, timeout_s=0.01)
