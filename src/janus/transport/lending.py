"""Buffers in memory that other processes of this host can map, and what has been lent to them.

A buffer that was lent is free again when the borrower says so, in a table of *slots* that lies in the lender's memory:
it writes the loan's generation into the loan's slot. No message, no system call, and no harm from a late or dead
borrower: a generation is never used twice.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import threading
import time
import weakref
from collections import deque

from janus.errors import ConfigError
from janus.transport.buddy import BuddySpace
from janus.transport.buffers import Buffer, BufferPool, Bytes, aligned_empty, memory_of
from janus.transport.segment import HostSegment, Segment

#: Virtual size of the process's segment; only what is in use costs memory.
SEGMENT_BYTES = 4 << 30
_KEEP_BYTES = 256 << 20
#: Loans that one wire may have out: more than any link's credits.
SLOTS = 4096
_TABLE_BYTES = 4 * SLOTS
#: What a lost peer had borrowed is kept so long, in seconds, as it may still be computing on it; and so much of it at
#: most, or a quarter of the segment.
QUARANTINE_S = 10.0
_QUARANTINE_BYTES = 256 << 20
_MASK = 0xFFFFFFFF


class SharedPool(BufferPool):
    """A ``BufferPool`` in a segment. Thread-safe; one serves all loops of a process.

    ``take`` never fails: when the segment is exhausted it returns private memory, which a wire cannot lend.
    A block that is dropped without ``release`` comes back when the last view of it is gone.
    """

    def __init__(self, segment: Segment[int], keep_bytes: int = _KEEP_BYTES) -> None:
        super().__init__(keep_bytes)
        self.segment = segment
        self._space = BuddySpace(segment.nbytes.bit_length() - 1)
        self._lock = threading.Lock()
        #: Watches the array of each block: when it dies, the block goes to ``_dead``, from there into ``_space``.
        self._blocks: dict[int, weakref.ref[Bytes]] = {}
        self._dead: deque[tuple[int, int]] = deque()
        self._tables: deque[Table] = deque()
        self._lenders: weakref.WeakSet[Loans] = weakref.WeakSet()
        self._quarantine_bytes = min(_QUARANTINE_BYTES, segment.nbytes // 4)
        self._quarantine: deque[tuple[float, Loans]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes of the segment in blocks that are in use or kept."""
        with self._lock:
            self._bury()
            return self.segment.nbytes - self._space.free_bytes

    def _fresh(self, log2: int) -> Buffer:
        self.settle()
        offset = self._block(log2)
        if offset is None:
            # What peers have released out of order, and what lies ready in other sizes, may make room.
            with self._lock:
                lenders = list(self._lenders)
            for loans in lenders:
                loans.collect_all()
            self._free.clear()
            self._kept_bytes = 0
            offset = self._block(log2)
        if offset is None:
            return Buffer(memory_of(*aligned_empty(1 << log2)), None)
        array, address = self.segment.array(offset, 1 << log2)
        self._blocks[offset] = weakref.ref(array, functools.partial(self._died, offset, log2))
        return Buffer(memory_of(array, address), self)

    def _block(self, log2: int) -> int | None:
        with self._lock:
            self._bury()
            return self._space.take(log2)

    def _died(self, offset: int, log2: int, _: object) -> None:
        """Called in any thread and at any time, so without a lock."""
        del self._blocks[offset]
        if 1 << log2 >= mmap.PAGESIZE:
            with contextlib.suppress(OSError):  # it then keeps its pages, no more
                self.segment.discard(offset, 1 << log2)
        self._dead.append((offset, log2))

    def _bury(self) -> None:
        while self._dead:
            self._space.give(*self._dead.popleft())

    # -- what peers have borrowed ---------------------------------------------------------------------------------

    def loans(self) -> Loans:
        """Return the book of loans for one wire of the running thread. It ends with ``quarantine``.

        Raises:
            MemoryError: the segment is exhausted.
        """
        self.settle()
        try:
            table = self._tables.pop()
        except IndexError:
            table = Table(self)
        loans = Loans(table)
        with self._lock:
            self._lenders.add(loans)
        return loans

    def quarantine(self, loans: Loans) -> None:
        """Take over what a peer still had when its wire was lost, until it certainly does not compute on it."""
        with self._lock:
            self._lenders.discard(loans)
            if len(loans):
                self._quarantine.append((time.monotonic() + QUARANTINE_S, loans))
            else:
                self._tables.append(loans.forget())
        self.settle()

    def settle(self) -> None:
        """Take back what has been in quarantine for long enough, or is too much."""
        with self._lock:
            held = sum(loans.nbytes for _, loans in self._quarantine)
            while self._quarantine:
                until, loans = self._quarantine[0]
                if until > time.monotonic() and held <= self._quarantine_bytes:
                    break
                self._quarantine.popleft()
                held -= loans.nbytes
                self._tables.append(loans.forget())


class Table:
    """``SLOTS`` numbers in the segment, where the other end of one wire says what it has released.

    Tables are used as tables for ever: whatever a borrower of long ago writes here, it is no current generation.
    """

    def __init__(self, pool: SharedPool) -> None:
        self._buffer = pool.take(_TABLE_BYTES)
        offset = pool.segment.where(self._buffer.address)
        if offset is None:
            raise MemoryError("the shared memory of this process is exhausted")
        self.offset = offset
        self._buffer.array[:] = 0
        self.slots = self._buffer.view[:_TABLE_BYTES].cast("I")
        self.generation = 0
        #: Slots that were used and are free; those from ``untouched`` on never were.
        self.free: list[int] = []
        self.untouched = 0

    def slot(self) -> int | None:
        """Return a free slot, ``None`` if there is none."""
        if self.free:
            return self.free.pop()
        if self.untouched == SLOTS:
            return None
        self.untouched += 1
        return self.untouched - 1


class Loans:
    """The buffers that one wire has lent to its peer. For the thread that made it, until it is in quarantine."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._thread = threading.get_ident()
        self._out: deque[tuple[int, int, Buffer]] = deque()
        self._look_at_all = 16

    def __len__(self) -> int:
        return len(self._out)

    @property
    def table_offset(self) -> int:
        """Where the table lies in the segment."""
        return self._table.offset

    @property
    def nbytes(self) -> int:
        """Bytes in the buffers that are out."""
        return sum(len(buffer.array) for _, _, buffer in self._out)

    def lend(self, buffer: Buffer) -> tuple[int, int] | None:
        """Return slot and generation of a new loan of ``buffer``, which is released here when the peer releases it.

        ``None`` when no slot is free.
        """
        self.collect()
        table = self._table
        slot = table.slot()
        if slot is None:
            self.collect_all()
            if (slot := table.slot()) is None:
                return None
        generation = table.generation = (table.generation + 1) & _MASK or 1
        table.slots[slot] = 0
        self._out.append((slot, generation, buffer))
        return slot, generation

    def collect(self) -> None:
        """Release what the peer has released. It mostly does so in order; every now and then all are looked at."""
        out, table = self._out, self._table
        while out:
            slot, generation, buffer = out[0]
            if table.slots[slot] != generation:
                break
            out.popleft()
            table.free.append(slot)
            buffer.release()
        if len(out) >= self._look_at_all:
            self.collect_all()

    def collect_all(self) -> None:
        """Release all that the peer has released. Does nothing in another thread than its own."""
        if threading.get_ident() != self._thread:
            return
        kept: deque[tuple[int, int, Buffer]] = deque()
        for loan in self._out:
            slot, generation, buffer = loan
            if self._table.slots[slot] == generation:
                self._table.free.append(slot)
                buffer.release()
            else:
                kept.append(loan)
        self._out = kept
        self._look_at_all = 2 * len(kept) + 16

    def forget(self) -> Table:
        """Release everything, whatever the peer does, and return the table."""
        for slot, _, buffer in self._out:
            self._table.free.append(slot)
            buffer.release()
        self._out.clear()
        return self._table


_pool: SharedPool | None = None
_pool_lock = threading.Lock()


def shared_pool() -> SharedPool:
    """Return the process's pool of shared buffers, made on first use.

    Raises:
        ConfigError: this system has no memory to share.
    """
    global _pool  # noqa: PLW0603
    with _pool_lock:
        if _pool is None:
            _pool = SharedPool(HostSegment(SEGMENT_BYTES))
        return _pool


def _forget() -> None:
    """A forked process has the parent's memory mapped too, and must not hand it out a second time."""
    global _pool  # noqa: PLW0603
    _pool = None


os.register_at_fork(after_in_child=_forget)


def require_shared(pool: BufferPool | None) -> SharedPool:
    """Return ``pool``, or the process's one for ``None``.

    Raises:
        ConfigError: ``pool`` is no shared one, or there can be none.
    """
    if pool is None:
        return shared_pool()
    if not isinstance(pool, SharedPool):
        raise ConfigError("pool", "shm links need a SharedPool", "use shared_pool(), or none")
    return pool
