"""Offsets within one span of memory, handed out in blocks of powers of two: a buddy allocator, as pure counting.

A block of size s starts at a multiple of s; two neighbours that are halves of one larger block become that block again
as soon as both are free, so what was cut up for small blocks serves large ones later. (Knuth, TAOCP vol. 1, 2.5.)
"""

from __future__ import annotations


class BuddySpace:
    """Free blocks within ``[0, 1 << log2)``. Not thread-safe."""

    def __init__(self, log2: int) -> None:
        self._top = log2
        self._free: dict[int, set[int]] = {log2: {0}}
        self.free_bytes = 1 << log2

    def take(self, log2: int) -> int | None:
        """Return the offset of a block of ``1 << log2`` bytes, ``None`` if there is no such block."""
        for size in range(log2, self._top + 1):
            blocks = self._free.get(size)
            if blocks:
                offset = blocks.pop()
                for half in range(size - 1, log2 - 1, -1):
                    self._free.setdefault(half, set()).add(offset + (1 << half))
                self.free_bytes -= 1 << log2
                return offset
        return None

    def give(self, offset: int, log2: int) -> None:
        """Take back the block that ``take(log2)`` returned."""
        self.free_bytes += 1 << log2
        while log2 < self._top and (buddy := offset ^ (1 << log2)) in self._free.get(log2, ()):
            self._free[log2].remove(buddy)
            offset = min(offset, buddy)
            log2 += 1
        self._free.setdefault(log2, set()).add(offset)
