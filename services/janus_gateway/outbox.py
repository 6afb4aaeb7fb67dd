"""Messages to one attention instance, in order, also while its link takes none."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from janus.errors import LinkBusy, LinkError
from janus.messages import Message
from janus.runtime.tasks import OwnedTasks
from janus.transport.link import Link

log = structlog.get_logger()

#: An instance that takes no message for this long is as good as lost.
_STALL_LIMIT_S = 10.0


class Outbox:
    """Posts at once as long as the link has credit; a burst beyond it waits here, at most ``max_waiting`` messages."""

    def __init__(self, link: Link, *, max_waiting: int, tasks: OwnedTasks) -> None:
        """``tasks``: owns what sends while messages wait."""
        self._link = link
        self._max_waiting = max_waiting
        self._tasks = tasks
        self._waiting: deque[Message] = deque()
        self._sender: asyncio.Task[None] | None = None

    def post(self, message: Message) -> None:
        """Send ``message`` after all earlier ones.

        Raises:
            LinkError: the link is down, or so much waits for it that it should be.
        """
        if self._sender is None:
            try:
                self._link.post_message(message)
                return
            except LinkBusy:
                name = f"outbox[{self._link.peer.instance}]"
                self._sender = self._tasks.start(self._send_waiting(), name=name, failed=self._failed)
        elif len(self._waiting) >= self._max_waiting:
            raise LinkBusy(self._link.peer.instance, f"{len(self._waiting)} messages wait for it")
        self._waiting.append(message)

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._link.send_message(self._waiting[0], timeout_s=_STALL_LIMIT_S)
                self._waiting.popleft()
        except LinkError as error:
            log.warning("attention_instance_stalled", peer=self._link.peer.instance, unsent=len(self._waiting))
            self._waiting.clear()
            self._link.abort(f"takes no messages: {error.problem}")
        finally:
            self._sender = None

    def _failed(self, error: BaseException) -> None:
        self._waiting.clear()
        self._link.abort(f"its messages cannot be sent: {type(error).__name__}")

    def close(self) -> None:
        """Drop what waits; the link is gone."""
        self._waiting.clear()
        if self._sender is not None:
            self._sender.cancel()
