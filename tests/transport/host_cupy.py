"""The part of CuPy that ``CupyRuntime`` calls, with CuPy's names and order of arguments, on a ``HostCuda``.

So all of ``CupyRuntime`` runs without a device, down to the calls that it makes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any
from unittest import mock

import numpy as np

from janus.transport.cuda import CudaError, CupyRuntime
from tests.transport.host_cuda import HostCuda


class CUDARuntimeError(RuntimeError):
    """As CuPy's: no ``OSError``."""


def runtime_on(host: HostCuda) -> CupyRuntime:
    """Return a ``CupyRuntime`` whose device memory is that of ``host``."""
    with (
        mock.patch.dict(sys.modules, {"cupy": _cupy(host)}),
        mock.patch.object(ctypes, "CDLL", lambda name: _Driver(host, name)),
    ):
        return CupyRuntime()


class _Driver:
    def __init__(self, host: HostCuda, name: str) -> None:
        assert name == "libcuda.so.1"
        self._host = host

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, address: Any) -> int:
        base._obj.value, size._obj.value = self._host.allocation(address.value)
        return 0


class _Current(threading.local):
    device = 0


def _cupy(host: HostCuda) -> ModuleType:
    current = _Current()

    class Device:
        def __init__(self, device: int) -> None:
            self.id = device

        def __enter__(self) -> None:
            self._before = current.device
            if self.id >= len(host.visible):
                raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
            current.device = self.id

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
        ) -> None:
            current.device = self._before

    def ndarray(shape: tuple[int], dtype: type, memptr: tuple[tuple[int, int, object, int], int]) -> Any:
        (address, nbytes, owner, device), offset = memptr
        assert (shape, dtype, offset, device) == ((nbytes,), np.uint8, 0, current.device)
        return host.array(device, address, nbytes, owner)

    cupy = ModuleType("cupy")
    cupy.uint8 = np.uint8  # type: ignore[attr-defined]
    cupy.ndarray = ndarray  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=Device,
        UnownedMemory=lambda ptr, size, owner, device_id: (ptr, size, owner, device_id),
        MemoryPointer=lambda mem, offset: (mem, offset),
        runtime=_Runtime(host, current),
    )
    return cupy


class _Runtime:
    """``cupy.cuda.runtime``: the signatures are those of CuPy 14."""

    CUDARuntimeError = CUDARuntimeError

    def __init__(self, host: HostCuda, current: _Current) -> None:
        self._host, self._current = host, current

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name == "CUDARuntimeError":
            return found

        def called(*arguments: Any) -> Any:
            try:
                return found(*arguments)
            except CudaError as error:
                raise CUDARuntimeError(str(error)) from error

        return called

    def getDeviceCount(self) -> int:
        return len(self._host.visible)

    def deviceGetPCIBusId(self, device: int) -> str:
        return self._host.bus_id(device)

    def deviceGetByPCIBusId(self, pci_bus_id: str) -> int:
        device = self._host.device_at(pci_bus_id)
        if device is None:
            raise CudaError("cudaErrorInvalidDevice")
        return device

    def malloc(self, size: int) -> int:
        return self._host.malloc(self._current.device, size)

    def free(self, ptr: int) -> None:
        self._host.free(self._current.device, ptr)

    def memset(self, ptr: int, value: int, size: int) -> None:
        assert value == 0
        self._host.clear(self._current.device, ptr, size)

    def streamSynchronize(self, stream: int) -> None:
        if stream:
            self._host.synchronize(stream)

    def ipcGetMemHandle(self, dev_ptr: int) -> bytes:
        return self._host.memory_handle(self._current.device, dev_ptr)

    def ipcOpenMemHandle(self, handle: bytes, flags: int) -> int:
        assert flags == 1
        return self._host.open_memory(self._current.device, handle)

    def ipcCloseMemHandle(self, dev_ptr: int) -> None:
        self._host.close_memory(self._current.device, dev_ptr)

    def eventCreateWithFlags(self, flags: int) -> int:
        assert flags == 6, "neither without interprocess nor with timing can an event be exported"
        return self._host.create_event(self._current.device)

    def ipcGetEventHandle(self, event: int) -> bytes:
        return self._host.event_handle(self._current.device, event)

    def ipcOpenEventHandle(self, handle: bytes) -> int:
        return self._host.open_event(self._current.device, handle)

    def eventDestroy(self, event: int) -> None:
        self._host.destroy_event(self._current.device, event)

    def eventRecord(self, event: int, stream: int) -> None:
        self._host.record(self._current.device, event, stream)

    def streamWaitEvent(self, stream: int, event: int) -> None:
        self._host.wait(self._current.device, event, stream)

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        assert kind == 4, "cudaMemcpyDefault"
        self._host.copy(self._current.device, dst, src, size, stream)

    def memcpyPeerAsync(self, *arguments: int) -> None:
        dst, dst_device, src, src_device, size, stream = arguments
        self._host.copy_peer((dst_device, dst), (src_device, src), size, stream)
