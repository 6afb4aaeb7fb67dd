"""What a peer of this host has lent to this process: its memory, and the table in which to say that it is released."""

from __future__ import annotations

import weakref

from janus.transport.buffers import Buffer, Bytes, SharedPart
from janus.transport.segment import PeerMemory

#: The slot and the generation of a loan; see ``lending``.
Loan = tuple[int, int]


class Lender:
    """The other end's memory and the table of one wire. ``open`` ends with the wire: later releases are not written.

    Raises:
        ValueError: the table does not lie within the peer's memory.
    """

    def __init__(self, memory: PeerMemory, table_offset: int, slots: int) -> None:
        if table_offset % 4 or not 0 < slots <= 1 << 20 or table_offset + 4 * slots > memory.nbytes:
            raise ValueError(f"{slots} slots at {table_offset} are not within the peer's {memory.nbytes} bytes")
        self._memory = memory
        self._slots = memory.array(table_offset, 4 * slots)[0].data.cast("I")
        self.open = True
        #: Payloads that were dropped, not released, watched until their last view is gone.
        self._dropped: dict[Loan, weakref.ref[Bytes]] = {}

    def borrow(self, header: bytearray, loan: Loan, offset: int, nbytes: int) -> Borrowed:
        """Return what the peer has announced as lent.

        Raises:
            ValueError: slot or bytes are not within the peer's memory, or not aligned.
        """
        if loan[0] >= len(self._slots):
            raise ValueError(f"slot {loan[0]} of {len(self._slots)}")
        if not nbytes or offset % 64 or offset + nbytes > self._memory.nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} are not within the peer's {self._memory.nbytes}")
        array, address = self._memory.array(offset, nbytes)
        return Borrowed(array, address, header, self, loan)

    def give_back(self, loan: Loan) -> None:
        """Tell the peer that a loan is released. From any thread.

        One aligned store. x86 does not move it before earlier loads. Where a processor might, the peer still has to
        notice, and to write, before it could matter: longer than any reordering.
        """
        if self.open:
            self._slots[loan[0]] = loan[1]

    def watch(self, array: Bytes, loan: Loan) -> None:
        """Give a loan back when the last view of it is gone."""

        def died(_: object) -> None:
            self._dropped.pop(loan, None)
            self.give_back(loan)

        self._dropped[loan] = weakref.ref(array, died)


class Borrowed(Buffer):
    """A payload in a peer's memory, with its header here."""

    __slots__ = ("_lender", "_loan")

    at = 0

    def __init__(self, array: Bytes, address: int, header: bytearray, lender: Lender, loan: Loan) -> None:
        self.array = array
        self.address = address
        self.view = array.data
        self.header = header
        self._lender: Lender | None = lender
        self._loan = loan

    def share(self, first: int) -> SharedPart:
        raise TypeError("what a peer has lent cannot be lent again")

    def release(self) -> None:
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.give_back(self._loan)

    def dropped(self) -> None:
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.watch(self.array, self._loan)
