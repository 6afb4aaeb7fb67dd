"""What a placement policy is told, and what it answers. L layers, E experts, G expert instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement

#: ``[layer][host]``: the experts that a host should hold, ascending.
Held: TypeAlias = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An expert instance, as a policy sees it."""

    name: str
    node: str = ""
    #: Replicas that it can hold per MoE layer.
    capacity: int
    #: How many experts it activates in the time in which an ordinary instance activates one.
    speed: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activity:
    """What the router chose lately."""

    #: float64[L, E]: how often each expert was activated.
    counts: npt.NDArray[np.float64]
    #: float32[L, E, E]: how often two experts were chosen for the same token; symmetric, zero diagonal. ``None`` where
    #: nothing was sampled.
    coactivation: npt.NDArray[np.float32] | None = None
    #: uint16[L, S, K]: the experts of the S tokens that were sampled last. ``None`` likewise.
    trace: npt.NDArray[np.uint16] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacingRequest:
    """The instances and the load that a target is wanted for."""

    num_layers: int
    num_experts: int
    hosts: tuple[Host, ...]
    #: Slots per host and layer that should be used, more where that is too few for all experts and capacity allows;
    #: 0 = an even share by speed, without spare replicas.
    fill: int = 0
    activity: Activity | None = None
    #: Replicas of every expert, where there are slots for as many of all: with two, any one instance may die, and no
    #: expert has to be loaded before the next layer.
    least_replicas: int = 2
    #: What is in force; a target near it costs less.
    current: Placement | None = None


class PlacingPolicy(Protocol):
    """Decides what each host holds. Deterministic."""

    def __call__(self, request: PlacingRequest) -> Held:
        """Return the target: every expert on at least one host, none twice on one, no host above its capacity.

        Raises:
            ConfigError: the hosts together have fewer slots than there are experts; says what would be enough.
        """
