"""Tasks that run beside their owner: kept until they end, cancelled and awaited with it, and never failing unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

#: Beyond it a task that was cancelled and still runs is left to the end of its loop.
_END_LIMIT_S = 5.0


class OwnedTasks:
    """The tasks of one owner, on one loop. Where tasks fail or end together, ``asyncio.TaskGroup`` is the choice."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self, work: Coroutine[Any, Any, None], *, name: str, failed: Callable[[BaseException], None] | None = None
    ) -> asyncio.Task[None]:
        """Run ``work`` from now on. When it raises, that is logged, and ``failed`` is called with what it raised."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, failed))
        return task

    def _ended(self, task: asyncio.Task[None], failed: Callable[[BaseException], None] | None) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("task_failed", task=task.get_name(), exc_info=error)
        if failed is not None:
            failed(error)

    async def close(self) -> None:
        """Cancel what runs and wait for its end. If cancelled itself, all has been asked to end."""
        running = list(self._tasks)
        for task in running:
            task.cancel()
        if running:
            _, late = await asyncio.wait(running, timeout=_END_LIMIT_S)
            for task in late:
                log.error("task_does_not_end", task=task.get_name(), limit_s=_END_LIMIT_S)
