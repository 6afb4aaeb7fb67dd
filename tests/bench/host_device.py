"""The exchange benchmark's device on the host: device memory of a ``HostCuda``, arrays of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmarks.gpu.exchange_device import Device, pattern

from janus.transport.buffers import Bytes
from tests.transport.host_cuda import HostCuda


class HostDevice:
    def __init__(self, ordinal: int) -> None:
        self.cuda = HostCuda()
        self.cuda.bus_id(ordinal)
        self.ordinal = ordinal
        self.stream = self.cuda.stream(ordinal)

    def empty(self, nbytes: int) -> Any:
        return self.cuda.array(self.ordinal, self.cuda.malloc(self.ordinal, nbytes), nbytes, None)

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def fill(self, array: Any, seed: int) -> None:
        array[:] = pattern(np, len(array), seed)

    def matches(self, array: Any, seed: int) -> bool:
        return np.array_equal(array, pattern(np, len(array), seed))

    def to_host(self, array: Any, host: Bytes) -> None:
        host[:] = array

    def from_host(self, host: Bytes, array: Any) -> None:
        array[:] = host

    def synchronize(self) -> None:
        self.cuda.synchronize(self.stream)


def open_device(ordinal: int) -> Device:
    return HostDevice(ordinal)
