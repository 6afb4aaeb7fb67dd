"""The gate on the expert side: every expert instance gates and schedules a dispatch by itself, all of them alike.

They see the same activations, have the same gates, placement and scheduler, and all of these are deterministic; so they
agree on who computes what without a word. Each attention instance's batch is scheduled on its own, since what else
is in a frame differs from node to node.
"""

from __future__ import annotations

import numpy as np
import torch

from janus.core.placement import Placement
from janus.core.scheduling import Scheduler
from janus.errors import ReplicaMissing
from janus.exchange.layout import UngatedLayout
from janus.exchange.remote import SCHEDULER_NAMES, SCHEDULER_SHIFT
from janus.model.config import ModelConfig
from janus.model.gate import Gates
from janus.model.kernels.scheduling import fastest_scheduler
from janus.runtime.replica_slots import ReplicaSlots
from janus.runtime.shares import NodeView, Share
from janus.transport.frame import Flags
from janus.transport.link import InFrame

#: What is left of placements without some instances.
_LEFT_KEPT = 32


class ExpertGate:
    """Turns activations without routing into one instance's share."""

    def __init__(
        self, gates: Gates, config: ModelConfig, dtype: torch.dtype, replicas: ReplicaSlots, instance: str
    ) -> None:
        self._gates = gates
        self._layers = config.moe_layers
        self._dtype = dtype
        self._replicas = replicas
        self._instance = instance
        self._schedulers: dict[int, Scheduler] = {}
        #: By epoch and set of instances that are left out.
        self._left: dict[tuple[int, int], Placement] = {}

    def share(self, frame: InFrame, layout: UngatedLayout, view: NodeView) -> tuple[Share, tuple[str, ...]]:
        """Return this instance's share, and the names of all on its node who have one.

        Raises:
            ReplicaMissing: the replicas of the dispatch's epoch are not loaded, or too many are left out.
            ValueError: the frame names no scheduler.
        """
        header = frame.header
        x_NH, batches = layout.views(frame.payload)
        placement = self._without(view.placement, int(layout.left_out(frame.payload)[0]))
        scheduler = self._scheduler(header.flags >> SCHEDULER_SHIFT & 0xF)
        index, count = placement.instances.index(self._instance), placement.slots_per_instance
        weights, slots = [], []
        rows_G = np.zeros(placement.num_instances, dtype=np.int64)
        start = 0
        for rows in batches.tolist():
            gate_weights, ids = self._gates.route(self._layers[header.layer], x_NH[start : start + rows])
            assignment = scheduler(ids.cpu().numpy(), placement, header.layer)
            rows_G += assignment.rows
            phys = assignment.phys_ids
            here = (phys >= index * count) & (phys < (index + 1) * count)
            slots.append(np.where(here, phys - np.int32(index * count), np.int32(-1)))
            weights.append(gate_weights.cpu().numpy())
            start += rows
        slots_NK = slots[0] if len(slots) == 1 else np.concatenate(slots)
        weights_NK = weights[0] if len(weights) == 1 else np.concatenate(weights)
        activated = self._replicas.check_own(header.layer, header.epoch, slots_NK)
        share = Share(
            frame,
            layout.rows,
            layout.hidden,
            slots_NK.shape[1],
            layout.dtype,
            slots_NK,
            weights_NK,
            slots_NK.ctypes.data,
            weights_NK.ctypes.data,
            activated,
        )
        if not header.flags & Flags.NODE:
            return share, (self._instance,)
        rows = dict(zip(placement.instances, rows_G.tolist(), strict=True))
        names = tuple(name for name in view.names if rows[name])
        # A row that no expert of this node wants is answered all the same: the sender cannot know.
        return share, names or (self._instance,)

    def _without(self, placement: Placement, left_out: int) -> Placement:
        """Return what is left of ``placement`` without the instances of the set, which the sender does not use."""
        if not left_out:
            return placement
        key = (placement.epoch, left_out)
        left = self._left.get(key)
        if left is None:
            names = frozenset(name for index, name in enumerate(placement.instances) if left_out >> index & 1)
            left = placement.without(names)
            if left is None:
                raise ReplicaMissing(f"without {', '.join(sorted(names))} epoch {placement.epoch} lacks an expert")
            while len(self._left) >= _LEFT_KEPT:
                self._left.pop(next(iter(self._left)))
            self._left[key] = left
        return left

    def _scheduler(self, number: int) -> Scheduler:
        found = self._schedulers.get(number)
        if found is None:
            if number >= len(SCHEDULER_NAMES):
                raise ValueError(f"the dispatch asks for scheduler {number}, there are {len(SCHEDULER_NAMES)}")
            found = self._schedulers[number] = fastest_scheduler(SCHEDULER_NAMES[number])
        return found
