"""What a peer of this host has lent to this process: its memory, and the table in which to say that it is released."""

from __future__ import annotations

import weakref

from janus.transport.buffers import Buffer, Bytes
from janus.transport.segment import PeerMemory


class Lender:
    """The other end's memory and the table of one wire. ``open`` ends with the wire: later releases are not written.

    Raises:
        ValueError: the table does not lie within the peer's memory.
    """

    def __init__(self, memory: PeerMemory, table_offset: int, slots: int) -> None:
        if table_offset % 4 or not 0 < slots <= 1 << 20 or table_offset + 4 * slots > memory.nbytes:
            raise ValueError(
                f"a table of {slots} slots at {table_offset} is not within the peer's {memory.nbytes} bytes"
            )
        self._memory = memory
        self._slots = memory.array(table_offset, 4 * slots)[0].data.cast("I")
        self.open = True
        #: Payloads that were dropped, not released, watched until their last view is gone.
        self._dropped: dict[int, weakref.ref[Bytes]] = {}

    def borrow(self, header: bytes, slot: int, generation: int, offset: int, nbytes: int) -> Borrowed:
        """Return the loan that the peer has announced.

        Raises:
            ValueError: slot or bytes are not within the peer's memory, or not aligned.
        """
        if slot >= len(self._slots):
            raise ValueError(f"slot {slot} of {len(self._slots)}")
        if not nbytes or offset % 64 or offset + nbytes > self._memory.nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} are not within the peer's {self._memory.nbytes}")
        array, address = self._memory.array(offset, nbytes)
        return Borrowed(array, address, memoryview(header), self, slot, generation)

    def give_back(self, slot: int, generation: int) -> None:
        """Tell the peer that a loan is released. From any thread.

        One aligned store. x86 does not move it before earlier loads. Where the processor might, the peer still has to
        notice, and to write, before it could matter: longer than any store buffer.
        """
        if self.open:
            self._slots[slot] = generation

    def watch(self, array: Bytes, slot: int, generation: int) -> None:
        """Give a loan back when the last view of it is gone."""

        def died(_: object) -> None:
            self._dropped.pop(slot, None)
            self.give_back(slot, generation)

        self._dropped[slot] = weakref.ref(array, died)


class Borrowed(Buffer):
    """A payload in a peer's memory, with its header here."""

    __slots__ = ("_generation", "_lender", "_slot")

    at = 0

    def __init__(
        self, array: Bytes, address: int, header: memoryview, lender: Lender, slot: int, generation: int
    ) -> None:
        self.array = array
        self.address = address
        self.view = array.data
        self.header = header
        self._pool = self._shares = None
        self._lender: Lender | None = lender
        self._slot = slot
        self._generation = generation

    def share(self, first: int) -> Buffer:  # type: ignore[override]
        raise TypeError("what a peer has lent cannot be lent again")

    def release(self) -> None:
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.give_back(self._slot, self._generation)

    def dropped(self) -> None:
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.watch(self.array, self._slot, self._generation)
