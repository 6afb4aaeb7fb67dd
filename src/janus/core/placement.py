"""Which expert instance holds a replica of which expert: the placement, its tables, and the static one.

How placements are decided is in ``janus.core.placing``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError
from janus.messages.control import PlacementTable

#: ``[layer][instance][slot]`` = logical expert id, ``EMPTY`` for a slot without one.
Slots = tuple[tuple[tuple[int, ...], ...], ...]
EMPTY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """An immutable replica table of all MoE layers. L layers, E experts, G instances, C slots per instance and layer.

    A replica's physical id is ``instance_index * C + slot``. Replicas of an expert are numbered by slot, then by
    instance: the first slots are dealt evenly, so that first replicas are spread. The numpy tables are read-only.

    Raises:
        ValueError: not rectangular, an expert without a replica or twice on an instance; names layer and expert.
    """

    epoch: int
    num_experts: int
    instances: tuple[str, ...]
    slots: Slots
    #: The node of each of ``instances``; empty counts all of them as one node.
    nodes: tuple[str, ...] = ()
    #: int32[L, G*C]: the logical expert in each slot, ``EMPTY`` where there is none.
    phys_to_logical: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    #: int32[L, E, Rmax]: physical ids of each expert's replicas, padded with ``EMPTY``.
    logical_to_phys: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    #: int32[L, E]: replicas of each expert.
    replica_count: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    #: Indices into ``instances``, ascending, for each node, in the order in which the nodes first occur.
    groups: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        phys_to_logical = _checked(self)
        counts, logical_to_phys = _invert(phys_to_logical, self.num_experts, self.slots_per_instance)
        for name, table in (
            ("phys_to_logical", phys_to_logical),
            ("logical_to_phys", logical_to_phys),
            ("replica_count", counts),
        ):
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        object.__setattr__(self, "groups", _groups(self))

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.slots)

    @property
    def num_instances(self) -> int:
        """Expert instances."""
        return len(self.instances)

    @property
    def slots_per_instance(self) -> int:
        """Slots that each instance has in each layer."""
        return len(self.slots[0][0])

    def group_of(self, instance: str) -> tuple[int, ...]:
        """Return the indices of the instances that share a node with ``instance``, itself included.

        Raises:
            ValueError: the placement does not have it.
        """
        index = self.instances.index(instance)
        return next(group for group in self.groups if index in group)

    def hosts(self, layer: int, expert: int) -> tuple[int, ...]:
        """Return the indices of the instances that hold ``expert`` of ``layer``, in ascending order."""
        count = self.replica_count[layer, expert]
        return tuple(sorted((self.logical_to_phys[layer, expert, :count] // self.slots_per_instance).tolist()))

    def replicas(self, instance: str) -> tuple[tuple[int, ...], ...]:
        """Return the experts that ``instance`` holds in each layer, ascending; all empty for an unknown instance."""
        if instance not in self.instances:
            return ((),) * self.num_layers
        index = self.instances.index(instance)
        return tuple(tuple(sorted(e for e in layer[index] if e != EMPTY)) for layer in self.slots)

    def covered_by(self, instances: frozenset[str]) -> bool:
        """Return whether ``instances`` alone hold at least one replica of every expert of every layer."""
        columns = np.repeat([name in instances for name in self.instances], self.slots_per_instance)
        wanted = np.arange(self.num_experts)
        return all(bool(np.isin(wanted, layer[columns]).all()) for layer in self.phys_to_logical)

    def without(self, instances: frozenset[str]) -> Placement | None:
        """Return what is left when ``instances`` are not used: the same epoch and physical ids, their slots ``EMPTY``.

        ``None`` when an expert is then nowhere. Unknown names change nothing.
        """
        lost = [index for index, name in enumerate(self.instances) if name in instances]
        if not lost:
            return self
        left = self.phys_to_logical.reshape(self.num_layers, self.num_instances, -1).copy()
        left[:, lost] = EMPTY
        found = np.zeros((self.num_layers, self.num_experts + 1), dtype=bool)  # the last column takes EMPTY
        found[np.arange(self.num_layers)[:, None, None], left] = True
        if not found[:, :-1].all():
            return None
        nothing, gone = (EMPTY,) * self.slots_per_instance, frozenset(lost)
        slots = tuple(
            tuple(nothing if index in gone else held for index, held in enumerate(layer)) for layer in self.slots
        )
        return replace(self, slots=slots)

    def to_table(self) -> PlacementTable:
        """Return the wire form."""
        return PlacementTable(
            epoch=self.epoch,
            num_experts=self.num_experts,
            instances=list(self.instances),
            slots=[[list(slots) for slots in layer] for layer in self.slots],
            nodes=list(self.nodes),
        )

    @classmethod
    def from_table(cls, table: PlacementTable) -> Placement:
        """Return the placement in ``table``.

        Raises:
            ValueError: as the class says; the table came from elsewhere and is not trusted.
        """
        return cls(
            epoch=table.epoch,
            num_experts=table.num_experts,
            instances=tuple(table.instances),
            slots=tuple(tuple(tuple(slots) for slots in layer) for layer in table.slots),
            nodes=tuple(table.nodes),
        )


def _checked(placement: Placement) -> npt.NDArray[np.int32]:
    """Return ``phys_to_logical`` of a placement whose structure is right."""
    epoch, experts, instances = placement.epoch, placement.num_experts, placement.instances
    if epoch < 1 or experts < 1 or not instances or not placement.slots:
        raise ValueError(f"placement: epoch {epoch}, {experts} experts, {len(instances)} instances; each must be >= 1")
    if len(set(instances)) != len(instances) or not all(instances):
        raise ValueError(f"placement: instance names must be different and not empty, these are {list(instances)}")
    try:
        slots = np.array(placement.slots, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError("placement: every layer must have the same instances and slots") from error
    if slots.ndim != 3 or slots.shape[1] != len(instances) or slots.shape[2] < 1:
        raise ValueError(f"placement: slots have the shape {slots.shape}, expected (layers, {len(instances)}, slots)")
    if slots.min() < EMPTY or slots.max() >= experts:
        layer, instance, slot = np.argwhere((slots < EMPTY) | (slots >= experts))[0]
        raise ValueError(
            f"placement: layer {layer} has expert {slots[layer, instance, slot]}, outside 0..{experts - 1}"
        )
    ordered = np.sort(slots, axis=2)
    for layer, instance, slot in np.argwhere((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != EMPTY)):
        expert = ordered[layer, instance, slot]
        raise ValueError(f"placement: layer {layer} has expert {expert} twice on {instances[instance]}")
    return slots.reshape(len(slots), -1).astype(np.int32)


def _groups(placement: Placement) -> tuple[tuple[int, ...], ...]:
    nodes = placement.nodes or ("",) * len(placement.instances)
    if len(nodes) != len(placement.instances):
        raise ValueError(f"placement: {len(nodes)} nodes are named for {len(placement.instances)} instances")
    return tuple(tuple(i for i, name in enumerate(nodes) if name == node) for node in dict.fromkeys(nodes))


def _invert(
    phys_to_logical: npt.NDArray[np.int32], num_experts: int, slots_per_instance: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return ``replica_count`` and ``logical_to_phys``."""
    num_layers = len(phys_to_logical)
    layers, phys = np.nonzero(phys_to_logical != EMPTY)
    experts = phys_to_logical[layers, phys]
    counts = np.zeros((num_layers, num_experts), dtype=np.int32)
    np.add.at(counts, (layers, experts), 1)
    if (counts == 0).any():
        layer, expert = np.argwhere(counts == 0)[0]
        raise ValueError(f"placement: layer {layer} has no replica of expert {expert}")
    table = np.full((num_layers, num_experts, int(counts.max())), EMPTY, dtype=np.int32)
    # Grouped by (layer, expert), a replica's number is its distance from the group's first entry.
    order = np.lexsort((phys // slots_per_instance, phys % slots_per_instance, experts, layers))
    layers, experts, phys = layers[order], experts[order], phys[order]
    first = np.cumsum(counts) - counts.ravel()
    number = np.arange(len(phys)) - first[layers * num_experts + experts]
    table[layers, experts, number] = phys
    return counts, table


def static_placement(
    *,
    num_layers: int,
    num_experts: int,
    instances: tuple[str, ...],
    slots_per_instance: int | None = None,
    epoch: int = 1,
    activations: npt.NDArray[np.float64] | None = None,
    nodes: tuple[str, ...] = (),
) -> Placement:
    """Return an even placement: experts dealt round-robin, spare slots filled with replicas of the busiest.

    Layer ``l`` deals expert ``e`` to instance ``(e + l) % G``, so that what does not divide evenly is not always on the
    same instances. Deterministic.

    Args:
        slots_per_instance: per MoE layer; ``ceil(E / G)`` unless given.
        activations: float[L, E], how often each expert was activated; uniform unless given.
        nodes: the node of each instance, if known.

    Raises:
        ConfigError: there are fewer slots than experts.
    """
    from janus.core.placing.dealing import at_least_a_little, deal  # which itself is about placements

    if not instances:
        raise ConfigError("experts", "there is no expert instance to place experts on", "start at least one")
    total = len(instances)
    slots = slots_per_instance if slots_per_instance is not None else -(-num_experts // total)
    if total * slots < num_experts:
        raise ConfigError(
            "slots",
            f"{total} expert instances with {slots} slots per layer hold {total * slots} experts, "
            f"the model has {num_experts}",
            f"give each at least {-(-num_experts // total)} slots, or start at least "
            f"{-(-num_experts // max(slots, 1))} instances",
        )
    if activations is None:
        activations = np.ones((num_layers, num_experts))
    if activations.shape != (num_layers, num_experts) or not np.isfinite(activations).all() or activations.min() < 0:
        raise ConfigError(
            "activations",
            f"has the shape {activations.shape}, or negative or non-finite counts",
            f"give counts of the shape {(num_layers, num_experts)}",
        )
    quotas = (min(slots, num_experts),) * total
    dealt = [deal(at_least_a_little(counts), quotas, layer=layer) for layer, counts in enumerate(activations)]
    table = tuple(tuple((*held, *(EMPTY,) * (slots - len(held))) for held in layer) for layer in dealt)
    return Placement(epoch=epoch, num_experts=num_experts, instances=instances, slots=table, nodes=nodes)
