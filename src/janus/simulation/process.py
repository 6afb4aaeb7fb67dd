"""Simulated processes, as the controller sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


class Processes:
    """Those that are there, by name, in order of launch; and how long they and those before them have run."""

    def __init__(self) -> None:
        self._there: dict[str, Process] = {}
        #: Seconds of processes that have ended.
        self._ended_s: dict[Role, float] = {"attention": 0.0, "expert": 0.0, "gateway": 0.0}

    def __iter__(self) -> Iterator[Process]:
        """Those that are there now, whatever comes and goes meanwhile."""
        return iter(tuple(self._there.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def get(self, name: str) -> Process | None:
        """Return the process of that name, if there is one."""
        return self._there.get(name)

    def add(self, process: Process) -> None:
        """It is launched."""
        self._there[process.name] = process

    def remove(self, process: Process, now: float) -> None:
        """It has ended."""
        del self._there[process.name]
        self._ended_s[process.role] += now - process.launched_s

    def is_alive(self, process: Process) -> bool:
        """Whether it is there still, and not another one of its name."""
        return self._there.get(process.name) is process

    def seconds(self, now: float) -> dict[Role, float]:
        """Return by role how long all of them have run, from launch to end."""
        found = dict(self._ended_s)
        for process in self:
            found[process.role] += now - process.launched_s
        return found

    @property
    def starting(self) -> list[str]:
        """Names of those that do not serve yet."""
        return [process.name for process in self if process.state == "joining"]

    @property
    def draining(self) -> list[str]:
        """Names of those that leave."""
        return [process.name for process in self if process.draining]


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
