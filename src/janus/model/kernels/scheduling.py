"""Schedulers on the CPU kernels: the decisions of ``janus.core.scheduling``, without its dozen array operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS, Assignment, Scheduler
from janus.model.kernels.library import Library, load_library


def fastest_scheduler(name: str) -> Scheduler:
    """Return the scheduler of that name, compiled where there are kernels and one for it; KeyError if unknown."""
    scheduler = SCHEDULERS[name]
    library = load_library() if name == "static" else None
    return scheduler if library is None else StaticScheduler(library)


class StaticScheduler:
    """``static``, compiled. The arrays of an ``Assignment`` are its own: they are valid until the next call."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._phys = np.empty(0, dtype=np.int32)
        self._counts = np.empty(0, dtype=np.int32)
        self._phys_at = self._counts_at = 0

    def __call__(
        self,
        topk_ids: npt.NDArray[np.integer[Any]],
        placement: Placement,
        layer: int,
        load0: npt.NDArray[np.integer[Any]] | None = None,
    ) -> Assignment:
        """See ``janus.core.scheduling.Scheduler``."""
        ids = np.ascontiguousarray(topk_ids, dtype=np.int32)
        (tokens, k), instances = ids.shape, placement.num_instances
        self._reserve(ids.size, instances)
        wrong = self._library.schedule_static(
            tokens,
            k,
            placement.num_experts,
            instances,
            placement.slots_per_instance,
            ids.ctypes.data,
            placement.first_replica_address + layer * placement.num_experts * 4,
            self._phys_at,
            self._counts_at,
            self._counts_at + instances * 4,
        )
        if wrong:
            raise IndexError(f"an expert id is outside 0..{placement.num_experts - 1}")
        phys_ids = self._phys[: ids.size].reshape(tokens, k)
        counts = self._counts
        return Assignment(phys_ids, counts[:instances], counts[instances : 2 * instances], self._phys_at)

    def _reserve(self, ids: int, instances: int) -> None:
        if ids > len(self._phys):
            self._phys = np.empty(max(1024, 2 * ids), dtype=np.int32)
            self._phys_at = self._phys.ctypes.data
        if 2 * instances > len(self._counts):
            self._counts = np.empty(4 * instances, dtype=np.int32)
            self._counts_at = self._counts.ctypes.data
