"""Waits shorter than a millisecond: never early, in order of time, set anew at will, and the descriptor comes back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import pytest

from janus.exchange.fine_timer import FineTimer

LIMIT_S = 10.0
#: From one end of a wait to the other there is time for whatever should not happen.
SOON_S, LATER_S = 0.002, 0.02


class Fired:
    """When a timer fired, each time."""

    def __init__(self, wanted: int = 1) -> None:
        self.at_s: list[float] = []
        self._wanted = wanted
        self._enough = asyncio.Event()

    def __call__(self) -> None:
        self.at_s.append(time.monotonic())
        if len(self.at_s) >= self._wanted:
            self._enough.set()

    async def wait(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._enough.wait()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("ahead_s", [-1.0, 0.0, 50e-6, 300e-6, SOON_S])
async def test_it_fires_once_and_not_early(ahead_s: float) -> None:
    fired, guard = Fired(), Fired()
    timer, after = FineTimer(fired), FineTimer(guard)
    due_s = time.monotonic() + ahead_s
    timer.set(due_s)
    await fired.wait()
    after.set(time.monotonic() + SOON_S)
    await guard.wait()
    assert len(fired.at_s) == 1
    assert fired.at_s[0] >= due_s
    timer.close()
    after.close()


async def test_several_fire_in_order_of_time() -> None:
    order: list[int] = []
    last = Fired()

    def note(number: int) -> Callable[[], None]:
        return lambda: order.append(number)

    now = time.monotonic()
    timers = [FineTimer(note(number)) for number in range(5)]
    for number in (3, 0, 4, 1, 2):
        timers[number].set(now + LATER_S / 2 + number * SOON_S)
    end = FineTimer(last)
    end.set(now + LATER_S + 5 * SOON_S)
    await last.wait()
    assert order == [0, 1, 2, 3, 4]
    for timer in (*timers, end):
        timer.close()


async def test_the_last_setting_counts() -> None:
    fired, never, end = Fired(), Fired(), Fired()
    timer, off, guard = FineTimer(fired), FineTimer(never), FineTimer(end)
    started = time.monotonic()
    timer.set(started + SOON_S)
    timer.set(started + LATER_S)
    off.set(started + SOON_S)
    off.set(None)
    await fired.wait()
    assert fired.at_s[0] >= started + LATER_S
    timer.set(time.monotonic() + 3600)
    timer.set(time.monotonic() + SOON_S)  # sooner again
    guard.set(time.monotonic() + LATER_S)
    await end.wait()
    assert len(fired.at_s) == 2
    assert never.at_s == []
    for each in (timer, off, guard):
        each.close()


async def test_one_that_is_due_and_set_anew_before_its_turn_waits() -> None:
    fired = Fired()
    timer = FineTimer(fired)
    timer.set(time.monotonic() - 1)  # it is due, and the loop has not had its turn
    due_s = time.monotonic() + LATER_S
    timer.set(due_s)
    await fired.wait()
    assert len(fired.at_s) == 1
    assert fired.at_s[0] >= due_s
    timer.close()


async def test_its_own_callback_may_set_it() -> None:
    fired = Fired(3)

    def again() -> None:
        fired()
        timer.set(time.monotonic() + 100e-6)

    timer = FineTimer(again)
    timer.set(time.monotonic())
    await fired.wait()
    timer.close()


async def test_closing_gives_the_descriptor_back_and_nothing_fires_any_more() -> None:
    before = descriptors()
    fired, end = Fired(), Fired()
    timers = [FineTimer(fired) for _ in range(20)]
    for timer in timers:
        timer.set(time.monotonic() - 1)
        timer.close()
        timer.close()
    assert descriptors() == before
    guard = FineTimer(end)
    guard.set(time.monotonic() + SOON_S)
    await end.wait()
    guard.close()
    assert fired.at_s == []
