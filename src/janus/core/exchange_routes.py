"""Where a dispatch goes: the destinations of each way to exchange, and who posts for whom. Pure.

Three ways (paper, section 3.3; arXiv 2512.13525):

direct       every attention instance sends to every expert instance: m x n messages.
aggregated   the instances of an attention node gather their rows; one message per destination instance (case 1).
two-phase    they gather them per destination node; one message per pair of nodes, whose relay multicasts (case 2).

Large batches are not gathered: what a message costs is little beside their bytes, and to copy them together, and to
wait for the last of them before the first is sent, costs more. Each instance then sends its own to the destinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from janus.core.placement import EMPTY, Placement

Mode: TypeAlias = Literal["direct", "aggregated", "two-phase"]
MODES: tuple[Mode, ...] = ("direct", "aggregated", "two-phase")

#: Batches of more bytes of activations are not gathered, however many members there are.
GATHERED_MOST_BYTES = 512 << 10
#: Nor those of more than this times the members squared: each member more is a frame less per destination, and one
#: less for each sibling there to be forwarded and answered.
_GATHERED_BYTES = 32 << 10


def gathers(mode: Mode, *, members: int, batch_bytes: float) -> bool:
    """Return whether a batch of ``batch_bytes`` is handed to the leader of its node, ``members`` strong."""
    if mode == "direct":
        return False
    return (members > 1) & (batch_bytes <= GATHERED_MOST_BYTES) & (batch_bytes <= members * members * _GATHERED_BYTES)


@dataclass(frozen=True, slots=True)
class Destination:
    """Expert instances that one frame serves."""

    #: Indices in the placement, ascending.
    instances: tuple[int, ...]
    #: Index of their node in ``Placement.groups``.
    group: int
    #: The instances that the frame may be sent to, which share it with the others; they take turns.
    relays: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        """Whether the relay has siblings to share the frame with."""
        return len(self.instances) > 1

    def relay(self, turn: int) -> str:
        """Return the instance that the frame is sent to.

        What is small enough to be gathered goes to the same relay from all attention nodes, with the layer as the
        ``turn``: what one instance forwards reaches each sibling together, which then wakes once, computes once and
        reads its experts once. Over the layers of a step no instance relays for all. Large batches go to a different
        relay from each attention node where there are enough, lest their bytes queue for one: the turn is layer +
        number of the source node.
        """
        return self.relays[turn % len(self.relays)]


def destinations(placement: Placement, mode: Mode) -> tuple[Destination, ...]:
    """Return where the rows of a dispatch go, in the order in which the answers are added up.

    An instance without an expert in ``placement`` - it may be what is left of one without those that are lost - gets
    nothing, and relays nothing.
    """
    used = in_use(placement)
    found = []
    for index, group in enumerate(placement.groups):
        there = [instance for instance in group if used[instance]]
        if mode != "two-phase":
            found += [Destination((instance,), index, (placement.instances[instance],)) for instance in there]
        elif there:
            # The whole group: the receivers number its slots through all of it.
            found.append(Destination(group, index, tuple(placement.instances[instance] for instance in there)))
    return tuple(found)


def in_use(placement: Placement) -> list[bool]:
    """Return which instances have an expert."""
    slots = placement.phys_to_logical.reshape(placement.num_layers, placement.num_instances, -1)
    found: list[bool] = (slots != EMPTY).any(axis=(0, 2)).tolist()
    return found


def leader(members: Sequence[str], layer: int) -> str:
    """Return which of the node's ``members`` (in the same order on all) posts for all of them in ``layer``.

    They take turns: what posting and adding up costs is shared out over the layers of a step.
    """
    return members[layer % len(members)]
