"""The step loop: a second asyncio loop, in a thread of its own, where a server's model runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog
import uvloop

log = structlog.get_logger()

T = TypeVar("T")


class StepLoop:
    """Runs one main coroutine on its own loop and thread, and carries calls between the two loops.

    Torch computes inline on this loop: a layer costs no hop between threads. The control loop talks to it by
    ``call`` (fire and forget, in order) and ``run`` (await a result).
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._control: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread: threading.Thread | None = None
        self._main: asyncio.Task[None] | None = None
        #: Resolves on the control loop when the main coroutine has ended, with its exception if it raised one.
        self.finished: asyncio.Future[None] | None = None

    def start(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the thread and run ``main()`` on its loop. Call from the control loop."""
        self._control = asyncio.get_running_loop()
        self.finished = self._control.create_future()
        self._thread = threading.Thread(target=self._run, args=(main,), name=self._name, daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self._enter(main))
        except asyncio.CancelledError:
            pass
        except Exception as raised:
            error = raised
        finally:
            self._started.set()
            self.to_control(self._finish, error)

    async def _enter(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._main = asyncio.current_task()
        self._started.set()
        await main()

    def _finish(self, error: BaseException | None) -> None:
        assert self.finished is not None
        if self.finished.done():
            return
        if error is None:
            self.finished.set_result(None)
        else:
            self.finished.set_exception(error)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function(*args)`` on the step loop, soon; dropped when the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                log.debug("step_loop_closed", dropped=getattr(function, "__qualname__", str(function)))

    async def run(self, coroutine: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
        """Run ``coroutine`` on the step loop and return its result.

        Raises:
            TimeoutError: not within ``timeout_s``; the coroutine is cancelled.
        """
        assert self._loop is not None
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def to_control(self, function: Callable[..., None], *args: Any) -> None:
        """From the step loop: run ``function(*args)`` on the control loop, soon."""
        assert self._control is not None
        if not self._control.is_closed():
            self._control.call_soon_threadsafe(function, *args)

    def cancel(self) -> None:
        """Ask the main coroutine to end; ``finished`` says when it has."""
        if self._main is not None:
            self.call(self._cancel_main)

    def _cancel_main(self) -> None:
        if self._main is not None:
            self._main.cancel()
