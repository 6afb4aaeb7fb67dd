"""Schedulers on the CPU kernels: the decisions of ``janus.core.scheduling``, in microseconds."""

from __future__ import annotations

import ctypes
from collections import deque
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
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
#: Placements whose tables are kept: the one in force, the one before it that steps in flight were planned with, and
#: as many again while both lose an instance.
_PLACEMENTS_KEPT = 4


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """What the kernel reads of one placement, and where it writes its counts."""

    placement: Placement
    policy: int
    #: One per MoE layer; they point into the arrays of ``alive``.
    tables: list[ScheduleTables]
    alive: tuple[object, ...]
    counts: npt.NDArray[np.int32]
    counts_at: int


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
        self._policy = _POLICIES[name]
        self._balancing = name in _BALANCING
        #: The placements used last, the newest first: with steps of two epochs in flight, calls alternate.
        self._prepared: deque[_Prepared] = deque(maxlen=_PLACEMENTS_KEPT)
        self._phys = np.empty(0, dtype=np.int32)
        self._phys_at = 0

    def __call__(
        self,
        topk_ids: npt.NDArray[np.integer[Any]],
        placement: Placement,
        layer: int,
        load0: npt.NDArray[np.int32] | None = None,
    ) -> Assignment:
        """See ``janus.core.scheduling.Scheduler``."""
        prepared = self._prepared[0] if self._prepared else None
        if prepared is None or prepared.placement is not placement:
            prepared = self._switch(placement)
        ids = np.ascontiguousarray(topk_ids, dtype=np.int32)
        queued = None if load0 is None else np.ascontiguousarray(load0, dtype=np.int32)
        tokens, k = ids.shape
        instances = placement.num_instances
        if ids.size > len(self._phys):
            self._phys = np.empty(max(1024, 2 * ids.size), dtype=np.int32)
            self._phys_at = self._phys.ctypes.data
        counts, counts_at = prepared.counts, prepared.counts_at
        self._library.schedule(
            prepared.policy,
            layer,
            tokens,
            k,
            ctypes.addressof(prepared.tables[layer]),
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

    def _switch(self, placement: Placement) -> _Prepared:
        """Return what is laid out for ``placement``, laying it out unless it is one of the last ones."""
        for index, prepared in enumerate(self._prepared):
            if prepared.placement is placement:
                del self._prepared[index]
                break
        else:
            prepared = self._prepare(placement)
        self._prepared.appendleft(prepared)
        return prepared

    def _prepare(self, placement: Placement) -> _Prepared:
        """Lay out the tables of ``placement``. One with more instances than can be balanced is served all the same."""
        balanced = placement.num_instances <= MAX_INSTANCES
        policy = self._policy if balanced or not self._balancing else _POLICIES["static"]
        if policy != self._policy:
            _log.warning("scheduler_is_static", instances=placement.num_instances, balanced_at_most=MAX_INSTANCES)
        layers = [layer_tables(placement, layer) if balanced else None for layer in range(placement.num_layers)]
        replicas = np.ascontiguousarray(placement.replica_count)
        physical = np.ascontiguousarray(placement.logical_to_phys)
        counts = np.zeros(4 + 2 * placement.num_instances, dtype=np.int32)
        return _Prepared(
            placement=placement,
            policy=policy,
            tables=[
                self._layout(placement, tables, replicas[layer], physical[layer]) for layer, tables in enumerate(layers)
            ],
            alive=(layers, replicas, physical),
            counts=counts,
            counts_at=counts.ctypes.data,
        )

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
