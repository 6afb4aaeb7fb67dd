"""What a scheduler is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement

#: The physical id of a choice that is no expert.
PADDING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """What one dispatch of T tokens with K experts each asks of G instances."""

    #: int32[T, K]: physical replica ids, ``instance_index * C + slot``; ``PADDING`` where the id was no expert.
    phys_ids: npt.NDArray[np.int32]
    #: int32[G]: a_g, the replicas that this dispatch activates on each instance; a_max is its maximum.
    load: npt.NDArray[np.int32]
    #: int32[G]: tokens that have at least one replica on each instance.
    rows: npt.NDArray[np.int32]
    #: Distinct experts that are asked for.
    activated: int
    #: Shifts along augmenting paths (AEBS only).
    repairs: int = 0
    #: Whether no other choice of replicas, one per expert, has a smaller maximum; ``None`` = nobody looked.
    proven: bool | None = None
    #: Address of ``phys_ids``, where it is known; 0 = ask numpy, which takes a microsecond.
    phys_address: int = 0

    @property
    def a_max(self) -> int:
        """The largest of ``load``: the layer takes as long as the instance that reads the most experts."""
        return int(self.load.max())


class Scheduler(Protocol):
    """Picks replicas for the activated experts of one layer."""

    def __call__(
        self,
        topk_ids: npt.NDArray[np.integer[Any]],
        placement: Placement,
        layer: int,
        load0: npt.NDArray[np.int32] | None = None,
    ) -> Assignment:
        """Return the assignment.

        Args:
            topk_ids: int[T, K], logical expert ids, distinct within a row; one outside 0..E-1 is padding.
            placement: where the replicas are.
            layer: MoE layer, counted over MoE layers only.
            load0: int[G], experts that each instance has queued already; zero unless given.
        """
