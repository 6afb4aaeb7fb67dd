"""How tests wait: for events, for a task to begin, and at worst, against a deadline, for what nobody announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 10.0


async def turns(count: int = 1) -> None:
    """Let whatever can go on do so, ``count`` times: what is ready runs once in every turn of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Return a task that runs ``work``, and has got as far as its first wait."""
    task = asyncio.create_task(work, name=name)
    await turns()
    return task


async def eventually(condition: Callable[[], bool], *, every_s: float = 0.001, limit_s: float = LIMIT_S) -> None:
    """Wait for what nobody announces: a counter, a log line, a file. ``every_s=0`` looks in every turn of the loop."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(every_s)
