"""The part of the CUDA runtime that device memory shared between processes needs, and CuPy's implementation of it.

Addresses, streams and events are the plain integers that CUDA, CuPy and torch hand around (``stream.ptr``,
``torch.cuda.Stream.cuda_stream``); 0 is the device's default stream.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, Protocol

from janus.errors import ConfigError

#: Bytes in what ``cudaIpcGetMemHandle`` and ``cudaIpcGetEventHandle`` return.
HANDLE_BYTES = 64
_MEMCPY_DEFAULT = 4  # cudaMemcpyDefault: the addresses tell where they are
_EVENT_FLAGS = 2 | 4  # cudaEventDisableTiming | cudaEventInterprocess; the second is refused without the first
_LAZY_PEER_ACCESS = 1  # cudaIpcMemLazyEnablePeerAccess: the only flag there is, and required


class CudaError(OSError):
    """A call of the CUDA runtime failed."""


class CudaRuntime(Protocol):
    """What is called on ``device``, an ordinal in this process, raises ``CudaError`` when CUDA refuses it."""

    def bus_id(self, device: int) -> str:
        """Return the PCI bus id: what names a device in every process, whatever its ordinal there."""

    def device_at(self, bus_id: str) -> int | None:
        """Return the ordinal of a device, ``None`` if this process does not see it."""

    def malloc(self, device: int, nbytes: int) -> int:
        """Return the address of new memory; its contents are arbitrary."""

    def free(self, device: int, address: int) -> None:
        """Free what ``malloc`` returned."""

    def clear(self, device: int, address: int, nbytes: int) -> None:
        """Fill with zeros; they are there on return."""

    def extent(self, device: int, address: int) -> int | None:
        """Return the bytes from ``address`` to the end of its allocation, ``None`` if that cannot be told."""

    def array(self, device: int, address: int, nbytes: int, owner: object) -> Any:
        """Return an array ``uint8[nbytes]`` on memory, which keeps ``owner`` alive."""

    def memory_handle(self, device: int, address: int) -> bytes:
        """Return the handle by which another process opens an allocation."""

    def open_memory(self, device: int, handle: bytes) -> int:
        """Map another process's allocation for use from ``device``. As often as it is opened it must be closed."""

    def close_memory(self, device: int, address: int) -> None:
        """Undo one ``open_memory``."""

    def create_event(self, device: int) -> int:
        """Return an event that other processes can open."""

    def event_handle(self, device: int, event: int) -> bytes:
        """Return the handle by which another process opens an event of this one."""

    def open_event(self, device: int, handle: bytes) -> int:
        """Open another process's event."""

    def destroy_event(self, device: int, event: int) -> None:
        """Destroy an event that was created or opened here."""

    def record(self, device: int, event: int, stream: int) -> None:
        """Let ``event`` stand for all that has been put on ``stream`` so far."""

    def wait(self, device: int, event: int, stream: int) -> None:
        """Let what is put on ``stream`` from now on wait for what ``event`` stands for now; the host does not wait."""

    def copy(self, device: int, target: int, source: int, nbytes: int, stream: int) -> None:
        """Put a copy on ``stream``."""

    def copy_peer(self, to: tuple[int, int], source: tuple[int, int], nbytes: int, stream: int) -> None:
        """Put a copy between two devices, each end a device and an address, on ``stream``."""


class CupyRuntime:
    """``CudaRuntime`` by CuPy. Its memory pools are not used: a handle opens the whole of what a block was cut from.

    Raises:
        ConfigError: CuPy, the driver or a device is missing.
    """

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            remedy = "install Janus with the extra cu12 or cu13"
            raise ConfigError("device memory", f"CuPy cannot be imported ({error})", remedy) from error
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        try:
            if not self._runtime.getDeviceCount():
                raise OSError("none is visible")
            self._driver = ctypes.CDLL("libcuda.so.1")
        except (self._runtime.CUDARuntimeError, OSError) as error:
            remedy = "run on a machine with an NVIDIA driver, and check CUDA_VISIBLE_DEVICES"
            raise ConfigError("device memory", f"no CUDA device ({error})", remedy) from error

    @contextlib.contextmanager
    def _on(self, device: int, doing: str) -> Iterator[None]:
        try:
            with self._cupy.cuda.Device(device):
                yield
        except self._runtime.CUDARuntimeError as error:
            raise CudaError(f"cannot {doing} on device {device}: {error}") from error

    def bus_id(self, device: int) -> str:
        with self._on(device, "name the device"):
            return str(self._runtime.deviceGetPCIBusId(device))

    def device_at(self, bus_id: str) -> int | None:
        try:
            return int(self._runtime.deviceGetByPCIBusId(bus_id))
        except self._runtime.CUDARuntimeError:
            return None

    def malloc(self, device: int, nbytes: int) -> int:
        with self._on(device, f"allocate {nbytes} bytes"):
            return int(self._runtime.malloc(nbytes))

    def free(self, device: int, address: int) -> None:
        with self._on(device, "free memory"):
            self._runtime.free(address)

    def clear(self, device: int, address: int, nbytes: int) -> None:
        with self._on(device, f"clear {nbytes} bytes"):
            self._runtime.memset(address, 0, nbytes)
            self._runtime.streamSynchronize(0)

    def extent(self, device: int, address: int) -> int | None:
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        with self._on(device, "look up memory"):
            # Not in CuPy. Of memory that was opened by a handle some drivers may not tell.
            failed = self._driver.cuMemGetAddressRange_v2(
                ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address)
            )
        return None if failed else base.value + size.value - address

    def array(self, device: int, address: int, nbytes: int, owner: object) -> Any:
        memory = self._cupy.cuda.UnownedMemory(address, nbytes, owner, device)
        with self._cupy.cuda.Device(device):
            return self._cupy.ndarray((nbytes,), self._cupy.uint8, self._cupy.cuda.MemoryPointer(memory, 0))

    def memory_handle(self, device: int, address: int) -> bytes:
        with self._on(device, "export memory"):
            return bytes(self._runtime.ipcGetMemHandle(address))

    def open_memory(self, device: int, handle: bytes) -> int:
        with self._on(device, "open a peer's memory (is its device reachable, and do both share an IPC namespace?)"):
            return int(self._runtime.ipcOpenMemHandle(handle, _LAZY_PEER_ACCESS))

    def close_memory(self, device: int, address: int) -> None:
        with self._on(device, "close a peer's memory"):
            self._runtime.ipcCloseMemHandle(address)

    def create_event(self, device: int) -> int:
        with self._on(device, "create an event"):
            return int(self._runtime.eventCreateWithFlags(_EVENT_FLAGS))

    def event_handle(self, device: int, event: int) -> bytes:
        with self._on(device, "export an event"):
            return bytes(self._runtime.ipcGetEventHandle(event))

    def open_event(self, device: int, handle: bytes) -> int:
        with self._on(device, "open a peer's event"):
            return int(self._runtime.ipcOpenEventHandle(handle))

    def destroy_event(self, device: int, event: int) -> None:
        with self._on(device, "destroy an event"):
            self._runtime.eventDestroy(event)

    def record(self, device: int, event: int, stream: int) -> None:
        with self._on(device, "record an event"):
            self._runtime.eventRecord(event, stream)

    def wait(self, device: int, event: int, stream: int) -> None:
        with self._on(device, "wait for an event"):
            self._runtime.streamWaitEvent(stream, event)

    def copy(self, device: int, target: int, source: int, nbytes: int, stream: int) -> None:
        with self._on(device, f"copy {nbytes} bytes"):
            self._runtime.memcpyAsync(target, source, nbytes, _MEMCPY_DEFAULT, stream)

    def copy_peer(self, to: tuple[int, int], source: tuple[int, int], nbytes: int, stream: int) -> None:
        with self._on(to[0], f"copy {nbytes} bytes from device {source[0]}"):
            self._runtime.memcpyPeerAsync(to[1], to[0], source[1], source[0], nbytes, stream)
