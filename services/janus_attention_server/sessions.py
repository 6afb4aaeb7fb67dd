"""The attention-server's end of the links from gateways: requests come in, tokens go out, each to its own gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from janus.errors import LinkBusy, LinkError
from janus.messages import Message
from janus.messages.control import Cancel, Identity, Submit, TokenDelta, Tokens
from janus.transport.link import InFrame, Link

log = structlog.get_logger()

#: A gateway that takes no tokens for this long is dropped; its requests are cancelled.
_STALL_LIMIT_S = 30.0


class Engine(Protocol):
    """What the sessions want from the engine; called on the control loop."""

    def submit_from(self, session: GatewaySession, message: Submit) -> None:
        """Begin a request whose tokens go to ``session``."""

    def cancel(self, request_id: str) -> None:
        """Forget a request."""


class GatewaySession:
    """One gateway's link and requests. The handler of the link, on the control loop."""

    def __init__(self, identity: Identity, engine: Engine, on_end: Callable[[GatewaySession], None]) -> None:
        self.name = identity.instance
        self._engine = engine
        self._on_end = on_end
        self._link: Link | None = None
        self._unsent: list[TokenDelta] = []
        self._kv_usage = 0.0
        self._sender: asyncio.Task[None] | None = None
        self.requests: set[str] = set()

    def send(self, deltas: list[TokenDelta], kv_usage: float) -> None:
        """Send news of this gateway's requests, or keep it until the link takes more; order is kept."""
        for delta in deltas:
            if delta.finish_reason is not None:
                self.requests.discard(delta.request_id)
        self._unsent += deltas
        self._kv_usage = kv_usage
        if self._sender is None and self._link is not None:
            self._flush(self._link)

    def _flush(self, link: Link) -> None:
        try:
            link.post_message(Tokens(deltas=self._unsent, kv_usage=self._kv_usage))
            self._unsent = []
        except LinkBusy:
            self._sender = asyncio.create_task(self._send_slowly(link), name=f"tokens[{self.name}]")
        except LinkError:
            self._unsent = []  # on_closed follows, or has come already

    async def _send_slowly(self, link: Link) -> None:
        log.warning("gateway_slow", peer=self.name, unsent=len(self._unsent))
        try:
            while self._unsent:
                batch, self._unsent = self._unsent, []
                await link.send_message(Tokens(deltas=batch, kv_usage=self._kv_usage), timeout_s=_STALL_LIMIT_S)
        except LinkError as error:
            link.abort(f"takes no tokens: {error.problem}")
        finally:
            self._sender = None

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take a request or a cancellation in."""
        self._link = link
        match message:
            case Submit():
                self.requests.add(message.request_id)
                self._engine.submit_from(self, message)
            case Cancel():
                self.requests.discard(message.request_id)
                self._engine.cancel(message.request_id)
            case _:
                log.warning("unexpected_message", peer=self.name, message=type(message).__name__)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Gateways send no tensors."""
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        """Nobody waits for these requests any more."""
        log.info("gateway_gone", peer=self.name, cancelled=len(self.requests), problem=str(error))
        if self._sender is not None:
            self._sender.cancel()
        for request_id in self.requests:
            self._engine.cancel(request_id)
        self.requests.clear()
        self._on_end(self)

    async def close(self, reason: str) -> None:
        """Send what is left, then close the link."""
        if self._sender is not None:
            await asyncio.wait({self._sender}, timeout=2.0)
        if self._link is not None:
            await self._link.close(reason)
