"""Who waits on a link: for an answer (``Calls``), a credit (``CreditQueue``), the time of a frame (``RoundTrips``)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from janus.errors import DeadlineExceeded, LinkError
from janus.messages import Message

#: Request ids of calls have bit 63 set, and bit 62 on the listening side, so an answer is never taken for a request.
_CALL_BIT = 1 << 63
_LISTENER_BIT = 1 << 62
#: Set in the request id of a PING that is no heartbeat.
_PROBE_BIT = 1 << 63


def again(error: LinkError) -> LinkError:
    """Return an equal error of its own, so that each waiter gets its own traceback."""
    return type(error)(error.peer, error.problem)


def fail(future: asyncio.Future[Any], error: LinkError) -> None:
    """End the wait on ``future`` with ``error``, unless it has ended."""
    if not future.done():
        future.set_exception(error)


class Calls:
    """Answers that are waited for, by request id."""

    def __init__(self, peer: str, *, listening: bool) -> None:
        self._peer = peer
        self._bits = _CALL_BIT | (_LISTENER_BIT if listening else 0)
        self._ids = itertools.count(self._bits)
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    def next_id(self) -> int:
        """Return a request id that no other call of this link uses."""
        return next(self._ids)

    async def answer(self, request_id: int, name: str, *, deadline: float, timeout_s: float) -> Message:
        """Return the answer to ``request_id``; raise ``DeadlineExceeded`` at the loop time ``deadline``."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        self._waiting[request_id] = answer
        late = DeadlineExceeded(self._peer, f"no answer to {name} within {timeout_s:g} s")
        timer = loop.call_at(deadline, fail, answer, late)
        try:
            return await answer
        finally:
            timer.cancel()
            self._waiting.pop(request_id, None)

    def resolve(self, request_id: int, message: Message) -> bool:
        """Return whether ``request_id`` is a call's; its waiter, if it still waits, gets ``message``."""
        if request_id & (_CALL_BIT | _LISTENER_BIT) != self._bits:
            return False
        answer = self._waiting.pop(request_id, None)
        if answer is not None and not answer.done():
            answer.set_result(message)
        return True

    def fail(self, error: LinkError) -> None:
        """End every wait with ``error``."""
        for answer in self._waiting.values():
            fail(answer, again(error))
        self._waiting.clear()


class RoundTrips:
    """PINGs whose answer somebody waits for, by request id."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._ids = itertools.count(_PROBE_BIT + 1)
        self._waiting: dict[int, asyncio.Future[float]] = {}

    async def measure(self, send: Callable[[int], None], *, count: int, timeout_s: float) -> float:
        """Send ``count`` PINGs with ``send``; return the seconds until the last one is answered.

        Raises:
            DeadlineExceeded: not within ``timeout_s``.
            LinkError: what ``send`` raises, or ``fail`` was given.
        """
        started = time.perf_counter()  # a loop's own clock may tick in milliseconds
        request_id = next(self._ids)
        answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answered
        try:
            for number in range(1, count + 1):
                send(request_id if number == count else _PROBE_BIT)
            async with asyncio.timeout(timeout_s):
                return await answered - started
        except TimeoutError:
            raise DeadlineExceeded(self._peer, f"no answer to a probe within {timeout_s:g} s") from None
        finally:
            del self._waiting[request_id]

    def answered(self, request_id: int) -> bool:
        """Return whether ``request_id`` is of such a PING, and no heartbeat's; its waiter is told."""
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(time.perf_counter())
        return bool(request_id & _PROBE_BIT)

    def fail(self, error: LinkError) -> None:
        """No answer will come any more."""
        for waiting in self._waiting.values():
            fail(waiting, again(error))


class CreditQueue:
    """Senders that wait for credit, first come first served."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, *, deadline: float, timeout_s: float) -> None:
        """Return once ``wake`` has reached this caller; raise ``DeadlineExceeded`` at the loop time ``deadline``."""
        loop = asyncio.get_running_loop()
        credit: asyncio.Future[None] = loop.create_future()
        self._waiting.append(credit)
        late = DeadlineExceeded(self._peer, f"no credit to send within {timeout_s:g} s: the peer is not consuming")
        timer = loop.call_at(deadline, fail, credit, late)
        try:
            await credit
        except asyncio.CancelledError:
            if credit.done() and not credit.cancelled() and credit.exception() is None:
                self.wake(1)  # what we were given and do not use is the next one's
            raise
        finally:
            timer.cancel()
            if credit in self._waiting:
                self._waiting.remove(credit)

    def wake(self, credits: int) -> None:
        """Let up to ``credits`` senders try again."""
        while credits > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                credits -= 1

    def fail(self, error: LinkError) -> None:
        """End every wait with ``error``."""
        for waiter in self._waiting:
            fail(waiter, again(error))
        self._waiting.clear()
