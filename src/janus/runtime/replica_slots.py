"""The replicas of one expert instance: made before others are broken, and given back when no epoch needs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
import torch

from janus.core.placement import Placement
from janus.errors import ReplicaMissing
from janus.messages.control import PlacementLoaded, PlacementTable
from janus.model.config import ModelConfig
from janus.model.experts import EMPTY, ExpertBank
from janus.model.kernels import load_library
from janus.runtime.replica_epochs import EpochSlots, LazySlots, distinct
from janus.runtime.replica_sources import ReplicaSources

log = structlog.get_logger()

MakeBank: TypeAlias = Callable[[ModelConfig, int, int, torch.dtype, torch.device], ExpertBank]
#: Epochs that are kept at most, should the controller never say which are over.
_MAX_EPOCHS = 16


class _Superseded(Exception):
    """A newer placement is to be loaded."""


class ReplicaSlots:
    """Slots of one instance over all MoE layers, and the epochs that use them.

    Loading an epoch touches no slot that an earlier one uses, unless its table says so: then the slot is taken from the
    earlier one before anything is written to it. What the table leaves empty stays until ``retire``. All on one loop;
    only the weights of slots that nobody uses are written in other threads.
    """

    def __init__(
        self,
        *,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        instance: str,
        sources: ReplicaSources,
        make_bank: MakeBank = ExpertBank,
    ) -> None:
        """``make_bank``: called with config, MoE layers, slots, dtype and device for the first placement."""
        self._make_bank = make_bank
        self._config = config
        self._dtype = dtype
        self._device = device
        self._instance = instance
        self._sources = sources
        self._library = load_library()
        self._epochs: dict[int, EpochSlots] = {}
        self._loading: EpochSlots | None = None
        #: The newest table that is to be loaded after the one in progress.
        self._next: PlacementTable | None = None
        #: Where the replicas are; ``None`` before the first placement.
        self.bank: ExpertBank | None = None
        #: The newest epoch whose replicas are in memory, 0 for none.
        self.loaded_epoch = 0
        #: The placement that dispatches use now, as the newest view says: others hold what it says.
        self.in_force: PlacementTable | None = None
        #: The same, where this instance has not loaded it.
        self._others: Placement | None = None
        #: Counts how often slots were taken away: what was checked under another number must be checked again.
        self.generation = 0

    # -- loading and giving back -----------------------------------------------------------------------------------

    def expect(self, table: PlacementTable) -> None:
        """``table`` is to be loaded next: what is being loaded now is not wanted any more, and gives way to it."""
        if self._next is None or table.epoch > self._next.epoch:
            self._next = table

    async def load(self, table: PlacementTable) -> PlacementLoaded:
        """Load this instance's slots of ``table``; dispatches of the epochs before go on being served.

        When it fails, is cancelled or superseded, what it has loaded is given back, but for what the next epoch wants
        in the same place; the epochs before stay as they are. One at a time.
        """
        started = time.perf_counter()
        sources, loaded = self._sources, list[tuple[int, int]]()
        disk_before, peers_before = sources.bytes_from_disk, sources.bytes_from_peers

        def report(replicas: int, error: str = "") -> PlacementLoaded:
            return PlacementLoaded(
                epoch=table.epoch,
                replicas=replicas,
                bytes_read=sources.bytes_from_disk - disk_before,
                bytes_from_peers=sources.bytes_from_peers - peers_before,
                seconds=time.perf_counter() - started,
                error=error,
            )

        try:
            epoch = await sources.run(EpochSlots, table, self._instance, self._library)
            self._loading = epoch
            bank = self._room_for(epoch)
            missing = [(layer, slot, int(epoch.experts_LC[layer, slot])) for layer, slot in self._missing(bank, epoch)]
            for number, (layer, slot, expert) in enumerate(missing, 1):
                self._give_way(table)
                if bank.slot_expert[layer][slot] != EMPTY:
                    self._take_away(bank, [(layer, slot)])
                loaded.append((layer, slot))
                then = partial(self._from_checkpoint, missing[number : number + 1])
                holders = await self._holders(layer, expert)
                await sources.fill(bank, layer, slot, expert, holders=holders, then=then)
                bank.hold(layer, slot, expert)
            epoch.allow()
            self._epochs[table.epoch] = epoch
            self.loaded_epoch = table.epoch
        except BaseException as error:
            useless = [place for place in loaded if not self._wanted_next(table, bank, *place)]
            if useless:
                self._take_away(bank, useless)
            if not isinstance(error, Exception):
                raise
            problem = str(error) or type(error).__name__
            level = log.info if isinstance(error, _Superseded) else log.error
            level("placement_not_loaded", epoch=table.epoch, rolled_back=len(useless), problem=problem)
            return report(0, problem)
        finally:
            self._loading = None
            await sources.rest()
        if len(self._epochs) > _MAX_EPOCHS:
            self.retire(sorted(self._epochs)[-_MAX_EPOCHS])
        done = report(epoch.replicas)
        log.info(
            "placement_loaded",
            epoch=table.epoch,
            replicas=done.replicas,
            loaded=len(loaded),
            bytes_read=done.bytes_read,
            bytes_from_peers=done.bytes_from_peers,
            seconds=round(done.seconds, 3),
        )
        return done

    def _from_checkpoint(self, following: Sequence[tuple[int, int, int]]) -> tuple[int, int] | None:
        """Return MoE layer and expert of what follows, if it can only come from the checkpoint and nothing is served.

        Where dispatches are served, the other cores are theirs.
        """
        if not following or self._epochs or self.in_force is not None:
            return None
        return following[0][0], following[0][2]

    @property
    def loaded_epochs(self) -> list[int]:
        """The epochs whose replicas are loaded; may be read from another thread."""
        return sorted(self._epochs)

    def retire(self, oldest_epoch: int) -> int:
        """Forget the epochs below ``oldest_epoch`` and give back what only they use; returns how many slots.

        What is being loaded counts as in use.
        """
        for number in [number for number in self._epochs if number < oldest_epoch]:
            del self._epochs[number]
        bank = self.bank
        if bank is None:
            return 0
        using_LC = np.zeros((len(bank.slot_expert), bank.slots), dtype=np.bool_)
        for epoch in (*self._epochs.values(), *([self._loading] if self._loading is not None else [])):
            using_LC[:, : epoch.count] |= epoch.experts_LC != EMPTY
        idle_LC = (np.array(bank.slot_expert, dtype=np.int32) != EMPTY) & ~using_LC
        idle = [(layer, slot) for layer, slot in np.argwhere(idle_LC).tolist()]
        if idle:
            self._take_away(bank, idle)
            log.info("replicas_given_back", oldest_epoch=oldest_epoch, slots=len(idle))
        return len(idle)

    def _room_for(self, epoch: EpochSlots) -> ExpertBank:
        """Return the bank, with at least as many slots as ``epoch`` has; what it holds stays."""
        if self.bank is None:
            layers = len(epoch.experts_LC)
            self.bank = self._make_bank(self._config, layers, epoch.count, self._dtype, self._device)
        elif self.bank.slots < epoch.count:
            self.bank.grow(epoch.count)
        return self.bank

    def _missing(self, bank: ExpertBank, epoch: EpochSlots) -> list[tuple[int, int]]:
        """Return the (layer, slot) pairs to load, in order; those that must be taken from older epochs come last."""
        if epoch.experts_LC.shape[0] != len(bank.slot_expert):
            raise ValueError(f"placement: {epoch.experts_LC.shape[0]} layers, the model has {len(bank.slot_expert)}")
        held_LC = np.array(bank.slot_expert, dtype=np.int32)[:, : epoch.count]
        wanted_LC = epoch.experts_LC
        free, taken = (
            [(layer, slot) for layer, slot in np.argwhere((wanted_LC != EMPTY) & mask).tolist()]
            for mask in (held_LC == EMPTY, (held_LC != EMPTY) & (held_LC != wanted_LC))
        )
        return free + taken

    def _give_way(self, table: PlacementTable) -> None:
        if self._next is not None and self._next.epoch > table.epoch:
            raise _Superseded(f"superseded by epoch {self._next.epoch}")

    def _wanted_next(self, table: PlacementTable, bank: ExpertBank, layer: int, slot: int) -> bool:
        """Whether the place holds what the epoch after ``table`` wants there."""
        following = self._next
        if following is None or following.epoch <= table.epoch or self._instance not in following.instances:
            return False
        index = following.instances.index(self._instance)
        try:
            return following.slots[layer][index][slot] == bank.slot_expert[layer][slot] != EMPTY
        except IndexError:  # fewer slots, or no placement at all, which loading it will say
            return False

    def _take_away(self, bank: ExpertBank, places: list[tuple[int, int]]) -> None:
        """No epoch may use these (layer, slot) pairs from here on."""
        self.generation += 1
        for layer, slot in places:
            for epoch in self._epochs.values():
                epoch.forbid(layer, slot)
            bank.release(layer, slot)
        self._sources.give_back(bank, places)

    async def _holders(self, layer: int, expert: int) -> list[str]:
        """Return the instances that have ``expert`` in memory, as far as is known here."""
        table = self.in_force
        number = self.loaded_epoch if table is None else table.epoch
        if number in self._epochs:
            placement = self._epochs[number].placement
        elif table is not None:
            if self._others is None or self._others.epoch != number:
                self._others = await self._sources.run(Placement.from_table, table)
            placement = self._others
        else:
            return []
        return [placement.instances[index] for index in placement.hosts(layer, expert)]

    # -- what dispatches may use -----------------------------------------------------------------------------------

    def placement(self, epoch: int) -> Placement:
        """Return the placement of ``epoch``.

        Raises:
            ReplicaMissing: it is not loaded here, or over.
        """
        return self._epoch(epoch).placement

    def scan(self, layer: int, epoch: int, slots_NK: LazySlots) -> int:
        """As ``EpochSlots.scan``."""
        return self._epoch(epoch).scan(layer, slots_NK)

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
        """As ``EpochSlots.take_share``."""
        return self._epoch(epoch).take_share(layer, slots_NK, own_NK, position=position, instances=instances)

    def check_own(self, layer: int, epoch: int, own_NK: npt.NDArray[np.int32]) -> int:
        """As ``EpochSlots.check_own``."""
        return self._epoch(epoch).check_own(layer, own_NK)

    def distinct(self, tables: Sequence[tuple[int, int]]) -> int:
        """Return how many distinct slots are named in ``tables``: (address, entries) of slots that were checked."""
        assert self._library is not None  # who has addresses has kernels
        assert self.bank is not None
        return distinct(self._library, self.bank.slots, tables)

    def prime(self) -> None:
        """A dispatch is here: wake the threads that will compute it."""
        if self._library is not None:
            self._library.prime()

    def _epoch(self, number: int) -> EpochSlots:
        found = self._epochs.get(number)
        if found is None:
            raise ReplicaMissing(f"epoch {number} is not loaded here, the newest is {self.loaded_epoch}")
        return found
