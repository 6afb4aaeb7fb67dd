"""CPU memory for weights and KV, on huge pages where the system grants them.

Interleaved on one machine (AMD Zen 5 guest, 2 threads, 50 MB of bf16 experts per call), 4 KB pages cost 13 to 20 % more
time: under virtualisation a TLB miss walks two page tables. The mapping is private: Linux gives shared anonymous memory
huge pages only where an administrator says so.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import torch

_HUGE_PAGE = 2 << 20


def huge_bytes(count: int) -> torch.Tensor:
    """Return ``count`` zero bytes that start on a huge page; untouched pages take no memory."""
    return _begin(_mapping(count), count)


def _mapping(count: int) -> mmap.mmap:
    memory = mmap.mmap(-1, count + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _begin(memory: mmap.mmap, count: int) -> torch.Tensor:
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + count]


class Reused:
    """Memory on huge pages for what is read, packed and dropped again; any thread.

    A piece is handed out anew once no tensor lies in it. From the C allocator every thread would touch memory of its
    own first, page by small page: 4 us each under virtualisation, which is more than reading it takes.
    """

    def __init__(self, *, most: int = 4) -> None:
        """``most``: pieces that are kept while nobody uses them."""
        self._most = most
        self._pieces: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> torch.Tensor:
        """Return ``count`` bytes of any content, the caller's for as long as a tensor, or a view of one, is in them."""
        with self._lock:
            for piece in self._pieces:
                if len(piece) >= count + _HUGE_PAGE and sys.getrefcount(piece) == _UNUSED:
                    return _begin(piece, count)
            self._pieces = self._pieces[1 - self._most :]
            self._pieces.append(_mapping(count))
            return _begin(self._pieces[-1], count)


#: References to a piece while ``Reused.take`` looks at it: the list's, the loop's and the question's own. A tensor over
#: it has one more, until its storage is freed.
_UNUSED = 3


def discard(memory: torch.Tensor) -> None:
    """Give the whole pages within ``memory``, bytes of ``huge_bytes``, back to the system; they read as zeros again."""
    start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    nbytes = (memory.data_ptr() + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if nbytes > 0 and hasattr(mmap, "MADV_DONTNEED"):
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), mmap.MADV_DONTNEED)


#: By address: ``mmap.madvise`` would need the mapping, and a tensor does not tell which one it lies in.
_madvise = ctypes.CDLL(None).madvise


class Arena:
    """Hands out pieces of large chunks, so that tensors smaller than a huge page share one. Nothing is given back."""

    def __init__(self, chunk_bytes: int = 32 << 20) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, count: int) -> torch.Tensor:
        """Return ``count`` zero bytes, aligned to 64."""
        if self._used + count > len(self._chunk):
            self._chunk, self._used = huge_bytes(max(count, self._chunk_bytes)), 0
        piece = self._chunk[self._used : self._used + count]
        self._used += -(-count // 64) * 64
        return piece
