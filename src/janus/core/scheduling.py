"""Which replica serves an activated expert: from the gate's logical ids to physical ones, per dispatch.

A scheduler is a function; the attention instance is given one by name (``SCHEDULERS``). All of them are deterministic,
so that instances which see the same routing decide alike without talking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """What one dispatch of T tokens with K experts each asks of G instances."""

    #: int32[T, K]: physical replica ids, ``instance_index * C + slot``.
    phys_ids: npt.NDArray[np.int32]
    #: int32[G]: a_g, the distinct experts that this dispatch activates on each instance; a_max is its maximum.
    load: npt.NDArray[np.int32]
    #: int32[G]: tokens that have at least one replica on each instance.
    rows: npt.NDArray[np.int32]
    #: Address of ``phys_ids``, where it is known; 0 = ask numpy, which takes a microsecond.
    phys_address: int = 0


class Scheduler(Protocol):
    """Picks a replica for every activated expert of one layer.

    ``topk_ids`` int[T, K] are logical ids; ``load0`` int[G] is what each instance has queued already, zero unless
    given. One expert has one replica within a dispatch, whatever the number of its tokens: the cost of an MoE layer is
    the number of weights read, not the number of tokens (paper, section 2).
    """

    def __call__(
        self,
        topk_ids: npt.NDArray[np.integer[Any]],
        placement: Placement,
        layer: int,
        load0: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Assignment: ...


def static(
    topk_ids: npt.NDArray[np.integer[Any]],
    placement: Placement,
    layer: int,
    load0: npt.NDArray[np.integer[Any]] | None = None,
) -> Assignment:
    """Always the first replica, whatever the load; a ``Scheduler``."""
    if topk_ids.size and topk_ids.min() < 0:
        raise IndexError(f"an expert id is outside 0..{placement.num_experts - 1}")
    return counted(placement.first_replica[layer][topk_ids], placement)


def counted(phys_ids: npt.NDArray[np.int32], placement: Placement) -> Assignment:
    """Return the assignment to ``phys_ids`` int32[T, K]."""
    instances, slots = placement.num_instances, placement.slots_per_instance
    chosen = np.bincount(phys_ids.ravel(), minlength=instances * slots).reshape(instances, slots)
    touched = np.zeros((len(phys_ids), instances), dtype=bool)
    np.put_along_axis(touched, phys_ids // slots, True, axis=1)
    return Assignment(
        phys_ids, np.count_nonzero(chosen, axis=1).astype(np.int32), np.count_nonzero(touched, axis=0).astype(np.int32)
    )


#: Schedulers by the name that the configuration uses.
SCHEDULERS: dict[str, Scheduler] = {"static": static}
