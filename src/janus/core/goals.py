"""What the placement should become, given the expert instances that are there: a policy's choice, or only a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, Held, Host, PlacingPolicy, PlacingRequest
from janus.core.placing.repair import repair
from janus.errors import ConfigError

#: Seconds that a dead expert instance has to come back, where every expert is still somewhere, before the survivors
#: are given replicas for those that it had: loading them is wasted when it was only restarted.
REPLACE_AFTER_S = 10.0
#: Layers x hosts x experts up to which a policy decides at once, in less than a second of CPU time. For 58 x 376 x 256
#: ``eplb`` takes 4 s and ``activation-aware`` 9 s, in which the controller would hear nobody: there the even deal
#: decides at once, and the better placement comes from who asks for it beside the loop (``PlacementEpochs.request``).
SEARCHED_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelShape:
    """What the placement must know of a model: its MoE layers and the experts in each."""

    num_layers: int
    num_experts: int
    #: float[num_layers, num_experts]: how often each expert was activated, until more is known; ``None`` = all alike.
    activations: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An expert instance that is there."""

    name: str
    incarnation: str
    node: str = ""
    #: Replicas per MoE layer that it says it should hold, and that its memory holds; 0 = it did not say.
    slots: int = 0
    capacity: int = 0
    speed: float = 1.0
    loaded_epoch: int = 0
    #: What it had loaded when it registered; empty where it did not say.
    loaded_epochs: tuple[int, ...] = ()
    #: False: it leaves, and serves what it has until others have it.
    wanted: bool = True
    #: It could not load what it was given last: it serves what it has, and gets nothing new.
    frozen: bool = False

    def has_loaded(self, epoch: int) -> bool:
        """Whether its replicas of ``epoch`` are loaded. One that was restarted may have a newer one alone."""
        return epoch in self.loaded_epochs if self.loaded_epochs else self.loaded_epoch >= epoch


@dataclass(slots=True, eq=False)
class Goal:
    """What the placement should become."""

    reason: str
    #: {host: experts per layer}; empty for an instance that leaves.
    held: dict[str, list[tuple[int, ...]]]
    #: The wanted instances that it was made for.
    hosts: tuple[Host, ...]
    reached: bool = False
    #: For a goal that only repairs: when the survivors' placement is made anew.
    redo_at: float | None = None
    #: What the policy expects of it: mean a_max per layer before and after; 0 = it did not look.
    a_max: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, reason: str, hosts: Sequence[Host], held: Held, **more: Any) -> Goal:
        """Return the goal that ``hosts`` hold what ``held`` says, host by host in the same order."""
        by_name = {host.name: [layer[i] for layer in held] for i, host in enumerate(hosts)}
        return cls(reason, by_name, tuple(hosts), **more)


class Goals:
    """Sets goals for the candidates that are there. ``current`` is always what is in force, without those gone."""

    def __init__(self, shape: ModelShape, *, policy: PlacingPolicy, fill: int) -> None:
        """``fill``: see ``PlacementEpochs``."""
        self.shape = shape
        self._policy = policy
        self._fill = fill
        #: What the router chose lately; replaced as samples come in.
        self.activity = None if shape.activations is None else Activity(counts=shape.activations)
        #: C, the numbering of slots, once it is fixed.
        self.slots = 0
        #: Why the instances at hand cannot hold the model; empty when they can.
        self.problem = ""

    def hosts(self, candidates: Mapping[str, Candidate], current: Placement | None) -> tuple[Host, ...]:
        """Return those that a placement may use; what one that could not load holds now is all that it gets."""
        hosts = []
        for each in candidates.values():
            capacity = self._capacity(each, current)
            if each.wanted and capacity:
                hosts.append(Host(name=each.name, node=each.node, capacity=capacity, speed=each.speed))
        return tuple(hosts)

    def _capacity(self, candidate: Candidate, current: Placement | None) -> int:
        experts = self.shape.num_experts
        if not candidate.frozen:
            return min(candidate.slots or candidate.capacity or experts, self.slots or experts)
        if current is None or candidate.name not in current.instances:
            return 0
        return max(map(len, current.replicas(candidate.name)), default=0)

    def request(
        self, hosts: tuple[Host, ...], candidates: Mapping[str, Candidate], current: Placement | None
    ) -> PlacingRequest:
        """Return what a policy is asked."""
        stated = max((candidates[host.name].slots for host in hosts if host.name in candidates), default=0)
        return PlacingRequest(
            num_layers=self.shape.num_layers,
            num_experts=self.shape.num_experts,
            hosts=hosts,
            fill=stated or self._fill,
            activity=self.activity,
            current=current,
        )

    def aim(self, reason: str, request: PlacingRequest) -> Goal | None:
        """Let the policy say where the replicas should be; ``None`` where there is no room, which ``problem`` says."""
        size = request.num_layers * len(request.hosts) * request.num_experts
        policy = POLICIES["static"] if request.activity is not None and size > SEARCHED_AT_ONCE else self._policy
        try:
            held = policy(request)
        except ConfigError as error:
            self.problem = str(error)
            return None
        self.problem = ""
        return Goal.of(reason, request.hosts, held)

    def mend(self, current: Placement, hosts: tuple[Host, ...], now: float) -> Goal | None:
        """Bring back the experts that are nowhere; ``None`` as for ``aim``."""
        try:
            held = repair(current, hosts)
        except ConfigError as error:
            self.problem = str(error)
            return None
        self.problem = ""
        return Goal.of("death", hosts, held, redo_at=now + REPLACE_AFTER_S)
