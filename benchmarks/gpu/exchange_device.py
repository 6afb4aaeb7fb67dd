"""What the ends of the exchange benchmark do with a device, by CuPy."""

from __future__ import annotations

from typing import Any, Protocol

from janus.transport.buffers import Bytes
from janus.transport.cuda import CudaRuntime, CupyRuntime


class Device(Protocol):
    """One device, and a stream on it. Arrays are ``uint8``."""

    ordinal: int
    stream: int

    @property
    def cuda(self) -> CudaRuntime:
        """Return the runtime of the device."""

    def empty(self, nbytes: int) -> Any:
        """Return a new array."""

    def address(self, array: Any) -> int:
        """Return where an array starts."""

    def fill(self, array: Any, seed: int) -> None:
        """Fill with the pattern of ``seed``; it is there on return."""

    def matches(self, array: Any, seed: int) -> bool:
        """Return whether an array holds the pattern of ``seed``."""

    def to_host(self, array: Any, host: Bytes) -> None:
        """Copy to the host; it is there on return."""

    def from_host(self, host: Bytes, array: Any) -> None:
        """Copy from the host; it is there on return."""

    def synchronize(self) -> None:
        """Wait for the stream."""


def pattern(arrays: Any, nbytes: int, seed: int) -> Any:
    """Return ``uint8[nbytes]`` of ``arrays`` (NumPy or CuPy): no shift, and no other seed, gives the same bytes."""
    mixed = arrays.arange(nbytes, dtype=arrays.uint32)
    mixed *= arrays.uint32(2654435761)
    mixed >>= arrays.uint32(24)
    return mixed.astype(arrays.uint8) + arrays.uint8(seed)


class CupyDevice:
    """``Device`` by CuPy."""

    def __init__(self, ordinal: int) -> None:
        self.cuda = CupyRuntime()
        import cupy

        self._cupy = cupy
        self.ordinal = ordinal
        cupy.cuda.Device(ordinal).use()
        # UCX shares an allocation with the other process by its handle, which what lies in a pool has not.
        cupy.cuda.set_allocator(None)
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self.stream: int = self._stream.ptr

    def empty(self, nbytes: int) -> Any:
        return self._cupy.empty(nbytes, self._cupy.uint8)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def fill(self, array: Any, seed: int) -> None:
        array[:] = pattern(self._cupy, len(array), seed)
        self._cupy.cuda.Device(self.ordinal).synchronize()

    def matches(self, array: Any, seed: int) -> bool:
        return bool((array == pattern(self._cupy, len(array), seed)).all())

    def to_host(self, array: Any, host: Bytes) -> None:
        array.get(out=host)

    def from_host(self, host: Bytes, array: Any) -> None:
        array.set(host)
        self._cupy.cuda.get_current_stream().synchronize()

    def synchronize(self) -> None:
        self._stream.synchronize()


def open_device(ordinal: int) -> Device:
    """Return a device of this machine."""
    return CupyDevice(ordinal)
