"""Frame buffers: 64-byte aligned, recycled, so that a steady stream of frames allocates and page-faults nothing.

Page faults of fresh memory cost more than the copy for frames over ~100 KiB, hence the pool. Buffers come in powers
of two. A pool bounds what it *keeps*; what is in use is bounded by the credits of the link that uses it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from janus.transport.frame import HEADER_BYTES, Writable

ALIGNMENT = 64
_SMALLEST = 1024
Bytes = npt.NDArray[np.uint8]


#: The memory of a buffer: an array, the address of its first byte, a view of all of it, and what a wire has made of it.
Memory: TypeAlias = tuple[Bytes, int, memoryview, Any]


def memory_of(array: Bytes, address: int) -> Memory:
    """Return ``array``, which starts at ``address``, as the memory of a buffer."""
    return array, address, array.data, None


def aligned_empty(nbytes: int) -> tuple[Bytes, int]:
    """Return an uninitialised ``uint8`` array of ``nbytes`` that starts on a 64-byte boundary, and its address."""
    raw = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    address = raw.ctypes.data
    start = -address % ALIGNMENT
    return raw[start : start + nbytes], address + start


class Buffer:
    """A piece of pooled memory with one owner, who either passes it on or calls ``release`` once.

    Of a frame in it, the header lies in ``header`` and the payload starts at ``array[at]``. Here the header is the
    first 64 bytes of the memory itself; where the two lie apart, see the subclasses.
    """

    __slots__ = ("_pool", "_shares", "address", "array", "header", "view", "wrapped")

    at = HEADER_BYTES

    def __init__(self, memory: Memory, pool: BufferPool | None) -> None:
        # What takes long to make travels with the memory: numpy takes a microsecond to tell an address.
        self.array, self.address, self.view, self.wrapped = memory
        self.header: Writable = self.view
        self._pool = pool
        #: One token for each holder of this memory beyond the first; made by the first ``share``.
        self._shares: list[None] | None = None

    def share(self, first: int) -> SharedPart:
        """Return another buffer on the same memory, with the payload from byte ``first`` of this one's payload on.

        It has a header of its own. The memory is free once this buffer and all that were shared are released.
        """
        if self._shares is None:
            self._shares = []
        self._shares.append(None)
        return SharedPart(self, first)

    def release(self) -> None:
        """Give the memory back. The caller holds no view of it any more. May be called twice and from any thread."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._shares is not None:
            try:
                self._shares.pop()  # atomic: of any number of holders, in any threads, exactly one finds it empty
            except IndexError:
                pass
            else:
                return
        pool._put((self.array, self.address, self.view, self.wrapped))

    def dropped(self) -> None:
        """Note that nobody will call ``release``: views of the memory may be around, and die when they die."""


class SharedPart(Buffer):
    """A payload within another buffer's memory; made by ``Buffer.share``."""

    __slots__ = ("at",)

    def __init__(self, whole: Buffer, first: int) -> None:
        self.array, self.address, self.view, self.wrapped = whole.array, whole.address, whole.view, whole.wrapped
        self.header = bytearray(HEADER_BYTES)
        self.at = whole.at + first
        self._pool, self._shares = whole._pool, whole._shares


class BufferPool:
    """Free buffers by size class; keeps at most ``keep_bytes``. Thread-safe (it rests on deque's atomic ends)."""

    def __init__(self, keep_bytes: int = 64 << 20) -> None:
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._free: dict[int, deque[Memory]] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes that lie ready for reuse."""
        return self._kept_bytes

    def take(self, nbytes: int) -> Buffer:
        """Return a buffer whose ``array`` has at least ``nbytes``; its contents are arbitrary."""
        size = 1 << (nbytes - 1).bit_length() if nbytes > _SMALLEST else _SMALLEST
        free = self._free.get(size)
        if free:
            try:
                memory = free.pop()
            except IndexError:  # another thread was faster
                pass
            else:
                self._kept_bytes -= size  # no call within, or another thread's change could be lost
                return Buffer(memory, self)
        return self._fresh(size.bit_length() - 1)

    def _fresh(self, log2: int) -> Buffer:
        """Return a buffer of ``1 << log2`` bytes that is not from the pool."""
        return Buffer(memory_of(*aligned_empty(1 << log2)), self)

    def _put(self, memory: Memory) -> None:
        size = len(memory[0])
        if self._kept_bytes + size > self._keep_bytes:
            return
        self._kept_bytes += size
        free = self._free.get(size)
        if free is None:
            free = self._free.setdefault(size, deque())
        free.append(memory)
