"""What the activation-balancing schedulers look up about one layer of a placement, made once per placement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.errors import ConfigError

#: A set of instances is one 64-bit word.
MAX_INSTANCES = 64


@dataclass(frozen=True, slots=True, eq=False)
class LayerTables:
    """E experts, G instances."""

    #: int32[E]: experts by ascending number of replicas, then by id: who has the least choice chooses first.
    order: npt.NDArray[np.int32]
    #: uint64[E]: bit g is set where instance g has a replica.
    hosts: npt.NDArray[np.uint64]
    #: int32[E, G]: physical id of the expert's replica on an instance, ``EMPTY`` where it has none.
    phys_of: npt.NDArray[np.int32]
    #: int32[E]: replicas of each expert.
    replicas: npt.NDArray[np.int32]


def layer_tables(placement: Placement, layer: int) -> LayerTables:
    """Return the tables of one layer.

    Raises:
        ConfigError: there are more than ``MAX_INSTANCES`` instances.
    """
    experts, instances, slots = placement.num_experts, placement.num_instances, placement.slots_per_instance
    if instances > MAX_INSTANCES:
        raise ConfigError(
            "scheduler", f"{instances} expert instances, at most {MAX_INSTANCES} can be balanced", "use static"
        )
    held = placement.phys_to_logical[layer]
    phys = np.flatnonzero(held != EMPTY)
    phys_of = np.full((experts, instances), EMPTY, dtype=np.int32)
    phys_of[held[phys], phys // slots] = phys
    bits = np.left_shift(np.uint64(1), np.arange(instances, dtype=np.uint64))
    hosts = np.where(phys_of != EMPTY, bits, np.uint64(0)).sum(axis=1, dtype=np.uint64)
    replicas = np.ascontiguousarray(placement.replica_count[layer])
    order = np.argsort(replicas, kind="stable").astype(np.int32)
    return LayerTables(order, hosts, phys_of, replicas)
