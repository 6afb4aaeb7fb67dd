"""The replicas of one expert instance: loading what a placement assigns, and what may be used from which epoch."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.core.placement import Placement
from janus.errors import CheckpointError, ReplicaMissing
from janus.messages.control import PlacementLoaded, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.kernels import load_library

log = structlog.get_logger()

#: The epoch of a slot that no dispatch may use yet.
_NOT_LOADED = np.iinfo(np.int64).max
MakeBank: TypeAlias = Callable[[ModelConfig, int, int, torch.dtype, torch.device], ExpertBank]
#: Placements of earlier epochs that a dispatch may still name.
_PLACEMENTS_KEPT = 4


@dataclass(frozen=True, slots=True)
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


class ReplicaSlots:
    """Slots of one instance over all MoE layers.

    A slot is usable from the epoch in which it got its expert: a dispatch planned with an older epoch, or for a slot
    that is still being loaded, must be rejected, never computed with the wrong weights.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        instance: str,
        make_bank: MakeBank = ExpertBank,
    ) -> None:
        """``make_bank``: called with config, MoE layers, slots, dtype and device when a bank is needed."""
        self._make_bank = make_bank
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device
        self._instance = instance
        #: int64[L, C]: the epoch from which a slot may be used.
        self._usable_from: npt.NDArray[np.int64] = np.zeros((config.num_moe_layers, 0), dtype=np.int64)
        self._usable_address = 0
        self._library = load_library()
        # One thread: reads from disk must not stop the loop, and placements are applied one after the other.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-loader")
        #: Where the replicas are; ``None`` before the first placement.
        self.bank: ExpertBank | None = None
        self.loaded_epoch = 0
        #: Counts how often slots were taken away: what was checked under another number must be checked again.
        self.generation = 0
        #: The newest placements that were loaded, by epoch.
        self._placements: dict[int, Placement] = {}

    def close(self) -> None:
        """Release the loader's thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; slots that keep their expert are not touched, nor interrupted."""
        started = time.perf_counter()
        before = self._checkpoint.bytes_read
        try:
            placement = Placement.from_table(table)
            wanted = self._wanted(table)
            loop = asyncio.get_running_loop()
            bank, changed = self._prepare(wanted)
            for layer, slot in changed:
                expert = wanted[layer][slot]
                if expert >= 0:
                    await loop.run_in_executor(self._loader, bank.load, self._checkpoint, layer, slot, expert)
                else:
                    bank.unload(layer, slot)
        except (CheckpointError, ValueError) as error:
            log.error("placement_failed", epoch=table.epoch, problem=str(error))
            return PlacementLoaded(
                epoch=table.epoch, replicas=0, bytes_read=0, seconds=time.perf_counter() - started, error=str(error)
            )
        if bank is not self.bank:
            self.bank = bank
            self.generation += 1
            self._usable_from = np.full((len(wanted), bank.slots), _NOT_LOADED, dtype=np.int64)
            self._usable_address = self._usable_from.ctypes.data
        self._set_usable([(layer, slot) for layer, slot in changed if wanted[layer][slot] >= 0], table.epoch)
        self.loaded_epoch = table.epoch
        self._placements[table.epoch] = placement
        for stale in sorted(self._placements)[:-_PLACEMENTS_KEPT]:
            del self._placements[stale]
        report = PlacementLoaded(
            epoch=table.epoch,
            replicas=sum(expert >= 0 for slots in wanted for expert in slots),
            bytes_read=self._checkpoint.bytes_read - before,
            seconds=time.perf_counter() - started,
        )
        log.info(
            "placement_loaded",
            epoch=table.epoch,
            replicas=report.replicas,
            loaded=len(changed),
            bytes_read=report.bytes_read,
            seconds=round(report.seconds, 3),
        )
        return report

    def _wanted(self, table: PlacementTable) -> list[list[int]]:
        if self._instance not in table.instances:
            return [[] for _ in table.slots]
        index = table.instances.index(self._instance)
        return [layer[index] for layer in table.slots]

    def _prepare(self, wanted: list[list[int]]) -> tuple[ExpertBank, list[tuple[int, int]]]:
        """Return the bank to load into and the (layer, slot) pairs that change; those are unusable from now on."""
        slots = max((len(layer) for layer in wanted), default=0)
        bank = self.bank
        if bank is None or bank.slots != slots:
            # Another number of slots is another bank; the old one serves until the new one is complete.
            fresh = self._make_bank(self._config, len(wanted), slots, self._dtype, self._device)
            return fresh, [(layer, slot) for layer, experts in enumerate(wanted) for slot in range(len(experts))]
        changed = [
            (layer, slot)
            for layer, experts in enumerate(wanted)
            for slot, expert in enumerate(experts)
            if bank.slot_expert[layer][slot] != expert
        ]
        if changed:
            self._set_usable(changed, _NOT_LOADED)
            self.generation += 1
        return bank, changed

    def placement(self, epoch: int) -> Placement:
        """Return the placement of ``epoch``.

        Raises:
            ReplicaMissing: it was not loaded here, or so long ago that it is forgotten.
        """
        found = self._placements.get(epoch)
        if found is None:
            raise ReplicaMissing(f"epoch {epoch} is not loaded here, the newest is {self.loaded_epoch}")
        return found

    def scan(self, layer: int, epoch: int, slots_NK: LazySlots) -> int:
        """Return how many distinct slots a dispatch to this instance alone names.

        Raises:
            ReplicaMissing: it names none, or one that may not be used in this epoch; the message says which.
        """
        count = self._usable_from.shape[1]
        if self._library is not None:
            found: int = self._library.scan_slots(
                slots_NK.size,
                0,
                count,
                count,
                epoch,
                self._usable_address + layer * count * self._usable_from.itemsize,
                slots_NK.address,
                None,
            )
            if found > 0:
                return found
        found = self._scan(layer, epoch, slots_NK.array(), None, first=0, total=count)
        if not found:
            raise ReplicaMissing(f"MoE layer {layer} epoch {epoch}: it names none of the slots here")
        return found

    def distinct(self, layer: int, tables: Sequence[tuple[int, int]]) -> int:
        """Return how many distinct slots are named in ``tables``: (address, entries) of slots that were checked."""
        assert self._library is not None  # who has addresses has kernels
        parts = len(tables)
        return int(
            self._library.distinct_slots(
                self._usable_from.shape[1],
                parts,
                (ctypes.c_void_p * parts)(*(address for address, _ in tables)),
                (ctypes.c_int64 * parts)(*(entries for _, entries in tables)),
            )
        )

    def take_share(
        self,
        layer: int,
        epoch: int,
        slots_NK: LazySlots,
        own_NK: npt.NDArray[np.int32],
        *,
        position: int,
        instances: int,
    ) -> tuple[int, list[int]]:
        """Return how many distinct slots of this instance a dispatch to its node names, and each instance's entries.

        Args:
            layer: MoE layer.
            epoch: what the dispatch was planned with.
            slots_NK: slots, numbered through the node's instances; -1 for none.
            own_NK: int32, like ``slots_NK``; gets this instance's own numbers, -1 for others'.
            position: of this instance in its node.
            instances: of the node.

        Raises:
            ReplicaMissing: a slot does not exist, or may not be used in this epoch; the message says which.
        """
        count = self._usable_from.shape[1]
        entries = np.empty(instances, dtype=np.int64)
        if self._library is not None:
            found: int = self._library.take_share(
                slots_NK.size,
                position,
                instances,
                count,
                epoch,
                self._usable_address + layer * count * self._usable_from.itemsize,
                slots_NK.address,
                own_NK.ctypes.data,
                entries.ctypes.data,
            )
            if found >= 0:
                return found, entries.tolist()
        slots = slots_NK.array()
        found = self._scan(layer, epoch, slots, own_NK, first=position * count, total=instances * count)
        return found, np.bincount(slots[slots >= 0] // count, minlength=instances).tolist()

    def check_own(self, layer: int, epoch: int, own_NK: npt.NDArray[np.int32]) -> int:
        """Return how many distinct slots of this instance ``own_NK`` names, which may be none.

        Raises:
            ReplicaMissing: one may not be used in this epoch.
        """
        return self._scan(layer, epoch, own_NK, None, first=0, total=self._usable_from.shape[1])

    def _scan(
        self,
        layer: int,
        epoch: int,
        slots_NK: npt.NDArray[np.int32],
        own_NK: npt.NDArray[np.int32] | None,
        *,
        first: int,
        total: int,
    ) -> int:
        """In numpy: what the kernels do, and the words for what is wrong."""
        count = self._usable_from.shape[1]
        lowest, highest = int(slots_NK.min()), int(slots_NK.max())
        if lowest < -1 or highest >= total:
            whose = "this instance" if total == count else "its node"
            raise ReplicaMissing(f"MoE layer {layer} epoch {epoch}: slots {lowest}..{highest}, {whose} has {total}")
        here_NK = np.where((slots_NK >= first) & (slots_NK < first + count), slots_NK - np.int32(first), np.int32(-1))
        if own_NK is not None:
            np.copyto(own_NK, here_NK)
        early = here_NK[(here_NK >= 0) & (self._usable_from[layer][here_NK] > epoch)]
        if early.size:
            raise ReplicaMissing(f"MoE layer {layer}: slot {int(early[0])} does not hold what epoch {epoch} says")
        return int(np.count_nonzero(np.bincount(here_NK.ravel() + 1)[1:]))

    def prime(self) -> None:
        """A dispatch is here: wake the threads that will compute it."""
        if self._library is not None:
            self._library.prime()

    def _set_usable(self, changed: list[tuple[int, int]], epoch: int) -> None:
        """Let the ``changed`` (layer, slot) pairs be used from ``epoch`` on."""
        for layer, slot in changed:
            self._usable_from[layer, slot] = epoch
