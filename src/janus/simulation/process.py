"""One simulated process, as the controller sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from janus.messages.control import ClusterView, Heartbeat, Identity, InstanceState, PlacementTable, Role

#: Epochs that an expert instance is asked about, at most.
_EPOCHS = 16
#: Dispatches of the epoch before are answered within a layer's time.
_ANSWERED_S = 0.1


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """One instance from launch to end."""

    role: Role
    name: str
    node: str
    incarnation: str
    launched_s: float
    registered: bool = False
    #: Attention instances: its weights are loaded.
    loaded_weights: bool = False
    state: InstanceState = "joining"
    draining: bool = False
    #: Expert instances: epochs whose replicas are loaded, the replicas, and when it is through with loading.
    epochs: list[int] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    busy_until: float = 0.0
    #: Its last heartbeat, and what it was about: most are alike.
    said: tuple[tuple[InstanceState, int, int], Heartbeat] | None = None
    #: Attention instances: the epochs that a dispatch may name, by when the last of an older one has ended.
    names: dict[int, float] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        """As it registers."""
        return Identity(protocol=1, role=self.role, instance=self.name, node=self.node, incarnation=self.incarnation)

    def heartbeat(self, now: float) -> Heartbeat:
        """Return what it reports at ``now``."""
        oldest = min((epoch for epoch, until in self.names.items() if until > now), default=0)
        state: InstanceState = "draining" if self.draining else self.state
        about = (state, self.epochs[-1] if self.epochs else 0, oldest)
        if self.said is None or self.said[0] != about:
            self.said = about, Heartbeat(state=state, loaded_epoch=about[1], oldest_epoch=oldest)
        return self.said[1]

    def dispatches_by(self, epoch: int, now: float) -> None:
        """An attention instance names a new epoch from ``now`` on."""
        if epoch not in self.names:
            self.names = {**dict.fromkeys(list(self.names)[-1:], now + _ANSWERED_S), epoch: float("inf")}

    def takes(self, table: PlacementTable) -> tuple[set[int], int]:
        """An expert instance is to hold what ``table`` says: returns its experts, and how many it did not hold."""
        mine = {expert for expert in table.slots[0][table.instances.index(self.name)] if expert >= 0}
        missing = len(mine - self.held)
        self.held |= mine
        return mine, missing

    def has_loaded(self, epoch: int) -> None:
        """The replicas of ``epoch`` are there."""
        self.epochs = [*self.epochs, epoch][-_EPOCHS:]


@dataclass(slots=True, kw_only=True)
class Hooks:
    """Who hears of what: names of attention instances that serve or end, views, and experts that come and go."""

    attention_up: Callable[[str], None]
    attention_down: Callable[[str], None]
    attention_drains: Callable[[str], None]
    is_idle: Callable[[str], bool]
    on_view: Callable[[ClusterView], None]
    #: An expert instance has died, of those in the placement in force; what that means for it has been told before.
    expert_lost: Callable[[], None]
    #: Expert instances that serve; 0 while some expert is nowhere.
    experts_serving: Callable[[int], None]
