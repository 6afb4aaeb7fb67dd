"""Schedulers on the CPU kernels: the decisions of ``janus.core.scheduling``, in microseconds."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS, Assignment, LayerTables, Scheduler, layer_tables
from janus.core.scheduling.tables import MAX_INSTANCES
from janus.model.kernels.library import Library, load_library

_log = structlog.get_logger(__name__)

#: ``janus::Policy``.
_POLICIES = {"static": 0, "random": 1, "token-balanced": 2, "aebs-greedy": 3, "aebs": 4}
_BALANCING = ("aebs-greedy", "aebs")


class ScheduleTables(ctypes.Structure):
    """``janus::ScheduleTables``."""

    _fields_ = (
        ("experts", c_int64),
        ("instances", c_int64),
        ("slots", c_int64),
        ("max_replicas", c_int64),
        ("order", c_void_p),
        ("hosts", c_void_p),
        ("phys_of", c_void_p),
        ("replicas", c_void_p),
        ("logical_to_phys", c_void_p),
    )


def fastest_scheduler(name: str) -> Scheduler:
    """Return the scheduler of that name, compiled where there are kernels.

    Raises:
        KeyError: there is none of that name.
    """
    plain = SCHEDULERS[name]
    library = load_library()
    return plain if library is None else CompiledScheduler(library, name)


class CompiledScheduler:
    """A scheduler, compiled. The arrays of an ``Assignment`` are its own: they are valid until the next call."""

    def __init__(self, library: Library, name: str) -> None:
        self._library = library
        self._policy = self._in_force = _POLICIES[name]
        self._balancing = name in _BALANCING
        self._placement: Placement | None = None
        self._tables: list[ScheduleTables] = []
        self._alive: list[object] = []
        self._phys = np.empty(0, dtype=np.int32)
        self._counts = np.empty(0, dtype=np.int32)
        self._phys_at = self._counts_at = 0

    def __call__(
        self,
        topk_ids: npt.NDArray[np.integer[Any]],
        placement: Placement,
        layer: int,
        load0: npt.NDArray[np.int32] | None = None,
    ) -> Assignment:
        """See ``janus.core.scheduling.Scheduler``."""
        if placement is not self._placement:
            self._prepare(placement)
        ids = np.ascontiguousarray(topk_ids, dtype=np.int32)
        queued = None if load0 is None else np.ascontiguousarray(load0, dtype=np.int32)
        tokens, k = ids.shape
        instances = placement.num_instances
        if ids.size > len(self._phys):
            self._phys = np.empty(max(1024, 2 * ids.size), dtype=np.int32)
            self._phys_at = self._phys.ctypes.data
        counts, counts_at = self._counts, self._counts_at
        self._library.schedule(
            self._in_force,
            layer,
            tokens,
            k,
            ctypes.addressof(self._tables[layer]),
            ids.ctypes.data,
            None if queued is None else queued.ctypes.data,
            self._phys_at,
            counts_at + 16,
            counts_at + 16 + 4 * instances,
            counts_at,
        )
        activated, _, repairs, proven = counts[:4].tolist()
        return Assignment(
            self._phys[: ids.size].reshape(tokens, k),
            counts[4 : 4 + instances],
            counts[4 + instances :],
            activated,
            repairs,
            None if proven < 0 else bool(proven),
            self._phys_at,
        )

    def _prepare(self, placement: Placement) -> None:
        """Lay out the tables of ``placement``. One with more instances than can be balanced is served all the same."""
        balanced = placement.num_instances <= MAX_INSTANCES
        self._in_force = self._policy if balanced or not self._balancing else _POLICIES["static"]
        if self._in_force != self._policy:
            _log.warning("scheduler_is_static", instances=placement.num_instances, balanced_at_most=MAX_INSTANCES)
        layers = [layer_tables(placement, layer) if balanced else None for layer in range(placement.num_layers)]
        replicas = np.ascontiguousarray(placement.replica_count)
        physical = np.ascontiguousarray(placement.logical_to_phys)
        self._tables = [
            self._layout(placement, tables, replicas[layer], physical[layer]) for layer, tables in enumerate(layers)
        ]
        self._alive = [layers, replicas, physical]
        self._counts = np.zeros(4 + 2 * placement.num_instances, dtype=np.int32)
        self._counts_at = self._counts.ctypes.data
        self._placement = placement

    @staticmethod
    def _layout(
        placement: Placement,
        tables: LayerTables | None,
        replicas: npt.NDArray[np.int32],
        physical: npt.NDArray[np.int32],
    ) -> ScheduleTables:
        return ScheduleTables(
            experts=placement.num_experts,
            instances=placement.num_instances,
            slots=placement.slots_per_instance,
            max_replicas=physical.shape[1],
            order=None if tables is None else tables.order.ctypes.data,
            hosts=None if tables is None else tables.hosts.ctypes.data,
            phys_of=None if tables is None else tables.phys_of.ctypes.data,
            replicas=replicas.ctypes.data,
            logical_to_phys=physical.ctypes.data,
        )
