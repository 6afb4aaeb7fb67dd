"""Where a dispatch goes: the destinations of each way to exchange, and who posts for whom. Pure.

Three ways (paper, section 3.3; arXiv 2512.13525):

direct       every attention instance sends to every expert instance: m x n messages.
aggregated   the instances of an attention node gather their rows; one message per destination instance (case 1).
two-phase    they gather them per destination node; one message per pair of nodes, whose relay multicasts (case 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from janus.core.placement import Placement

Mode: TypeAlias = Literal["direct", "aggregated", "two-phase"]
MODES: tuple[Mode, ...] = ("direct", "aggregated", "two-phase")

#: In a target number: the destination is a node, not an instance.
_NODE_BIT = 1 << 31


@dataclass(frozen=True, slots=True)
class Destination:
    """Expert instances that one frame serves."""

    #: Indices in the placement, ascending.
    instances: tuple[int, ...]
    #: Index of their node in ``Placement.groups``.
    group: int
    #: The instance that the frame is sent to.
    relay: str
    #: What a hand-in calls this destination; see ``destination``.
    target: int

    @property
    def is_node(self) -> bool:
        """Whether the relay has siblings to share the frame with."""
        return len(self.instances) > 1


@dataclass(frozen=True, slots=True)
class Route:
    """All destinations of one way to exchange, in the order in which their answers are added up."""

    mode: Mode
    destinations: tuple[Destination, ...]
    #: For each destination, the member of the source node that posts for all its members.
    aggregators: tuple[str, ...]


def routes(placement: Placement, *, source: int) -> dict[bool, tuple[Destination, ...]]:
    """Return the destinations under ``placement``: ``[False]`` instance by instance, ``[True]`` node by node.

    ``source``: number of the source node among the attention nodes. Nodes with different numbers use different relays
    where there are enough, so that no instance relays for all.
    """
    by_node = tuple(_node(placement, group, source) for group in range(len(placement.groups)))
    by_instance = tuple(_instance(placement, i, g) for g, group in enumerate(placement.groups) for i in group)
    return {False: by_instance, True: by_node}


def route(destinations: Sequence[Destination], mode: Mode, *, own: str, members: Sequence[str]) -> Route:
    """Return who posts for whom.

    Args:
        destinations: by instance for "direct" and "aggregated", by node for "two-phase".
        mode: the way.
        own: the attention instance that asks.
        members: the instances of its node that can hand in to one another, ``own`` among them, the same order on all.
    """
    if mode == "direct":
        return Route(mode, tuple(destinations), (own,) * len(destinations))
    posts = tuple(members[index % len(members)] for index in range(len(destinations)))
    return Route(mode, tuple(destinations), posts)


def destination(placement: Placement, target: int, *, source: int) -> Destination:
    """Return the destination that a hand-in names.

    Raises:
        ValueError: ``placement`` has no such destination.
    """
    index = target & ~_NODE_BIT
    if target & _NODE_BIT:
        if index < len(placement.groups):
            return _node(placement, index, source)
    elif index < len(placement.instances):
        group = next(g for g, group in enumerate(placement.groups) if index in group)
        return _instance(placement, index, group)
    raise ValueError(f"epoch {placement.epoch} has no destination {target:#x}")


def _node(placement: Placement, group: int, source: int) -> Destination:
    instances = placement.groups[group]
    relay = placement.instances[instances[source % len(instances)]]
    return Destination(instances, group, relay, _NODE_BIT | group)


def _instance(placement: Placement, instance: int, group: int) -> Destination:
    return Destination((instance,), group, placement.instances[instance], instance)
