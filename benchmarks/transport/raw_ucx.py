"""What ucxx itself takes for a round trip, with nothing of Janus on the path: the yardstick for links over UCX.

"ucxx": its Cython layer, progressed by the event loop when UCX's epoll descriptor says so, as the engine of
`src/janus/transport/ucx.py` does; receives are posted before the message is due, into memory that is made once.
"ucxx-probe": the same without knowing what comes: messages are probed for, as links must, and received after that.
"ucxx-public": ``ucxx.Endpoint`` as its users have it, with a progress thread and Python futures.

Both see the environment that Janus sets for UCX. The size of the messages to come is told in a message of its own.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from janus.transport.frame import HEADER_BYTES
from janus.transport.ucx import import_ucxx

_PLAN = struct.Struct("<QQ")  # bytes per message, round trips


class _Worker:
    """A UCX worker on the running loop, with at most one receive under way."""

    def __init__(self, *, probing: bool) -> None:
        lib = import_ucxx()._lib
        self.api, self.array = lib.libucxx, lib.arr.Array
        features = tuple(self.api.Feature[name] for name in ("TAG", "WAKEUP"))
        self._context = self.api.UCXContext({}, feature_flags=features)
        self.worker = self.api.UCXWorker(self._context)
        self.worker.init_blocking_progress_mode()
        self.endpoint: Any = None
        self._probing = probing
        self._wanted: Any = None
        self._receiving: Any = None
        self._received: Callable[[], None] | None = None
        self._sending: Any = None
        self._to_server, self._to_client = self.api.UCXXTag(1), self.api.UCXXTag(2)
        asyncio.get_running_loop().add_reader(self.worker.epoll_file_descriptor, self.pump)

    def listen(self) -> int:
        """Return the port."""
        self._listener = self.api.UCXListener.create(self.worker, 0, self._accept, deliver_endpoint=True)
        self._tags = self._to_client, self._to_server
        port: int = self._listener.port
        return port

    def _accept(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    def connect(self, host: str, port: int) -> None:
        self.endpoint = self.api.UCXEndpoint.create(self.worker, host, port, True)
        self._tags = self._to_server, self._to_client

    def receive(self, memory: Any, received: Callable[[], None]) -> None:
        """Receive one message; ``received`` is called from the pump."""
        self._received = received
        if self._probing:
            self._wanted = memory
        else:
            self._receiving = self.worker.tag_recv(memory, self._tags[1])

    def send(self, memory: Any) -> None:
        """Send; the last message was answered, so its request is complete."""
        self._sending = self.endpoint.tag_send(memory, self._tags[0])

    def pump(self) -> None:
        """Progress UCX until it is armed."""
        while True:
            self.worker.progress()
            if self._wanted is not None:
                probe = self.worker.tag_probe(self._tags[1], self.api.UCXXTagMaskFull, True)
                if probe.matched:
                    self._receiving, self._wanted = self.worker.tag_recv_with_handle(self._wanted, probe), None
            if self._receiving is not None and self._receiving.completed:
                self._receiving.check_error()
                received, self._receiving = self._received, None
                assert received is not None
                received()
            elif self.worker.arm():
                return


class RawServer:
    """Echoes."""

    def __init__(self, *, probing: bool) -> None:
        self._raw = _Worker(probing=probing)
        self.port = self._raw.listen()
        self._plan = bytearray(_PLAN.size)
        self._plan_array = self._raw.array(self._plan)
        self._raw.receive(self._plan_array, self._planned)

    def _planned(self) -> None:
        size, self._left = _PLAN.unpack(self._plan)
        self._in, self._out = (self._raw.array(np.ones(size, np.uint8)) for _ in range(2))
        self._raw.receive(self._in, self._echo)

    def _echo(self) -> None:
        self._raw.send(self._out)
        self._left -= 1
        if self._left:
            self._raw.receive(self._in, self._echo)
        else:
            self._raw.receive(self._plan_array, self._planned)


class RawClient:
    """Measures against ``RawServer``."""

    def __init__(self, host: str, port: int, *, probing: bool) -> None:
        self._raw = _Worker(probing=probing)
        self._raw.connect(host, port)
        self._raw.pump()

    async def trips(self, size: int, count: int) -> list[float]:
        """Return the seconds of each of ``count`` round trips of ``size`` bytes and what a frame's header takes."""
        raw, loop = self._raw, asyncio.get_running_loop()
        size += HEADER_BYTES
        plan = raw.array(bytearray(_PLAN.pack(size, count)))
        raw.send(plan)
        received, sent = (raw.array(np.ones(size, np.uint8)) for _ in range(2))
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            arrived = loop.create_future()
            raw.receive(received, lambda arrived=arrived: arrived.set_result(None))  # type: ignore[misc]
            raw.send(sent)
            raw.pump()
            await arrived
            samples.append(time.perf_counter() - start)
        return samples


def _public() -> Any:
    ucxx = import_ucxx()
    ucxx.init(progress_mode="thread", enable_python_future=True)
    return ucxx


class PublicServer:
    """Echoes, over the public API."""

    def __init__(self) -> None:
        self._listener = _public().create_listener(self._serve)
        self.port: int = self._listener.port

    async def _serve(self, endpoint: Any) -> None:
        plan = bytearray(_PLAN.size)
        while True:
            await endpoint.recv(plan)
            size, count = _PLAN.unpack(plan)
            received, sent = np.ones(size, np.uint8), np.ones(size, np.uint8)
            for _ in range(count):
                await endpoint.recv(received)
                await endpoint.send(sent)


class PublicClient:
    """Measures against ``PublicServer``."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    @classmethod
    async def connect(cls, host: str, port: int) -> PublicClient:
        return cls(await _public().create_endpoint(host, port))

    async def trips(self, size: int, count: int) -> list[float]:
        """Return the seconds of each of ``count`` round trips of ``size`` bytes and what a frame's header takes."""
        size += HEADER_BYTES
        await self._endpoint.send(bytearray(_PLAN.pack(size, count)))
        received, sent = np.ones(size, np.uint8), np.ones(size, np.uint8)
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            await self._endpoint.send(sent)
            await self._endpoint.recv(received)
            samples.append(time.perf_counter() - start)
        return samples
