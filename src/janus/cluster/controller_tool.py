"""What operations ask of the placement-controller: the cluster's wanted size over a link, its state over HTTP."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from janus.cluster.instances import Started
from janus.cluster.sizes import Sizes
from janus.cluster.status import fetch_status
from janus.config.options import Transport
from janus.errors import DeadlineExceeded, JanusError, LinkBroken, LinkError
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import ClusterView, Fatal, Identity, StatusReport
from janus.transport.endpoint import connect
from janus.transport.link import InFrame, Link

_NAME = "the placement-controller"
_CONNECT_TIMEOUT_S, _CALL_TIMEOUT_S = 5.0, 5.0


class Controller(Protocol):
    """The placement-controller, as operations see it."""

    async def expect(self, sizes: Sizes) -> None:
        """Tell it how many instances the cluster should have.

        Raises:
            JanusError: it does not answer, or refuses; the message says why.
        """

    async def status(self) -> StatusReport:
        """What it knows.

        Raises:
            DeadlineExceeded: it accepts questions, and answers none.
            LinkBroken: it cannot be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerTool:
    """``Controller`` for one that runs; ``find`` says where it listens now. Opens a link per call: calls are seldom."""

    find: Callable[[], Started]
    transport: Transport
    secret: str = field(repr=False)

    async def expect(self, sizes: Sizes) -> None:
        """See ``Controller.expect``."""
        answer = await self._call(sizes.message())
        if isinstance(answer, Fatal):
            raise JanusError(f"{_NAME} refuses: {answer.problem}")
        if not isinstance(answer, ClusterView):
            raise JanusError(f"{_NAME} answered a size with {type(answer).__name__}")

    async def status(self) -> StatusReport:
        """See ``Controller.status``."""
        try:
            return await fetch_status(f"http://127.0.0.1:{self.find().ops_port}")
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(_NAME, "does not answer in time") from error
        except (httpx.HTTPError, ValueError) as error:
            raise LinkBroken(_NAME, f"does not answer ({type(error).__name__})") from error

    async def _call(self, message: Message) -> Message:
        identity = Identity(
            protocol=PROTOCOL_VERSION,
            role="tool",
            instance=f"up-{os.getpid()}",
            node=socket.gethostname(),
            incarnation=secrets.token_hex(8),
        )
        try:
            link = await connect(
                self.transport,
                "127.0.0.1",
                self.find().port,
                identity=identity,
                secret=self.secret.encode(),
                handler=_Quiet(),
                timeout_s=_CONNECT_TIMEOUT_S,
            )
            try:
                return await link.call(message, timeout_s=_CALL_TIMEOUT_S)
            finally:
                await link.close("done")
        except LinkError as error:
            raise JanusError(f"{_NAME} does not answer: {error}; see janus status") from error


class _Quiet:
    """Handler of a link on which only answers come."""

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """Nothing that was not asked for is of interest."""

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """Nor are tensors."""
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        """The call that waits hears of it."""
