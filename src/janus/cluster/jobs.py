"""One operation at a time, and its progress for whoever asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import structlog

from janus.cluster.groups import one_error
from janus.errors import JanusError

log = structlog.get_logger()


class Busy(JanusError):
    """Another operation runs; the message names it."""


class Job:
    """An operation that runs or is over. Nobody needs to read its lines."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lines: list[str] = []
        #: How it ended; ``None`` while it runs, and when all went well.
        self.error: Exception | None = None
        self.over = False
        self._news = asyncio.Event()

    def tell(self, line: str) -> None:
        """Add a line of progress."""
        self.lines.append(line)
        self._news.set()

    def end(self, error: Exception | None) -> None:
        """Say how it ended."""
        self.error, self.over = error, True
        self._news.set()

    async def progress(self) -> AsyncIterator[str]:
        """Yield its lines, from the first one to the end of the operation. For one reader."""
        at = 0
        while True:
            self._news.clear()
            while at < len(self.lines):
                at += 1
                yield self.lines[at - 1]
            if self.over:
                return
            await self._news.wait()


class Jobs:
    """Starts operations, each as a task of the caller's group. An operation goes on when its reader is gone."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._running: Job | None = None
        self._task: asyncio.Task[None] | None = None

    def tell(self, line: str) -> None:
        """Pass a line on to the log of the cluster, and to whoever waits for the running operation."""
        self._echo(line)
        if self._running is not None:
            self._running.tell(line)

    def check_free(self) -> None:
        """Raise ``Busy`` when an operation runs."""
        if self._running is not None:
            raise Busy(f"{self._running.what} is under way; wait for its end, then try again")

    @property
    def running(self) -> str:
        """What runs now; empty when nothing does."""
        return "" if self._running is None else self._running.what

    def start(self, what: str, work: Coroutine[Any, Any, None], group: asyncio.TaskGroup) -> Job:
        """Begin ``work``. The caller has checked that nothing else runs."""
        self._running = job = Job(what)
        self._task = group.create_task(self._run(job, work), name=f"operation[{what}]")
        return job

    def cancel(self) -> None:
        """Break off what runs, because the cluster stops; whoever waits for it is told."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, job: Job, work: Coroutine[Any, Any, None]) -> None:
        error: Exception | None = JanusError("the cluster stops")
        try:
            with one_error():
                await work
            error = None
        except Exception as problem:
            # The cluster serves on whatever went wrong; whoever asked is told.
            error = problem
            if not isinstance(problem, JanusError):
                log.exception("operation_crashed", operation=job.what)
            self.tell(f"{job.what} failed: {problem or type(problem).__name__}")
        finally:
            self._running = None
            job.end(error)
