"""``python -m benchmarks.gpu.exchange_process DEVICES ORDINAL [PORT ROUNDS SIZES...]``: one end of an exchange.

Without a port it owns a ``DeviceSegment`` and hands its contents over in whatever way it is asked to. With one it asks,
times how long that takes until the bytes are on its own device, compares them, and prints one entry a line. Both run
until they are killed.
``DEVICES`` is the module whose ``open_device`` makes a device of an ordinal.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from benchmarks.gpu.exchange_device import Device
from benchmarks.transport.pingpong import HOST, SECRET, identity

from janus.errors import LinkError
from janus.messages import Message
from janus.transport import InFrame, Kind, Link, LinkOptions, connect, listen
from janus.transport.device_memory import SMALLEST, DeviceEvent, DeviceSegment, PeerDeviceEvent, PeerDeviceMemory
from janus.transport.ucx import import_ucxx

SEGMENT, FILL, IPC, UCX, STAGED = range(5)
#: What is asked for, bytes of it, the pattern's seed.
_REQUEST = struct.Struct("<QQQ")
#: Bytes of the segment's and of the event's export, port of the UCX listener; the exports follow.
_OFFER = struct.Struct("<QQQ")
#: Device code is compiled, and gigabytes are filled, on the loop.
_OPTIONS = LinkOptions(heartbeat_s=10, silence_s=120)
_DEADLINE_S = 120.0
_WARM_UP = 2
#: Copies that follow each other on the stream, where not a turn but the copy itself is timed.
_IN_A_ROW = 20


class Frames:
    """A link's handler that keeps what comes in order."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[InFrame | LinkError] = asyncio.Queue(maxsize=_OPTIONS.credits + 1)

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        raise AssertionError("no messages here")

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.arrived.put_nowait(frame)

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.arrived.put_nowait(error)

    async def next(self) -> InFrame:
        """Return the next frame; raises why the link has ended."""
        found = await self.arrived.get()
        if isinstance(found, LinkError):
            raise found
        return found


def _ucxx() -> Any:
    # Of device memory only what asks its receiver first goes through CUDA IPC; links set a higher threshold.
    os.environ.setdefault("UCX_RNDV_THRESH", "8192")
    ucxx = import_ucxx()
    ucxx.init(progress_mode="thread", enable_python_future=True)
    return ucxx


class Owner:
    """Answers one reader."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._event = DeviceEvent(device.cuda, device.ordinal)
        self._frames = Frames()
        self._endpoint: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Print a port and answer until the reader goes."""

        def handler(link: Any) -> Frames:
            return self._frames

        async def accepted(endpoint: Any) -> None:
            self._endpoint.set_result(endpoint)
            await asyncio.Event().wait()  # ucxx closes the endpoint when this returns

        listener = await listen(
            "shm", HOST, 0, identity=identity("owner"), secret=SECRET, handler_factory=handler, options=_OPTIONS
        )
        self._ucx_listener = _ucxx().create_listener(accepted)
        print(listener.port, flush=True)
        while True:
            frame = await self._frames.next()
            (link,) = listener.links
            what, nbytes, seed = _REQUEST.unpack(frame.payload.data)
            frame.release()
            await self._answer(link, what, nbytes, seed)

    async def _answer(self, link: Link, what: int, nbytes: int, seed: int) -> None:
        device = self._device
        if what == SEGMENT:
            self._segment = DeviceSegment(device.cuda, nbytes, device.ordinal)
            exports = self._segment.export(), self._event.export()
            _post(link, _OFFER.pack(*map(len, exports), self._ucx_listener.port) + b"".join(exports))
            return
        array, _ = self._segment.array(0, nbytes)
        if what == FILL:
            device.fill(array, seed)
            _post(link)
        elif what == IPC:
            self._event.record(device.stream)
            _post(link)
        elif what == UCX:
            await (await self._endpoint).send(array)
        else:
            frame = link.allocate(nbytes)
            device.to_host(array, frame.payload)
            link.post(frame, kind=Kind.COMBINE)


def _post(link: Link, payload: bytes = b"") -> None:
    frame = link.allocate(len(payload))
    frame.payload.data[:] = payload
    link.post(frame, kind=Kind.COMBINE)


class Reader:
    """Asks one owner, and measures."""

    def __init__(self, device: Device, link: Link, frames: Frames) -> None:
        self._device, self._link, self._frames = device, link, frames
        self._memory: PeerDeviceMemory
        self._event: PeerDeviceEvent
        self._endpoint: Any

    @classmethod
    async def connect(cls, device: Device, port: int, largest: int) -> Reader:
        """Return a reader for up to ``largest`` bytes."""
        frames = Frames()
        link = await connect(
            "shm", HOST, port, identity=identity("reader"), secret=SECRET, handler=frames, options=_OPTIONS
        )
        reader = cls(device, link, frames)
        reader._ask(SEGMENT, max(SMALLEST, 1 << (largest - 1).bit_length()))
        offer = (await frames.next()).payload.tobytes()
        memory_bytes, event_bytes, ucx_port = _OFFER.unpack_from(offer)
        memory, event = offer[_OFFER.size :][:memory_bytes], offer[_OFFER.size + memory_bytes :][:event_bytes]
        reader._memory = PeerDeviceMemory.open(device.cuda, memory, device.ordinal)
        reader._event = PeerDeviceEvent.open(device.cuda, event, device.ordinal)
        reader._endpoint = await _ucxx().create_endpoint(HOST, ucx_port)
        return reader

    def _ask(self, what: int, nbytes: int, seed: int = 0) -> None:
        frame = self._link.allocate(_REQUEST.size)
        frame.payload.data[:] = _REQUEST.pack(what, nbytes, seed)
        self._link.post(frame, kind=Kind.DISPATCH)

    async def measure(self, nbytes: int, rounds: int) -> list[dict[str, Any]]:
        """Return an entry per way."""
        target, source = self._device.empty(nbytes), self._device.empty(nbytes)
        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "ipc": lambda: self._ipc(target),
            "ucx": lambda: self._ucx(target),
            "staged": lambda: self._staged(target),
            "memcpy": lambda: self._memcpy(target, source),
        }
        entries = []
        for seed, (way, turn) in enumerate(ways.items(), start=1):
            self._device.fill(source, seed)
            self._ask(FILL, nbytes, seed)
            (await self._frames.next()).release()
            spent = []
            for number in range(_WARM_UP + rounds):
                start = time.perf_counter()
                await asyncio.wait_for(turn(), _DEADLINE_S)
                if number >= _WARM_UP:
                    spent.append(time.perf_counter() - start)
            if not self._device.matches(target, seed):
                raise AssertionError(f"{way}: {nbytes} bytes arrived changed")
            entries.append(
                {"way": way, "bytes": nbytes, **_figures(nbytes, spent), **self._copies(way, target, source)}
            )
        return entries

    async def _ipc(self, target: Any) -> None:
        self._ask(IPC, len(target))
        (await self._frames.next()).release()
        self._event.wait(self._device.stream)
        self._memory.copy_out(0, self._device.address(target), len(target), self._device.stream)
        self._device.synchronize()

    async def _ucx(self, target: Any) -> None:
        self._ask(UCX, len(target))
        await self._endpoint.recv(target)

    async def _staged(self, target: Any) -> None:
        self._ask(STAGED, len(target))
        frame = await self._frames.next()
        self._device.from_host(frame.payload, target)
        frame.release()

    async def _memcpy(self, target: Any, source: Any) -> None:
        self._copy(target, source)
        self._device.synchronize()

    def _copy(self, target: Any, source: Any) -> None:
        device = self._device
        device.cuda.copy(
            device.ordinal, device.address(target), device.address(source), len(target), stream=device.stream
        )

    def _copies(self, way: str, target: Any, source: Any) -> dict[str, float]:
        """Return the GB/s of copies without anything between them, where a way is a copy."""
        if way not in ("ipc", "memcpy"):
            return {}
        device = self._device
        start = time.perf_counter()
        for _ in range(_IN_A_ROW):
            if way == "ipc":
                self._memory.copy_out(0, device.address(target), len(target), device.stream)
            else:
                self._copy(target, source)
        device.synchronize()
        return {"copies_gb_s": round(_IN_A_ROW * len(target) / (time.perf_counter() - start) / 1e9, 3)}


def _figures(nbytes: int, spent_s: list[float]) -> dict[str, float]:
    median = statistics.median(spent_s)
    return {
        "median_us": round(1e6 * median, 2),
        "best_us": round(1e6 * min(spent_s), 2),
        "gb_s": round(nbytes / median / 1e9, 3),
    }


async def _read(device: Device, port: int, rounds: int, sizes: list[int]) -> None:
    reader = await Reader.connect(device, port, max(sizes))
    for nbytes in sizes:
        for entry in await reader.measure(nbytes, rounds):
            print(json.dumps(entry), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Command line."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    module, ordinal, *numbers = sys.argv[1:]
    device: Device = importlib.import_module(module).open_device(int(ordinal))
    if numbers:
        port, rounds, *sizes = map(int, numbers)
        asyncio.run(_read(device, port, rounds, sizes))
    else:

        async def own() -> None:
            await Owner(device).serve()

        asyncio.run(own())


if __name__ == "__main__":
    main()
