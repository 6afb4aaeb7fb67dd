"""The replicas of one expert instance: loading what a placement assigns, and what may be used from which epoch."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.errors import CheckpointError, ReplicaMissing
from janus.exchange.layout import DispatchLayout
from janus.messages.control import PlacementLoaded, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.kernels import load_library
from janus.transport.link import InFrame

log = structlog.get_logger()

#: The epoch of a slot that no dispatch may use yet.
_NOT_LOADED = np.iinfo(np.int64).max


class ReplicaSlots:
    """Slots of one instance over all MoE layers.

    A slot is usable from the epoch in which it got its expert: a dispatch planned with an older epoch, or for a slot
    that is still being loaded, must be rejected, never computed with the wrong weights.
    """

    def __init__(
        self, *, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device, instance: str
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device
        self._instance = instance
        #: int64[L, C]: the epoch from which a slot may be used.
        self._usable_from: npt.NDArray[np.int64] = np.zeros((config.num_moe_layers, 0), dtype=np.int64)
        #: [L]: the epoch from which every slot of a layer may be used; answers the check of most dispatches.
        self._all_usable_from: list[int] = [_NOT_LOADED] * config.num_moe_layers
        self._usable_address = 0
        self._library = load_library()
        # One thread: reads from disk must not stop the loop, and placements are applied one after the other.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-loader")
        #: Where the replicas are; ``None`` before the first placement.
        self.bank: ExpertBank | None = None
        self.loaded_epoch = 0

    def close(self) -> None:
        """Release the loader's thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; slots that keep their expert are not touched, nor interrupted."""
        started = time.perf_counter()
        before = self._checkpoint.bytes_read
        try:
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
            self._usable_from = np.full((len(wanted), bank.slots), _NOT_LOADED, dtype=np.int64)
            self._usable_address = self._usable_from.ctypes.data
        self._set_usable([(layer, slot) for layer, slot in changed if wanted[layer][slot] >= 0], table.epoch)
        self.loaded_epoch = table.epoch
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
            fresh = ExpertBank(self._config, len(wanted), slots, self._dtype, self._device)
            return fresh, [(layer, slot) for layer, experts in enumerate(wanted) for slot in range(len(experts))]
        changed = [
            (layer, slot)
            for layer, experts in enumerate(wanted)
            for slot, expert in enumerate(experts)
            if bank.slot_expert[layer][slot] != expert
        ]
        self._set_usable(changed, _NOT_LOADED)
        return bank, changed

    def activated(self, frame: InFrame, layout: DispatchLayout) -> int:
        """Return how many distinct slots a dispatch names.

        Raises:
            ReplicaMissing: it names none, or one that its epoch may not use here; the message says which.
        """
        header, count = frame.header, self._usable_from.shape[1]
        if self._library is not None:
            found: int = self._library.scan_slots(
                layout.rows * layout.top_k,
                count,
                header.epoch,
                self._usable_address + header.layer * count * self._usable_from.itemsize,
                frame.address + layout.slots_at,
            )
            if found > 0:
                return found
        _, slots_NK, _ = layout.views(frame.payload)
        problem = self.unusable(header.layer, header.epoch, slots_NK)
        if problem:
            raise ReplicaMissing(problem)
        return int(np.count_nonzero(np.bincount(slots_NK.ravel() + 1)[1:]))

    def prime(self) -> None:
        """A dispatch is here: wake the threads that will compute it."""
        if self._library is not None:
            self._library.prime()

    def unusable(self, layer: int, epoch: int, slots_NK: npt.NDArray[np.int32]) -> str:
        """Return why a dispatch of ``epoch`` may not use ``slots_NK`` (local slots, -1 = none); empty when it may."""
        count = self._usable_from.shape[1]
        lowest, highest = int(slots_NK.min()), int(slots_NK.max())
        if highest < 0 or lowest < -1 or highest >= count:
            return f"MoE layer {layer} epoch {epoch}: slots {lowest}..{highest}, this instance has {count}"
        if self._all_usable_from[layer] <= epoch:
            return ""
        # -1 indexes the last slot and is masked out again.
        early = (self._usable_from[layer][slots_NK] > epoch) & (slots_NK >= 0)
        if early.any():
            return f"MoE layer {layer}: slot {int(slots_NK[early][0])} does not hold what epoch {epoch} says"
        return ""

    def _set_usable(self, changed: list[tuple[int, int]], epoch: int) -> None:
        """Let the ``changed`` (layer, slot) pairs be used from ``epoch`` on."""
        for layer, slot in changed:
            self._usable_from[layer, slot] = epoch
        # An empty slot keeps its layer on the slow check, which is right: a dispatch for it must be rejected.
        self._all_usable_from = [int(slots.max()) if len(slots) else _NOT_LOADED for slots in self._usable_from]
