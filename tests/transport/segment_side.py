"""One process's side of shared memory as the tests drive it, of any kind; ``python -m`` it is the other side.

The kinds: ``host`` is a memfd; ``host-cuda`` device memory on a ``HostCuda``, ``host-cupy`` the same beneath the calls
that are made to CuPy; ``cuda`` is device memory on a device.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from janus.errors import ConfigError
from janus.transport.cuda import CudaError, CudaRuntime, CupyRuntime
from janus.transport.device_memory import DeviceEvent, DeviceSegment, PeerDeviceEvent, PeerDeviceMemory
from janus.transport.segment import HostSegment, PeerMemory, PeerSegment, Segment
from tests.transport.host_cuda import HostCuda
from tests.transport.host_cupy import runtime_on

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
_LARGEST = 1 << 16


class Side:
    """Owns a segment or has opened the other side's; both are used through ``memory``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.memory: Any = None

    def make(self, nbytes: int) -> bytes:
        """Own a segment of ``nbytes``; return what it exports, as far as that is bytes."""
        segment: Segment[int] = HostSegment(nbytes)
        self.memory = segment
        return b""

    @property
    def fds(self) -> list[int]:
        """Return the descriptors that go with what is exported."""
        return [self.memory.export()]

    def open(self, exported: bytes, fds: list[int]) -> int:
        """Open what the other side exports; return its size."""
        memory: PeerMemory = PeerSegment.open(fds[0])
        os.close(fds[0])
        self.memory = memory
        return memory.nbytes

    def put(self, offset: int, content: bytes) -> None:
        """Write through an array."""
        self.memory.array(offset, len(content))[0][:] = np.frombuffer(content, np.uint8)

    def get(self, offset: int, nbytes: int) -> bytes:
        """Read through an array."""
        return bytes(self.memory.array(offset, nbytes)[0].tobytes())

    def close(self) -> None:
        """Have no memory any more."""
        self.memory = None


class DeviceSide(Side):
    """Has one stream and one event besides, and knows one event of the other side."""

    def __init__(self, kind: str, device: int = 0, visible: tuple[str, ...] = ()) -> None:
        super().__init__(kind)
        self.device = device
        self.cuda: CudaRuntime
        self._host: HostCuda | None = None
        if kind == "cuda":
            self.cuda = CupyRuntime()
            import cupy

            with cupy.cuda.Device(device):
                self._cupy_stream = cupy.cuda.Stream(non_blocking=True)
            self.stream = self._cupy_stream.ptr
        else:
            self._host = HostCuda(*([tuple(visible)] if visible else []))
            self.cuda = self._host if kind == "host-cuda" else runtime_on(self._host)
            self.stream = self._host.stream(device)
        self._event = DeviceEvent(self.cuda, device)
        self._theirs: PeerDeviceEvent | None = None
        self._scratch: list[tuple[int, int]] = []

    def make(self, nbytes: int) -> bytes:
        segment: Segment[bytes] = DeviceSegment(self.cuda, nbytes, self.device)
        self.memory = segment
        return segment.export()

    @property
    def fds(self) -> list[int]:
        return []

    def open(self, exported: bytes, fds: list[int]) -> int:
        memory: PeerMemory = PeerDeviceMemory.open(self.cuda, exported, self.device)
        self.memory = memory
        return memory.nbytes

    def put(self, offset: int, content: bytes) -> None:
        self._put(self.memory.array(offset, len(content))[0], content)

    def get(self, offset: int, nbytes: int) -> bytes:
        return self._get(self.memory.array(offset, nbytes)[0])

    def close(self) -> None:
        self.synchronize()
        if self.memory is not None:
            self.memory.close()
        self._event.close()
        if self._theirs is not None:
            self._theirs.close()
        for address, _ in self._scratch:
            self.cuda.free(self.device, address)
        self._scratch.clear()
        super().close()
        if self._host is not None:
            self._host.shut_down()

    def held(self) -> list[int]:
        """Return how many allocations and events there are."""
        assert self._host is not None
        return list(self._host.held)

    def peer_copies(self) -> list[list[int]]:
        """Return the devices of each copy between two."""
        assert self._host is not None
        return [list(copy) for copy in self._host.peer_copies]

    # -- on the stream ----------------------------------------------------------------------------------------------

    def copy_in(self, offset: int, content: bytes) -> None:
        """Put a copy into the segment on the stream."""
        address = self._allocate(len(content))
        self._put(self.cuda.array(self.device, address, len(content), None), content)
        self.memory.copy_in(offset, address, len(content), self.stream)

    def copy_out(self, offset: int, nbytes: int) -> None:
        """Put a copy out of the segment on the stream."""
        self.memory.copy_out(offset, self._allocate(nbytes), nbytes, self.stream)

    def copied(self) -> bytes:
        """Finish the stream; return what the last ``copy_out`` has brought."""
        self.synchronize()
        address, nbytes = self._scratch[-1]
        return self._get(self.cuda.array(self.device, address, nbytes, None))

    def synchronize(self) -> None:
        """Finish the stream."""
        if self._host is not None:
            self._host.synchronize(self.stream)
        else:
            self._cupy_stream.synchronize()

    def export_event(self) -> bytes:
        """Return what lets the other side wait for this side's event."""
        return self._event.export()

    def open_event(self, exported: bytes) -> None:
        """Know the other side's event."""
        self._theirs = PeerDeviceEvent.open(self.cuda, exported, self.device)

    def record(self) -> None:
        """Record this side's event on the stream."""
        self._event.record(self.stream)

    def wait(self) -> None:
        """Let the stream wait for the other side's event."""
        assert self._theirs is not None
        self._theirs.wait(self.stream)

    def _allocate(self, nbytes: int) -> int:
        address = self.cuda.malloc(self.device, nbytes)
        self._scratch.append((address, nbytes))
        return address

    def _put(self, array: Any, content: bytes) -> None:
        if self._host is not None:
            array[:] = np.frombuffer(content, np.uint8)
        else:
            array.set(np.frombuffer(content, np.uint8))
            array.device.synchronize()

    def _get(self, array: Any) -> bytes:
        return bytes(array.tobytes())


def has_cuda() -> bool:
    """Return whether there is a CUDA device, and CuPy."""
    try:
        CupyRuntime()
    except ConfigError:
        return False
    return True


#: For ``pytest.fixture(params=...)``.
DEVICE_KINDS = [
    "host-cuda",
    "host-cupy",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")]),
]


def side(kind: str, *options: Any) -> Side:
    """Return this process's side. Options, of device memory: the device, the bus ids that are visible."""
    return Side(kind) if kind == "host" else DeviceSide(kind, *options)


class OtherSide:
    """A ``Side`` in another process; its errors come back as ``RuntimeError``."""

    def __init__(self, kind: str, *options: Any) -> None:
        self.kind = kind
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(DEADLINE_S)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self.call("side", kind, *options)

    def call(self, method: str, *arguments: Any, fds: list[int] | None = None) -> Any:
        """Call a method over there."""
        socket.send_fds(self._socket, [msgspec.msgpack.encode([method, arguments])], fds or [])
        answer = self._socket.recv(_LARGEST)
        if not answer:
            raise RuntimeError("the other side has died")
        problem, result = msgspec.msgpack.decode(answer)
        if problem:
            raise RuntimeError(problem)
        return result

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self._socket.close()


def main() -> None:
    """Do what the other side says until it is gone."""
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        ours: Side | None = None
        while True:
            order, fds, _, _ = socket.recv_fds(orders, _LARGEST, 4)
            if not order:
                return
            method, arguments = msgspec.msgpack.decode(order)
            problem, result = "", None
            try:
                if method == "side":
                    ours = side(*arguments)
                else:
                    result = getattr(ours, method)(*arguments, *([fds] if method == "open" else []))
            except (ValueError, CudaError) as error:
                problem = f"{type(error).__name__}: {error}"
            orders.send(msgspec.msgpack.encode([problem, result]))


if __name__ == "__main__":
    main()
