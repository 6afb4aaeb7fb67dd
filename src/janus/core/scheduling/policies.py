"""Schedulers that do not balance activations: for placements without spare replicas, and for comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement
from janus.core.scheduling.contract import PADDING, Assignment

Ids = npt.NDArray[np.integer[Any]]


def static(topk_ids: Ids, placement: Placement, layer: int, load0: npt.NDArray[np.int32] | None = None) -> Assignment:
    """Always the first replica, whatever the load; a ``Scheduler``."""
    return counted(_pick(topk_ids, placement, layer, np.zeros(topk_ids.shape, dtype=np.int64)), topk_ids, placement)


def random(topk_ids: Ids, placement: Placement, layer: int, load0: npt.NDArray[np.int32] | None = None) -> Assignment:
    """One replica per activated expert, drawn evenly; the same one for the same routing. A ``Scheduler``."""
    experts = placement.num_experts
    real = topk_ids[_is_expert(topk_ids, placement)]
    tokens = np.bincount(real.ravel(), minlength=experts).astype(np.uint64)
    every = np.arange(experts, dtype=np.uint64)
    # The routing is the seed: two instances that see the same batch draw alike, and no counter has to be kept.
    seed = np.bitwise_xor.reduce(_mix(every << np.uint64(32) | tokens)[tokens > 0], initial=np.uint64(layer))
    drawn = _mix(seed ^ _mix(every)) % placement.replica_count[layer].astype(np.uint64)
    replica = drawn.astype(np.int64)[np.where(_is_expert(topk_ids, placement), topk_ids, 0)]
    return counted(_pick(topk_ids, placement, layer, replica), topk_ids, placement)


def token_balanced(
    topk_ids: Ids, placement: Placement, layer: int, load0: npt.NDArray[np.int32] | None = None
) -> Assignment:
    """Spread each expert's tokens over all its replicas in turn, as EPLB does; a ``Scheduler``.

    It evens out tokens and wakes every replica: right where a token costs more than the weights it is multiplied with.
    """
    flat = topk_ids.ravel()
    by_expert = np.argsort(flat, kind="stable")
    ordered = flat[by_expert]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(flat) else np.zeros(0, dtype=np.int64)
    turn = np.empty(len(flat), dtype=np.int64)
    turn[by_expert] = np.arange(len(flat)) - np.repeat(starts, np.diff(np.r_[starts, len(flat)]))
    replicas = placement.replica_count[layer][np.where(_is_expert(flat, placement), flat, 0)]
    return counted(_pick(topk_ids, placement, layer, (turn % replicas).reshape(topk_ids.shape)), topk_ids, placement)


def counted(phys_ids: npt.NDArray[np.int32], topk_ids: Ids, placement: Placement, **more: Any) -> Assignment:
    """Return the assignment of ``topk_ids`` to ``phys_ids`` int32[T, K]; ``more`` are fields of it."""
    instances, slots = placement.num_instances, placement.slots_per_instance
    real = phys_ids != PADDING
    chosen = np.bincount(phys_ids[real], minlength=instances * slots).reshape(instances, slots)
    touched = np.zeros((len(phys_ids), instances), dtype=bool)
    tokens, columns = np.nonzero(real)
    touched[tokens, phys_ids[tokens, columns] // slots] = True
    return Assignment(
        phys_ids,
        np.count_nonzero(chosen, axis=1).astype(np.int32),
        np.count_nonzero(touched, axis=0).astype(np.int32),
        len(np.unique(topk_ids[real])),
        **more,
    )


def _is_expert(ids: Ids, placement: Placement) -> npt.NDArray[np.bool_]:
    return (ids >= 0) & (ids < placement.num_experts)


def _pick(topk_ids: Ids, placement: Placement, layer: int, replica: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the physical ids of the numbered replicas, ``PADDING`` for what is no expert."""
    real = _is_expert(topk_ids, placement)
    picked = placement.logical_to_phys[layer][np.where(real, topk_ids, 0), np.where(real, replica, 0)]
    return np.where(real, picked, np.int32(PADDING))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's output function (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
