"""Two loops, two threads: what crosses between them, and how the second one ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from janus.runtime.step_loop import StepLoop
from tests.runtime.world import LIMIT_S
from tests.waiting import turns


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def ended(loop: StepLoop) -> None:
    assert loop.finished is not None
    async with asyncio.timeout(LIMIT_S):
        await loop.finished


async def test_calls_run_there_in_order_and_news_comes_back_here() -> None:
    loop, here = StepLoop("test"), threading.get_ident()
    loop.start(forever)
    seen: list[tuple[int, bool]] = []
    done = asyncio.Event()

    def there(number: int) -> None:
        seen.append((number, threading.get_ident() != here))
        if number == 99:
            loop.to_control(done.set)

    for number in range(100):
        loop.call(there, number)
    async with asyncio.timeout(LIMIT_S):
        await done.wait()
    assert seen == [(number, True) for number in range(100)]
    loop.cancel()
    await ended(loop)


async def test_run_returns_what_the_coroutine_returns_or_raises() -> None:
    loop = StepLoop("test")
    loop.start(forever)

    async def double(value: int) -> int:
        return 2 * value

    async def fail() -> None:
        raise ValueError("there")

    assert await loop.run(double(21), timeout_s=LIMIT_S) == 42
    with pytest.raises(ValueError, match="there"):
        await loop.run(fail(), timeout_s=LIMIT_S)
    loop.cancel()
    await ended(loop)


async def test_run_has_a_deadline_and_cancels_what_is_late() -> None:
    loop = StepLoop("test")
    loop.start(forever)
    cancelled = threading.Event()

    async def stuck() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        await loop.run(stuck(), timeout_s=0.05)
    assert await asyncio.to_thread(cancelled.wait, LIMIT_S)
    loop.cancel()
    await ended(loop)


async def test_an_error_of_the_main_coroutine_is_seen_here() -> None:
    loop = StepLoop("test")

    async def broken() -> None:
        raise RuntimeError("the model does not load")

    loop.start(broken)
    with pytest.raises(RuntimeError, match="the model does not load"):
        await ended(loop)
    loop.call(print, "dropped: the loop has ended")


async def test_the_control_loop_stays_responsive_while_a_step_computes() -> None:
    loop, computing, go_on = StepLoop("test"), threading.Event(), threading.Event()
    loop.start(forever)

    def compute() -> None:
        computing.set()
        assert go_on.wait(LIMIT_S)

    loop.call(compute)
    assert await asyncio.to_thread(computing.wait, LIMIT_S)
    await turns(100)
    go_on.set()
    loop.cancel()
    await ended(loop)
