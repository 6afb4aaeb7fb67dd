"""Memory of a CUDA device that other processes of the host open and copy from and to, and the events that order it.

The exchange packs on the host; this is what an exchange that stays on the device would hand around.

Nothing here waits for a device. A writer puts its copy on a stream, records its event behind it, and says so, in a
message over a link of any kind; the reader lets its stream wait for that event and puts its own copy behind. Before
the block is written again, the writer's stream waits for the reader's event in the same way. An event stands for what
its last ``record`` found on the stream: use one per stream, and send the message after ``record``.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import struct
import threading
from typing import Any

from janus.transport.buddy import BuddySpace
from janus.transport.cuda import CudaError, CudaRuntime

#: CUDA may cut allocations below 2 MiB out of one block, and a handle opens the whole block.
SMALLEST = 2 << 20
#: What ``cudaMalloc`` aligns to; copies and vector loads from such addresses are whole.
_ALIGNMENT_LOG2 = 8

_VERSION = 1
#: Magic, version, owner, generation, bytes, PCI bus id, handle.
_MEMORY = struct.Struct("<4sI8sQQ16s64s")
_MEMORY_MAGIC = b"JDEV"
#: Magic, version, owner, handle.
_EVENT = struct.Struct("<4sI8s64s")
_EVENT_MAGIC = b"JEVT"
#: Tells this process from others also where they see different process ids.
_PROCESS = secrets.token_bytes(8)
_generations = itertools.count(1)


class _DeviceMemory:
    """``nbytes`` at an address that is valid on ``device``, and lies on ``home``.

    ``home`` is ``None`` for a peer's device that this process does not see; CUDA then finds out from the address.
    """

    nbytes: int
    generation: int
    device: int
    home: int | None
    _cuda: CudaRuntime
    _address: int = 0

    def array(self, offset: int, nbytes: int) -> tuple[Any, int]:
        """Return a new device array ``uint8[nbytes]`` at ``offset``, and its address.

        It keeps this object from being collected, not from being closed.

        Raises:
            ValueError: the range does not lie within.
        """
        address = self._at(offset, nbytes)
        return self._cuda.array(self.device, address, nbytes, self), address

    def copy_in(self, offset: int, source: int, nbytes: int, stream: int) -> None:
        """Put on ``stream`` a copy to ``offset`` of what is at address ``source`` of ``device``.

        Raises:
            ValueError: the range does not lie within.
            CudaError: CUDA refuses the copy.
        """
        self._copy((self.home, self._at(offset, nbytes)), (self.device, source), nbytes, stream)

    def copy_out(self, offset: int, target: int, nbytes: int, stream: int) -> None:
        """Put on ``stream`` a copy of what is at ``offset`` to address ``target`` of ``device``.

        Raises:
            ValueError: the range does not lie within.
            CudaError: CUDA refuses the copy.
        """
        self._copy((self.device, target), (self.home, self._at(offset, nbytes)), nbytes, stream)

    def _copy(self, to: tuple[int | None, int], source: tuple[int | None, int], nbytes: int, stream: int) -> None:
        if to[0] is None or source[0] is None or to[0] == source[0]:
            self._cuda.copy(self.device, to[1], source[1], nbytes, stream)
        else:
            self._cuda.copy_peer((to[0], to[1]), (source[0], source[1]), nbytes, stream)

    def _at(self, offset: int, nbytes: int) -> int:
        if not self._address:
            raise ValueError("this device memory is closed")
        if offset < 0 or nbytes <= 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} are not within {self.nbytes}")
        return self._address + offset

    def close(self) -> None:
        """Give the memory up. May be called twice."""
        address, self._address = self._address, 0
        if address:
            self._give_up(address)

    def _give_up(self, address: int) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        with contextlib.suppress(CudaError):
            self.close()


class DeviceSegment(_DeviceMemory):
    """One allocation of ``nbytes``, a power of two, on ``device``: a ``Segment``, with blocks to give out.

    ``close`` it after all peers have closed theirs: what a peer does with freed memory is undefined.

    Raises:
        ValueError: the size is wrong.
        CudaError: there is no such device, or not so much memory.
    """

    def __init__(self, cuda: CudaRuntime, nbytes: int, device: int = 0) -> None:
        if nbytes < SMALLEST or nbytes & (nbytes - 1):
            raise ValueError(f"a segment of {nbytes} bytes: the size must be a power of two, and {SMALLEST} at least")
        self._cuda = cuda
        self.nbytes = nbytes
        self.device = self.home = device
        self.generation = next(_generations)
        self._space = BuddySpace(nbytes.bit_length() - 1)
        self._lock = threading.Lock()
        self._address = cuda.malloc(device, nbytes)

    @property
    def free_bytes(self) -> int:
        """Bytes that are in no block."""
        return self._space.free_bytes

    def take(self, nbytes: int) -> int | None:
        """Return the offset of a block of at least ``nbytes``, ``None`` if there is none. From any thread."""
        with self._lock:
            return self._space.take(_log2(nbytes))

    def give(self, offset: int, nbytes: int) -> None:
        """Take a block back, with the ``nbytes`` that it was taken for. From any thread.

        Whoever gets it next writes to it at once: let the stream that writes wait for those who still read.
        """
        with self._lock:
            self._space.give(offset, _log2(nbytes))

    def where(self, address: int) -> int | None:
        """Return the offset of ``address``, ``None`` if it lies outside."""
        offset = address - self._address
        return offset if self._address and 0 <= offset < self.nbytes else None

    def discard(self, offset: int, nbytes: int) -> None:
        """Fill a range with zeros, for good on return. A device keeps its pages, unlike the host."""
        self._cuda.clear(self.device, self._at(offset, nbytes), nbytes)

    def export(self) -> bytes:
        """Return what lets a peer of this host ``open`` this segment, to read and to write."""
        handle = self._cuda.memory_handle(self.device, self._at(0, self.nbytes))
        bus_id = self._cuda.bus_id(self.device).encode()
        return _MEMORY.pack(_MEMORY_MAGIC, _VERSION, _PROCESS, self.generation, self.nbytes, bus_id, handle)

    def _give_up(self, address: int) -> None:
        self._cuda.free(self.device, address)


class PeerDeviceMemory(_DeviceMemory):
    """A peer's ``DeviceSegment``, as it is seen from ``device``: a ``PeerMemory``."""

    @classmethod
    def open(cls, cuda: CudaRuntime, exported: bytes, device: int = 0) -> PeerDeviceMemory:
        """Map what a peer has exported, for use from ``device``.

        Raises:
            ValueError: it is no export, of another version, of this process, or says more than there is.
            CudaError: CUDA cannot open it: the owner is gone, or its device cannot be reached from ``device``.
        """
        generation, nbytes, bus_id, handle = _parse(_MEMORY, _MEMORY_MAGIC, "device memory", exported)
        if nbytes < SMALLEST or nbytes & (nbytes - 1):
            raise ValueError(f"the peer's device memory of {nbytes} bytes is no segment")
        try:
            home = cuda.device_at(bus_id.rstrip(b"\0").decode("ascii"))
        except UnicodeDecodeError as error:
            raise ValueError(f"the peer's device {bus_id!r} has no PCI bus id") from error
        memory = cls()
        memory._cuda, memory.nbytes, memory.generation = cuda, nbytes, generation
        memory.device, memory.home = device, home
        memory._address = cuda.open_memory(device, handle)
        extent = cuda.extent(device, memory._address)
        if extent is not None and extent < nbytes:
            memory.close()
            raise ValueError(f"the peer's device memory has {extent} bytes, not {nbytes}")
        return memory

    def _give_up(self, address: int) -> None:
        self._cuda.close_memory(self.device, address)


class _Event:
    def __init__(self, cuda: CudaRuntime, device: int, event: int) -> None:
        self._cuda = cuda
        self._device = device
        self._event = event

    def _open(self) -> int:
        if not self._event:
            raise ValueError("this event is closed")
        return self._event

    def close(self) -> None:
        """Destroy it, at this end; waits that were put on streams stay. May be called twice."""
        event, self._event = self._event, 0
        if event:
            self._cuda.destroy_event(self._device, event)

    def __del__(self) -> None:
        with contextlib.suppress(CudaError):
            self.close()


class DeviceEvent(_Event):
    """What has been put on a stream of ``device``, for peers to wait for.

    Raises:
        CudaError: there is no such device.
    """

    def __init__(self, cuda: CudaRuntime, device: int = 0) -> None:
        self._event = 0  # nothing to destroy if the next line fails
        super().__init__(cuda, device, cuda.create_event(device))

    def record(self, stream: int) -> None:
        """Stand for all that has been put on ``stream`` so far. Tell the peer afterwards."""
        self._cuda.record(self._device, self._open(), stream)

    def export(self) -> bytes:
        """Return what lets a peer of this host ``open`` this event."""
        handle = self._cuda.event_handle(self._device, self._open())
        return _EVENT.pack(_EVENT_MAGIC, _VERSION, _PROCESS, handle)


class PeerDeviceEvent(_Event):
    """A peer's ``DeviceEvent``."""

    @classmethod
    def open(cls, cuda: CudaRuntime, exported: bytes, device: int = 0) -> PeerDeviceEvent:
        """Open what a peer has exported, for streams of ``device``.

        Raises:
            ValueError: it is no export, of another version, or of this process.
            CudaError: CUDA cannot open it.
        """
        (handle,) = _parse(_EVENT, _EVENT_MAGIC, "event", exported)
        return cls(cuda, device, cuda.open_event(device, handle))

    def wait(self, stream: int) -> None:
        """Let what is put on ``stream`` from now on wait for what the peer has recorded; returns at once."""
        self._cuda.wait(self._device, self._open(), stream)


def _log2(nbytes: int) -> int:
    if nbytes <= 0:
        raise ValueError(f"a block of {nbytes} bytes")
    return max((nbytes - 1).bit_length(), _ALIGNMENT_LOG2)


def _parse(layout: struct.Struct, wanted: bytes, what: str, exported: bytes) -> tuple[Any, ...]:
    """Return the fields behind the owner."""
    if len(exported) != layout.size or not exported.startswith(wanted):
        raise ValueError(f"what the peer shares is no {what} ({len(exported)} bytes)")
    _, version, owner, *rest = layout.unpack(exported)
    if version != _VERSION:
        raise ValueError(f"{what} of version {version}, this side speaks {_VERSION}")
    if owner == _PROCESS:
        raise ValueError(f"{what} of this process: CUDA opens handles in other processes only, use the original")
    return tuple(rest)
