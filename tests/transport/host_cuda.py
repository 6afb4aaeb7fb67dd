"""``CudaRuntime`` without a device: the same semantics on host memory, between real processes.

- Memory is a memfd. Its handle is what another process opens it by; in its own process it opens nothing, as in CUDA.
- Whatever is put on a stream happens as late as CUDA allows: when that stream is synchronised, or when another one, in
  any process, gets to a wait for an event behind it. So who forgets an event sees stale bytes, each time.
- Addresses, devices, handles and events are checked; what CUDA calls undefined is an error here.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import secrets
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from janus.transport.cuda import HANDLE_BYTES, CudaError

BUS_IDS = ("0000:17:00.0", "0000:65:00.0")
_MEMORY = struct.Struct("<iiQQ16s")
_EVENT = struct.Struct("<i8sQ")
_ASK = struct.Struct("<QQ")
_DEADLINE_S = 10.0
#: What new memory is full of, so that nobody takes it for zeros.
UNWRITTEN = 0xA5


@dataclass(kw_only=True)
class _Memory:
    bytes_: npt.NDArray[np.uint8]
    bus_id: str
    fd: int = -1
    handle: bytes = b""
    opened: int = 0


@dataclass(kw_only=True)
class _Stream:
    device: int
    work: deque[Callable[[], None]] = field(default_factory=deque)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def run(self, until: Callable[[], bool]) -> None:
        with self.lock:
            while self.work and not until():
                self.work.popleft()()


@dataclass(kw_only=True)
class _Event:
    """``owner`` is ``None`` for an event of this process."""

    device: int
    owner: tuple[str, int] | None = None
    recorded: int = 0
    completed: int = 0
    streams: dict[int, _Stream] = field(default_factory=dict)


class HostCuda:
    """``visible``: the bus ids of the devices that this process sees, in the order of their ordinals here."""

    def __init__(self, visible: tuple[str, ...] = BUS_IDS) -> None:
        self.visible = visible
        self._memory: dict[int, _Memory] = {}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, _Event] = {}
        self._numbers = itertools.count(1)
        self._token = secrets.token_bytes(8)
        self._listener: socket.socket | None = None
        #: Devices of each copy between two devices: to, from.
        self.peer_copies: list[tuple[int, int]] = []

    # -- what the tests use besides ---------------------------------------------------------------------------------

    def stream(self, device: int = 0) -> int:
        """Return a new stream."""
        number = next(self._numbers)
        self._streams[number] = _Stream(device=device)
        return number

    def synchronize(self, stream: int) -> None:
        """Do what is on the stream."""
        self._streams[stream].run(until=lambda: False)

    @property
    def held(self) -> tuple[int, int]:
        """Allocations that are allocated or open, and events."""
        return len(self._memory), len(self._events)

    def shut_down(self) -> None:
        """Stop answering other processes."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    # -- devices and memory -----------------------------------------------------------------------------------------

    def bus_id(self, device: int) -> str:
        if not 0 <= device < len(self.visible):
            raise CudaError(f"no device {device}")
        return self.visible[device]

    def device_at(self, bus_id: str) -> int | None:
        return self.visible.index(bus_id) if bus_id in self.visible else None

    def malloc(self, device: int, nbytes: int) -> int:
        bus_id = self.bus_id(device)
        fd = os.memfd_create("host-cuda", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        memory = np.frombuffer(mmap.mmap(fd, nbytes), np.uint8)
        memory[:] = UNWRITTEN
        packed = _MEMORY.pack(os.getpid(), fd, os.fstat(fd).st_ino, nbytes, bus_id.encode())
        handle = packed.ljust(HANDLE_BYTES, b"\0")
        self._memory[memory.ctypes.data] = _Memory(bytes_=memory, bus_id=bus_id, fd=fd, handle=handle)
        return memory.ctypes.data

    def free(self, device: int, address: int) -> None:
        memory = self._memory.get(address)
        if memory is None or memory.fd < 0 or memory.bus_id != self.bus_id(device):
            raise CudaError("invalid argument: not from malloc, freed already, or of another device")
        del self._memory[address]
        os.close(memory.fd)

    def clear(self, device: int, address: int, nbytes: int) -> None:
        self._locate(address, nbytes)[0][:] = 0

    def extent(self, device: int, address: int) -> int | None:
        start, nbytes = self.allocation(address)
        return start + nbytes - address

    def allocation(self, address: int) -> tuple[int, int]:
        """Return start and size of what ``address`` lies in."""
        memory, extent = self._find(address)
        return address + extent - len(memory.bytes_), len(memory.bytes_)

    def array(self, device: int, address: int, nbytes: int, owner: object) -> npt.NDArray[np.uint8]:
        memory = self._locate(address, nbytes)[0]
        raw = (ctypes.c_uint8 * nbytes).from_address(memory.ctypes.data)
        raw._keeps = memory, owner  # type: ignore[attr-defined]
        return np.ctypeslib.as_array(raw)

    def memory_handle(self, device: int, address: int) -> bytes:
        memory = self._memory.get(address)
        if memory is None or memory.fd < 0:
            raise CudaError("invalid argument: no allocation of this process")
        return memory.handle

    def open_memory(self, device: int, handle: bytes) -> int:
        self.bus_id(device)
        pid, fd, inode, nbytes, bus_id = _MEMORY.unpack_from(handle)
        if pid == os.getpid():
            raise CudaError("invalid device context: the handle is of this process")
        for address, known in self._memory.items():
            if known.handle == handle:
                known.opened += 1
                return address
        try:
            ours = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        except OSError as error:
            raise CudaError("invalid resource handle: the owner or the memory is gone") from error
        try:
            if os.fstat(ours).st_ino != inode:
                raise CudaError("invalid resource handle: the memory was freed")
            memory = np.frombuffer(mmap.mmap(ours, nbytes), np.uint8)
        finally:
            os.close(ours)
        opened = _Memory(bytes_=memory, bus_id=bus_id.rstrip(b"\0").decode(), handle=handle, opened=1)
        self._memory[memory.ctypes.data] = opened
        return memory.ctypes.data

    def close_memory(self, device: int, address: int) -> None:
        memory = self._memory.get(address)
        if memory is None or not memory.opened:
            raise CudaError("invalid argument: not open")
        memory.opened -= 1
        if not memory.opened:
            del self._memory[address]

    def _find(self, address: int) -> tuple[_Memory, int]:
        for start, memory in self._memory.items():
            if 0 <= address - start < len(memory.bytes_):
                return memory, len(memory.bytes_) - (address - start)
        raise CudaError("an illegal memory access")

    def _locate(self, address: int, nbytes: int) -> tuple[npt.NDArray[np.uint8], str]:
        memory, extent = self._find(address)
        if nbytes > extent:
            raise CudaError("an illegal memory access")
        start = len(memory.bytes_) - extent
        return memory.bytes_[start : start + nbytes], memory.bus_id

    # -- copies -----------------------------------------------------------------------------------------------------

    def copy(self, device: int, target: int, source: int, nbytes: int, stream: int) -> None:
        to, of = self._locate(target, nbytes)[0], self._locate(source, nbytes)[0]
        self._streams[stream].work.append(lambda: np.copyto(to, of))

    def copy_peer(self, to: tuple[int, int], source: tuple[int, int], nbytes: int, stream: int) -> None:
        for device, address in (to, source):
            if self._locate(address, nbytes)[1] != self.bus_id(device):
                raise CudaError(f"invalid value: that address is not on device {device}")
        self.peer_copies.append((to[0], source[0]))
        self.copy(to[0], to[1], source[1], nbytes, stream)

    # -- events -----------------------------------------------------------------------------------------------------

    def create_event(self, device: int) -> int:
        self.bus_id(device)
        number = next(self._numbers)
        self._events[number] = _Event(device=device)
        return number

    def event_handle(self, device: int, event: int) -> bytes:
        if self._events[event].owner is not None:
            raise CudaError("invalid resource handle: an event of another process")
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(_name(os.getpid(), self._token))
            self._listener.listen(64)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return _EVENT.pack(os.getpid(), self._token, event).ljust(HANDLE_BYTES, b"\0")

    def open_event(self, device: int, handle: bytes) -> int:
        pid, token, number = _EVENT.unpack_from(handle)
        if pid == os.getpid():
            raise CudaError("invalid device context: the handle is of this process")
        owner = _name(pid, token), number
        _ask(owner, 0)
        event = _Event(device=device, owner=owner)
        opened = next(self._numbers)
        self._events[opened] = event
        return opened

    def destroy_event(self, device: int, event: int) -> None:
        del self._events[event]

    def record(self, device: int, event: int, stream: int) -> None:
        found, work = self._events[event], self._streams[stream]
        if found.device != work.device:
            raise CudaError("invalid resource handle: event and stream are of different devices")
        found.recorded += 1
        number = found.recorded
        found.streams[number] = work

        def complete() -> None:
            found.completed = number

        work.work.append(complete)

    def wait(self, device: int, event: int, stream: int) -> None:
        found = self._events[event]
        # What it stands for is settled now, not when the stream gets there.
        number = found.recorded if found.owner is None else _ask(found.owner, 0)
        self._streams[stream].work.append(lambda: self._reach(found, number))

    def _reach(self, event: _Event, number: int) -> None:
        """Do whatever comes before record ``number`` of ``event``."""
        if event.owner is not None:
            if number:
                _ask(event.owner, number)
        elif event.completed < number:
            event.streams[number].run(until=lambda: event.completed >= number)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:
                return
            # One thread each: what is asked for may make this process ask back.
            threading.Thread(target=self._answer, args=(asking,), daemon=True).start()

    def _answer(self, asking: socket.socket) -> None:
        with asking:
            asking.settimeout(_DEADLINE_S)
            number, until = _ASK.unpack(asking.recv(_ASK.size, socket.MSG_WAITALL))
            event = self._events.get(number)
            if event is None:
                return  # which the other end sees
            self._reach(event, until)
            asking.sendall(_ASK.pack(number, event.recorded))


def _name(pid: int, token: bytes) -> str:
    return f"\0host-cuda-{pid}-{token.hex()}"


def _ask(owner: tuple[str, int], until: int) -> int:
    """Have another process reach record ``until`` of its event; return how many it has recorded."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_DEADLINE_S)
            asking.connect(owner[0])
            asking.sendall(_ASK.pack(owner[1], until))
            answer = asking.recv(_ASK.size, socket.MSG_WAITALL)
    except OSError as error:
        raise CudaError(f"invalid resource handle: the event's process does not answer ({error})") from error
    if not answer:
        raise CudaError("invalid resource handle: no such event")
    recorded: int = _ASK.unpack(answer)[1]
    return recorded
