"""Two ends of a link for tests, and a handler that remembers what came."""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from janus.errors import LinkBusy, LinkError
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import Identity, Role
from janus.transport import InFrame, Kind, Link, LinkHandler, LinkOptions, Listener, TransportKind, connect, listen
from janus.transport.buffers import BufferPool
from janus.transport.endpoint import HandlerFactory
from tests.waiting import turns

#: Where shared memory cannot be had, its tests are skipped and say so.
needs_shared_memory = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux with memfd_create")

SECRET = b"a secret of the tests"
HOST = "127.0.0.1"
DEADLINE_S = 10.0


def identity(role: Role = "attention", instance: str = "attention-0", **fields: object) -> Identity:
    values = {"protocol": PROTOCOL_VERSION, "node": "node", "incarnation": "1", **fields}
    return Identity(role=role, instance=instance, **values)  # type: ignore[arg-type]


class Recorder:
    """Keeps everything, in order; ``until`` waits for a condition on it."""

    def __init__(self, *, release: bool = True) -> None:
        self.messages: list[tuple[int, Message]] = []
        self.frames: list[InFrame] = []
        self.payloads: list[bytes] = []
        self.closed: list[LinkError] = []
        self.link: Link | None = None
        self._release = release
        self._changed = asyncio.Event()

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self.link = link
        self.messages.append((request_id, message))
        self._changed.set()

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.link = link
        self.payloads.append(frame.payload.tobytes())
        if self._release:
            frame.release()
        self.frames.append(frame)
        self._changed.set()

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.closed.append(error)
        self._changed.set()

    async def until(self, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Echo(Recorder):
    """Answers every message that is a call with itself, and every frame with a COMBINE of the same payload."""

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        super().on_message(link, request_id, message)
        if request_id:
            link.reply(request_id, message)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        out = link.allocate(len(frame.payload))
        out.payload[:] = frame.payload
        link.post(out, kind=Kind.COMBINE, request_id=frame.header.request_id)
        frame.release()


class Server:
    """A listener, and the handler of each link that it accepted."""

    def __init__(self, listener: Listener, handlers: list[LinkHandler]) -> None:
        self.listener = listener
        self.handlers = handlers

    @property
    def link(self) -> Link:
        return self.listener.links[0]


@contextlib.asynccontextmanager
async def serving(
    kind: TransportKind,
    make: HandlerFactory = lambda _: Recorder(),
    *,
    secret: bytes = SECRET,
    me: Identity | None = None,
    admit: Callable[[Identity], object] = lambda _: None,
    options: LinkOptions | None = None,
    pool: BufferPool | None = None,
) -> AsyncIterator[Server]:
    handlers: list[LinkHandler] = []

    def factory(peer: Identity) -> LinkHandler:
        handlers.append(make(peer))
        return handlers[-1]

    listener = await listen(
        kind,
        HOST,
        0,
        identity=me or identity("expert", "expert-0"),
        secret=secret,
        admit=admit,  # type: ignore[arg-type]
        handler_factory=factory,
        options=options,
        pool=pool,
    )
    try:
        yield Server(listener, handlers)
    finally:
        await listener.close()


async def dial(
    kind: TransportKind,
    port: int,
    handler: LinkHandler,
    *,
    secret: bytes = SECRET,
    me: Identity | None = None,
    options: LinkOptions | None = None,
    pool: BufferPool | None = None,
    timeout_s: float = 5.0,
) -> Link:
    return await connect(
        kind,
        HOST,
        port,
        identity=me or identity(),
        secret=secret,
        handler=handler,
        options=options,
        pool=pool,
        timeout_s=timeout_s,
    )


@contextlib.asynccontextmanager
async def linked(
    kind: TransportKind,
    client: LinkHandler,
    server: LinkHandler,
    *,
    options: LinkOptions | None = None,
    server_options: LinkOptions | None = None,
    pool: BufferPool | None = None,
) -> AsyncIterator[tuple[Link, Link]]:
    """The connecting and the listening end of one link; ``pool`` is the connecting end's."""
    async with serving(kind, lambda _: server, options=server_options or options) as served:
        link = await dial(kind, served.listener.port, client, options=options, pool=pool)
        try:
            # The listener has its end before the connector's is up, except in memory across loops.
            yield link, served.link
        finally:
            await link.close("the test is over")


def post(link: Link, payload: bytes, *, request_id: int = 1) -> None:
    frame = link.allocate(len(payload))
    frame.payload[:] = np.frombuffer(payload, dtype=np.uint8)
    try:
        link.post(frame, kind=Kind.DISPATCH, request_id=request_id, epoch=zlib.crc32(payload))
    finally:
        del frame


async def post_when_possible(link: Link, payload: bytes, *, request_id: int = 1) -> None:
    """Post as soon as there is credit; turns of the loop pass meanwhile."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return post(link, payload, request_id=request_id)
            except LinkBusy:
                await turns()
