"""The attention-server's end of the links from gateways, on the step loop: requests in, tokens out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from janus.errors import InvalidRequest, LinkBusy, LinkError, Unavailable
from janus.messages import Message
from janus.messages.control import Cancel, Identity, Submit, TokenDelta, Tokens
from janus.runtime.step_news import refusal
from janus.runtime.tasks import OwnedTasks
from janus.transport.link import InFrame, Link

log = structlog.get_logger()

#: A gateway that takes no tokens for this long is dropped; its requests are cancelled.
_STALL_LIMIT_S = 30.0


class Engine(Protocol):
    """What the sessions want from the engine."""

    def submit(self, message: Submit) -> None:
        """Begin a request."""

    def cancel(self, request_id: str) -> None:
        """Forget a request."""


class Sessions:
    """All gateways' sessions, and which of them each request belongs to."""

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        """``engine`` returns ``None`` while the model is being loaded."""
        self._engine = engine
        self._owner: dict[str, GatewaySession] = {}
        self._open: set[GatewaySession] = set()
        #: Send to gateways that are slow.
        self.senders = OwnedTasks()

    def open(self, identity: Identity) -> GatewaySession:
        """Return the handler of a new link from a gateway."""
        session = GatewaySession(identity, self)
        self._open.add(session)
        return session

    def submit(self, session: GatewaySession, message: Submit) -> None:
        """Begin a request whose tokens go to ``session``."""
        engine = self._engine()
        if engine is None:
            error = Unavailable("the attention instance is still loading the model", code="starting", retry_after_s=1.0)
            session.send([refusal(message, error)], kv_usage=0.0)
            return
        if message.request_id in self._owner:
            # Refused here: the engine's refusal would go to the owner, and end his request.
            in_use = InvalidRequest(f"request id {message.request_id!r} is in use", param="request_id")
            session.send([refusal(message, in_use)], kv_usage=0.0)
            return
        self._owner[message.request_id] = session
        engine.submit(message)

    def cancel(self, session: GatewaySession, request_id: str) -> None:
        """Forget a request of ``session``; nothing if it has ended, or is another one's."""
        engine = self._engine()
        if self._owner.get(request_id) is session:
            del self._owner[request_id]
            if engine is not None:
                engine.cancel(request_id)

    def close(self, session: GatewaySession) -> None:
        """Nobody waits for the requests of ``session`` any more."""
        self._open.discard(session)
        for request_id in [known for known, owner in self._owner.items() if owner is session]:
            self.cancel(session, request_id)

    def deliver(self, deltas: list[TokenDelta], *, kv_usage: float) -> None:
        """Send each delta to the gateway of its request; those of cancelled requests are dropped."""
        per_session: dict[GatewaySession, list[TokenDelta]] = {}
        for delta in deltas:
            ended = delta.finish_reason is not None
            session = self._owner.pop(delta.request_id, None) if ended else self._owner.get(delta.request_id)
            if session is not None:
                per_session.setdefault(session, []).append(delta)
        for session, own in per_session.items():
            session.send(own, kv_usage=kv_usage)

    async def flush(self, timeout_s: float) -> None:
        """Wait, at most ``timeout_s``, until slow gateways have been sent everything."""
        senders = [session.sender for session in self._open if session.sender is not None]
        if senders:
            await asyncio.wait(senders, timeout=timeout_s)


class GatewaySession:
    """One gateway's link. Its handler."""

    def __init__(self, identity: Identity, sessions: Sessions) -> None:
        self.name = identity.instance
        self._sessions = sessions
        self._link: Link | None = None
        self._unsent: list[TokenDelta] = []
        self._kv_usage = 0.0
        #: Runs while the gateway takes news more slowly than they come.
        self.sender: asyncio.Task[None] | None = None

    def send(self, deltas: list[TokenDelta], *, kv_usage: float) -> None:
        """Send news of this gateway's requests, or keep it until the link takes more; order is kept."""
        self._unsent += deltas
        self._kv_usage = kv_usage
        if self.sender is None and self._link is not None:
            self._flush(self._link)

    def _flush(self, link: Link) -> None:
        try:
            link.post_message(Tokens(deltas=self._unsent, kv_usage=self._kv_usage))
            self._unsent = []
        except LinkBusy:
            name = f"tokens[{self.name}]"
            self.sender = self._sessions.senders.start(
                self._send_slowly(link), name=name, failed=lambda error: link.abort(f"cannot be sent tokens: {error}")
            )
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
            self.sender = None

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Take a request or a cancellation in."""
        self._link = link
        match message:
            case Submit():
                self._sessions.submit(self, message)
            case Cancel():
                self._sessions.cancel(self, message.request_id)
            case _:
                log.warning("unexpected_message", peer=self.name, message=type(message).__name__)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Gateways send no tensors."""
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        """The gateway is gone, and with it its clients."""
        log.info("gateway_gone", peer=self.name, problem=str(error))
        if self.sender is not None:
            self.sender.cancel()
        self._sessions.close(self)
