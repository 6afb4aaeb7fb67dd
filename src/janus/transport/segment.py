"""Memory that other processes of this host can map: anonymous, sparse, and sealed against being truncated.

``Segment`` and ``PeerMemory`` are the seam for memory of another kind; ``device_memory`` has that of CUDA devices.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from typing import ClassVar, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from janus.errors import ConfigError
from janus.transport.buffers import Bytes

_REMEDY = "use another transport: shared memory needs Linux, with memfd and abstract sockets"

#: A descriptor, or bytes.
Exported_co = TypeVar("Exported_co", covariant=True)


class Segment(Protocol[Exported_co]):
    """Memory of this process that a peer can open."""

    nbytes: int

    def array(self, offset: int, nbytes: int) -> tuple[Bytes, int]:
        """Return a new array on ``nbytes`` at ``offset``, and its address."""

    def where(self, address: int) -> int | None:
        """Return the offset of ``address``, ``None`` if it lies outside."""

    def discard(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range back to the system; it reads as zeros until it is written again."""

    def export(self) -> Exported_co:
        """Return what lets a peer ``open`` this segment. A descriptor stays the segment's."""


class PeerMemory(Protocol):
    """A peer's segment as it is seen from here."""

    nbytes: int

    def array(self, offset: int, nbytes: int) -> tuple[Bytes, int]:
        """Return a new array on ``nbytes`` at ``offset``, which must lie within, and its address."""


class _Mapped:
    """A mapping, which lives as long as this object or any array on it."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self._address: int = np.frombuffer(self._map, np.uint8, 1).ctypes.data

    def array(self, offset: int, nbytes: int) -> tuple[Bytes, int]:
        return np.frombuffer(self._map, np.uint8, nbytes, offset), self._address + offset


class HostSegment(_Mapped):
    """A memfd of ``nbytes``, a power of two. Only pages that are touched cost memory; nothing has a name to be left.

    It dies with the last process that maps it. Sealed, so that no peer can shrink it under another's feet (SIGBUS).
    """

    def __init__(self, nbytes: int) -> None:
        self._fd = -1
        if nbytes < mmap.PAGESIZE or nbytes & (nbytes - 1):
            raise ValueError(f"a segment of {nbytes} bytes: the size must be a power of two, and a page at least")
        try:
            self._fd = os.memfd_create("janus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, nbytes)
            # The last one: no peer may add a seal, such as one against writing.
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            super().__init__(self._fd, nbytes)
        except (AttributeError, OSError) as error:
            raise ConfigError("transport", f"no shared memory of {nbytes} bytes ({error})", _REMEDY) from error

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def where(self, address: int) -> int | None:
        offset = address - self._address
        return offset if 0 <= offset < self.nbytes else None

    def discard(self, offset: int, nbytes: int) -> None:
        self._map.madvise(mmap.MADV_REMOVE, offset, nbytes)

    def export(self) -> int:
        return self._fd


class PeerSegment(_Mapped):
    """A peer's ``HostSegment``, mapped once per process however many links there are to that peer."""

    _known: ClassVar[WeakValueDictionary[tuple[int, int], PeerSegment]] = WeakValueDictionary()
    _known_lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def open(cls, fd: int) -> PeerSegment:
        """Map what a peer has exported; ``fd`` stays the caller's.

        Raises:
            ValueError: it is no memory, or could be truncated while it is mapped.
            OSError: it cannot be mapped.
        """
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError as error:
            raise ValueError("what the peer shares is no memory") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ValueError("what the peer shares is not sealed: it could be truncated while it is in use")
        status = os.fstat(fd)
        if status.st_size == 0:
            raise ValueError("what the peer shares is empty")
        key = status.st_dev, status.st_ino
        with cls._known_lock:
            segment = cls._known.get(key)
            if segment is None:
                segment = cls._known[key] = cls(fd, status.st_size)
        return segment
