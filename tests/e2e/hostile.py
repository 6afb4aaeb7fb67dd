"""What should not come to a UCX port: strangers, peers with the secret that speak nonsense; and a watch beside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from janus.errors import LinkError
from janus.messages import PROTOCOL_VERSION, Message, encode
from janus.messages.control import Hello, Identity, Role
from janus.transport import InFrame, Link, connect
from janus.transport.buffers import Buffer
from janus.transport.endpoint import transport
from janus.transport.frame import HEADER_BYTES, Kind, pack_fields
from janus.transport.wire import Wire
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster
from tests.e2e.oracle import Expected
from tests.e2e.waiting import LIMIT_S, until_async

HOST = "127.0.0.1"
#: Who has a UCX port.
ROLES = ("controller", "attention", "expert")


def identity(role: Role = "tool", instance: str = "intruder", **fields: object) -> Identity:
    values = {"protocol": PROTOCOL_VERSION, "node": "test", "incarnation": "test", **fields}
    return Identity(role=role, instance=instance, **values)  # type: ignore[arg-type]


def framed(payload: bytes = b"", *, kind: Kind = Kind.CONTROL, payload_len: int | None = None) -> bytes:
    """A frame; ``payload_len`` is what its header claims."""
    frame = bytearray(HEADER_BYTES)
    pack_fields(frame, kind, 0, len(payload) if payload_len is None else payload_len)
    return bytes(frame) + payload


class Stranger:
    """A UCX connection that has proven nothing."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.dropped = asyncio.Event()
        wire.start(self)

    @classmethod
    async def at(cls, port: int) -> Stranger:
        return cls(await transport("ucx").connect(HOST, port, timeout_s=LIMIT_S))

    def say(self, data: bytes) -> None:
        buffer = self._wire.pool.take(len(data))
        buffer.view[: len(data)] = data
        self._wire.send(buffer, len(data))

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        buffer.release()

    def on_lost(self, error: LinkError) -> None:
        self.dropped.set()

    def close(self) -> None:
        self._wire.close()


class Peer:
    """A link of someone who knows the secret; remembers what is said to it."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Message]] = []
        self.frames = 0
        self._news = asyncio.Event()
        self.lost = asyncio.Event()
        self.link: Link

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, cluster: Cluster, port: int, who: Identity | None = None) -> AsyncIterator[Peer]:
        peer = cls()
        peer.link = await connect(
            "ucx", HOST, port, identity=who or identity(), secret=cluster.secret, handler=peer, timeout_s=LIMIT_S
        )
        try:
            yield peer
        finally:
            await peer.link.close("done")

    async def next(self) -> tuple[int, Message]:
        """The next message, with its request id."""
        async with asyncio.timeout(LIMIT_S):
            while not self.said:
                self._news.clear()
                await self._news.wait()
        return self.said.pop(0)

    def say_raw(self, payload: bytes, *, kind: Kind = Kind.CONTROL, payload_len: int | None = None) -> None:
        """Send a frame in turn, whatever is in it and whatever length it claims."""
        frame = bytearray(framed(payload, kind=kind, payload_len=payload_len))
        link = self.link
        pack_fields(
            frame,
            kind,
            1,
            len(payload) if payload_len is None else payload_len,
            seq=link._out.next_seq(),
            ack=link._in.ack(),
        )
        buffer = link._wire.pool.take(len(frame))
        buffer.view[: len(frame)] = frame
        link._wire.send(buffer, len(frame))

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self.said.append((request_id, message))
        self._news.set()

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.frames += 1
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.lost.set()
        self._news.set()


@dataclass(frozen=True)
class Scene:
    """A cluster with eight streams running."""

    cluster: Cluster

    def port(self, role: str) -> int:
        return self.cluster.instance(f"{role}-0").port


@contextlib.asynccontextmanager
async def streams_beside(client: Client, expected: list[Expected]) -> AsyncIterator[None]:
    """Eight streams, one after the other for as long as the block lasts; each must say what the oracle says."""
    over, served = asyncio.Event(), 0

    async def keep_streaming(each: Expected) -> None:
        nonlocal served
        while True:
            answer = await client.stream(each.prompt)
            assert (answer.status, answer.error, answer.text) == (200, None, each.text)
            served += 1
            if over.is_set():
                return

    async with asyncio.TaskGroup() as group:
        for index, each in enumerate(expected[:8]):
            group.create_task(keep_streaming(each), name=f"stream-{index}")
        try:
            yield
        finally:
            over.set()
    assert served >= len(expected[:8])


async def logged(cluster: Cluster, instance: str, *words: str, before: int = 0) -> None:
    """Wait until a line of an instance's log, after its first ``before`` characters, has all ``words``."""

    async def look() -> bool:
        lines = cluster.log(instance)[before:].splitlines()
        return any(all(word in line for word in words) for line in lines)

    await until_async(look, f"{instance} logs {words}")


def hello() -> bytes:
    """A first message of the handshake, well-formed."""
    return encode(Hello(identity=identity(), nonce=bytes(32)))
