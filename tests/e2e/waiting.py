"""Waiting for what other processes do: they send no event, so what can be seen of them is looked at until it is so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks.
_MOMENT_S = 0.05
#: For whatever happens at once on a quiet machine. Generous: the machine may be busy with something else.
LIMIT_S = 60.0


def until(look: Callable[[], T | None], what: str, *, within_s: float = LIMIT_S) -> T:
    """Return the first truthy ``look()``; AssertionError naming ``what`` when there is none in time."""
    deadline, never = time.monotonic() + within_s, threading.Event()
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        never.wait(_MOMENT_S)
    return seen


async def until_async(look: Callable[[], Awaitable[T | None]], what: str, *, within_s: float = LIMIT_S) -> T:
    """As ``until``, without stopping the loop."""
    deadline, never = time.monotonic() + within_s, asyncio.Event()
    while not (seen := await look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        try:
            async with asyncio.timeout(_MOMENT_S):
                await never.wait()
        except TimeoutError:
            continue
    return seen
