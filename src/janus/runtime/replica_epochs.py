"""What the dispatches of one epoch may use of an instance's slots."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.errors import ReplicaMissing
from janus.exchange.layout import address_of
from janus.messages.control import PlacementTable
from janus.model.kernels.library import Library

#: In the kernels' tables: from no epoch on.
_NEVER = np.iinfo(np.int64).max


@dataclass(slots=True, eq=False)
class LazySlots:
    """int32[rows, K] of slots at an address; an array of it is made only where there are no kernels."""

    payload: npt.NDArray[np.uint8]
    start: int
    address: int
    rows: int
    top_k: int

    @property
    def size(self) -> int:
        """Entries."""
        return self.rows * self.top_k

    def array(self) -> npt.NDArray[np.int32]:
        """Return the slots as an array, not copied."""
        return self.payload[self.start : self.start + 4 * self.size].view(np.int32).reshape(self.rows, self.top_k)


class EpochSlots:
    """The slots of one instance in one epoch, and which of them hold what the epoch says.

    A slot counts from ``allow`` until ``forbid``: a dispatch that names it before or after that must be rejected, never
    computed with the wrong weights.
    """

    def __init__(self, table: PlacementTable, instance: str, library: Library | None) -> None:
        """Take ``instance``'s slots of ``table``; an instance that is not in it has none.

        Raises:
            ValueError: the table is no placement.
        """
        self.placement = Placement.from_table(table)
        self.number = table.epoch
        self._library = library
        #: int32[L, C]: the expert that should be in each slot, ``EMPTY`` for none.
        self.experts_LC: npt.NDArray[np.int32] = np.empty((len(table.slots), 0), dtype=np.int32)
        if instance in table.instances:
            index = table.instances.index(instance)
            self.experts_LC = np.array([layer[index] for layer in table.slots], dtype=np.int32)
        self.count = self.experts_LC.shape[1]
        # As the kernels want it: a slot is usable in this epoch if its number here is not above the epoch's.
        self._usable_LC: npt.NDArray[np.int64] = np.full(self.experts_LC.shape, _NEVER, dtype=np.int64)
        self._address, self._row_nbytes = self._usable_LC.ctypes.data, self.count * self._usable_LC.itemsize
        #: Entries of each instance of the node, as the kernels count them.
        self._entries: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._entries_at = 0

    @property
    def replicas(self) -> int:
        """How many slots have an expert."""
        return int(np.count_nonzero(self.experts_LC != EMPTY))

    def allow(self) -> None:
        """All of its experts are there."""
        self._usable_LC[self.experts_LC != EMPTY] = 0

    def forbid(self, layer: int, slot: int) -> None:
        """The slot gets another expert."""
        if slot < self.count:
            self._usable_LC[layer, slot] = _NEVER

    # -- checking what a dispatch names ----------------------------------------------------------------------------

    def scan(self, layer: int, slots_NK: LazySlots) -> int:
        """Return how many distinct slots a dispatch to this instance alone names.

        Raises:
            ReplicaMissing: it names none, or one that may not be used in this epoch; the message says which.
        """
        if self._library is not None:
            usable = self._address + layer * self._row_nbytes
            found: int = self._library.scan_slots(
                slots_NK.size, 0, self.count, self.count, self.number, usable, slots_NK.address, None
            )
            if found > 0:
                return found
        found = self._scan(layer, slots_NK.array(), None, first=0, total=self.count)
        if not found:
            raise ReplicaMissing(f"MoE layer {layer} epoch {self.number}: it names none of the slots here")
        return found

    def take_share(
        self, layer: int, slots_NK: LazySlots, own_NK: npt.NDArray[np.int32], *, position: int, instances: int
    ) -> tuple[int, list[int]]:
        """Return how many distinct slots of this instance a dispatch to its node names, and each instance's entries.

        Args:
            layer: MoE layer.
            slots_NK: slots, numbered through the node's instances; -1 for none.
            own_NK: int32, like ``slots_NK``; gets this instance's own numbers, -1 for others'.
            position: of this instance in its node.
            instances: of the node.

        Raises:
            ReplicaMissing: a slot does not exist, or may not be used in this epoch; the message says which.
        """
        if self._library is not None:
            if instances != len(self._entries):
                self._entries = np.empty(instances, dtype=np.int64)
                self._entries_at = address_of(self._entries)
            found: int = self._library.take_share(
                slots_NK.size,
                position,
                instances,
                self.count,
                self.number,
                self._address + layer * self._row_nbytes,
                slots_NK.address,
                address_of(own_NK),
                self._entries_at,
            )
            if found >= 0:
                return found, self._entries.tolist()
        slots = slots_NK.array()
        found = self._scan(layer, slots, own_NK, first=position * self.count, total=instances * self.count)
        return found, np.bincount(slots[slots >= 0] // self.count, minlength=instances).tolist()

    def check_own(self, layer: int, own_NK: npt.NDArray[np.int32]) -> int:
        """Return how many distinct slots of this instance ``own_NK`` names, which may be none.

        Raises:
            ReplicaMissing: one may not be used in this epoch.
        """
        return self._scan(layer, own_NK, None, first=0, total=self.count)

    def _scan(
        self,
        layer: int,
        slots_NK: npt.NDArray[np.int32],
        own_NK: npt.NDArray[np.int32] | None,
        *,
        first: int,
        total: int,
    ) -> int:
        """In numpy: what the kernels do, and the words for what is wrong."""
        count, epoch = self.count, self.number
        lowest, highest = int(slots_NK.min()), int(slots_NK.max())
        if lowest < -1 or highest >= total:
            whose = "this instance" if total == count else "its node"
            raise ReplicaMissing(f"MoE layer {layer} epoch {epoch}: slots {lowest}..{highest}, {whose} has {total}")
        here_NK = np.where((slots_NK >= first) & (slots_NK < first + count), slots_NK - np.int32(first), np.int32(-1))
        if own_NK is not None:
            np.copyto(own_NK, here_NK)
        gone = here_NK[(here_NK >= 0) & (self._usable_LC[layer][here_NK] > epoch)] if count else here_NK[:0]
        if gone.size:
            raise ReplicaMissing(f"MoE layer {layer}: slot {int(gone[0])} does not hold what epoch {epoch} says")
        return int(np.count_nonzero(np.bincount(here_NK.ravel() + 1)[1:]))


def distinct(library: Library, slots: int, tables: Sequence[tuple[int, int]]) -> int:
    """Return how many distinct ones of ``slots`` slots are named in ``tables``: (address, entries), checked before."""
    parts = len(tables)
    return int(
        library.distinct_slots(
            slots,
            parts,
            (ctypes.c_void_p * parts)(*(address for address, _ in tables)),
            (ctypes.c_int64 * parts)(*(entries for _, entries in tables)),
        )
    )
