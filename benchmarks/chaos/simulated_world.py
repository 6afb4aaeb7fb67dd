"""A simulated cluster around the controller's real decisions: processes that start, load, hang, fail and die.

Time is virtual, and everything happens by one seed. Instances behave as the real ones do towards the controller: they
register, send heartbeats, load what they are asked to (slowly, or not at all), and attention instances plan with the
newest view that has reached them while dispatches of older epochs are still on their way.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from janus.core.membership import Membership, ModelShape, roster
from janus.core.membership_events import (
    Action,
    Event,
    ExpectedSet,
    HeartbeatSeen,
    LeaveSeen,
    LinkLost,
    MarkFailed,
    PlacementLoadedSeen,
    Registered,
    SendFatal,
    SendLoad,
    SendView,
    TargetProposed,
    Tick,
)
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity
from janus.messages.control import (
    ClusterView,
    Heartbeat,
    Identity,
    PlacementLoaded,
    PlacementTable,
    Register,
    Role,
)

HEARTBEAT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the cluster and its model are."""

    nodes: int = 64
    gateways: int = 8
    attention: int = 128
    experts: int = 376
    #: MoE layers, experts in each, and replicas per layer that an expert instance should hold, of those that fit.
    layers: int = 4
    model_experts: int = 256
    slots: int = 2
    capacity: int = 4


@dataclass(eq=False)
class Process:
    """One instance from start to end."""

    role: Role
    name: str
    node: str
    incarnation: str
    #: It has registered at the controller that runs now.
    registered: bool = False
    draining: bool = False
    #: It does nothing until then.
    hangs_until: float = 0.0
    #: Loads take so many times as long; so many of the next ones fail.
    slowness: float = 1.0
    failing_loads: int = 0
    loaded: list[int] = field(default_factory=list)
    #: When it has done all that it was asked to load.
    busy_until: float = 0.0
    #: It has told its controller of ``names``.
    reported: bool = False
    #: Attention instances: the newest view that has arrived, and the epochs that dispatches on their way still name.
    view: ClusterView | None = None
    names: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Decision:
    """One event that the controller handled, and the CPU time that it took."""

    event: str
    seconds: float


class World:
    """The cluster. ``run(until)`` lets time pass; the other methods do something to it."""

    def __init__(
        self,
        size: Size,
        *,
        seed: int = 0,
        policy: str = "eplb",
        activity: Activity | None = None,
        on_actions: Callable[[list[Action]], None] = lambda _: None,
    ) -> None:
        """``on_actions`` sees what the controller wants done, before it is: to check it."""
        self.size = size
        self.random = random.Random(seed)
        self.now = 0.0
        self.processes: dict[str, Process] = {}
        self.decisions: list[Decision] = []
        self._policy = policy
        self._activity = activity
        self._on_actions = on_actions
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._births = itertools.count()
        self._wanted = {"gateway": size.gateways, "attention": size.attention, "expert": size.experts}
        self.controllers = 0
        self.membership = self._new_controller()
        for role in ("gateway", "attention", "expert"):
            for index in range(self._wanted[role]):
                self.at(self.random.uniform(0.0, 5.0), self._starter(role, f"{role}-{index}"))
        self.at(HEARTBEAT_S / 2, self._tick)

    # -- time ------------------------------------------------------------------------------------------------------

    def at(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do something in ``delay_s`` seconds."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), do))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = until

    # -- what can be done to it ------------------------------------------------------------------------------------

    def names(self, role: str) -> list[str]:
        """Instances of a role that run and are not draining, in order of their start."""
        return [p.name for p in self.processes.values() if p.role == role and not p.draining]

    def kill(self, name: str, *, back_in_s: float | None) -> None:
        """A process dies; another one takes its name after a while, or never."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        if process.registered:
            self.feed(LinkLost(instance=name, incarnation=process.incarnation, now=self.now))
        if back_in_s is not None and self._is_wanted(process.role, name):
            self.at(back_in_s, self._starter(process.role, name))

    def kill_node(self, node: str, *, back_in_s: float) -> list[str]:
        """All processes of a machine die at the same moment."""
        names = [p.name for p in self.processes.values() if p.node == node]
        for name in names:
            self.kill(name, back_in_s=back_in_s + self.random.uniform(0.0, 3.0))
        return names

    def hang(self, name: str, seconds: float) -> None:
        """A process does nothing for a while, and then goes on as if nothing had been."""
        self.processes[name].hangs_until = self.now + seconds

    def scale(self, role: str, number: int) -> None:
        """``janus scale``: new instances start, or the last ones leave."""
        before, self._wanted[role] = self._wanted[role], number
        wanted = self._wanted
        self.feed(
            ExpectedSet(
                gateways=wanted["gateway"], attention=wanted["attention"], experts=wanted["expert"], now=self.now
            )
        )
        for index in range(before, number):
            self._starter(role, f"{role}-{index}")()
        for index in range(number, before):
            self.drain(f"{role}-{index}")

    def drain(self, name: str, *, limit_s: float = 60.0) -> None:
        """An instance leaves: when nobody needs it any more, or after ``limit_s``."""
        process = self.processes.get(name)
        if process is None or process.draining:
            return
        process.draining = True
        if process.registered:
            self.feed(LeaveSeen(instance=name, reason="drain", incarnation=process.incarnation, now=self.now))
        self._leave_when_free(process, self.now + limit_s)

    def restart_controller(self, *, gap_s: float) -> None:
        """The controller dies; another one starts, and everybody registers anew."""
        if self.membership is None:
            return
        for process in self.processes.values():
            process.registered = process.reported = False
        self.membership = None  # type: ignore[assignment]  # nobody is there

        def begin() -> None:
            self.membership = self._new_controller()
            for process in tuple(self.processes.values()):
                self.at(self.random.uniform(0.0, 2.0), self._registrar(process))

        self.at(gap_s, begin)

    def rebalance(self, activity: Activity) -> bool:
        """The controller looks for a better placement for ``activity``; returns whether it could."""
        if self.membership is None:
            return False
        self._activity = activity
        self.membership.use_activity(activity)
        request = self.membership.placing_request()
        if request is None:
            return False
        held = POLICIES[self._policy](request)  # beside the loop in the real controller
        self.feed(TargetProposed(request=request, held=held, now=self.now))
        return True

    def epochs_in_use(self) -> set[int]:
        """Epochs that dispatches of registered instances may name now.

        One that was given up may dispatch too when it goes on; expert instances refuse epochs that they gave back.
        """
        return set().union(*(process.names for process in self.processes.values() if process.reported))

    # -- the controller --------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Let the controller handle an event, if there is one, and do what it says."""
        if self.membership is None:
            return
        started = time.process_time()
        actions = self.membership.handle(event)
        self.decisions.append(Decision(type(event).__name__, time.process_time() - started))
        self._on_actions(actions)
        for action in actions:
            match action:
                case SendLoad():
                    self._load(action.instance, action.table)
                case SendView():
                    self._deliver(action.view)
                case SendFatal():
                    process = self.processes.get(action.instance)
                    if process is not None and process.incarnation == action.incarnation:
                        self.at(0.0, lambda name=action.instance: self.kill(name, back_in_s=None))  # type: ignore[misc]
                case MarkFailed():
                    self._cut(action.instance)
                case _:
                    pass

    def _new_controller(self) -> Membership:
        self.controllers += 1
        size, wanted = self.size, self._wanted
        membership = Membership(
            shape=ModelShape(num_layers=size.layers, num_experts=size.model_experts),
            expected=roster(attention=wanted["attention"], experts=wanted["expert"], gateways=wanted["gateway"]),
            heartbeat_s=HEARTBEAT_S,
            now=self.now,
            first_version=self.controllers * 1_000_000,
            policy=POLICIES[self._policy],
            fill=size.slots,
        )
        if self._activity is not None:
            membership.use_activity(self._activity)
        return membership

    def _tick(self) -> None:
        self.feed(Tick(now=self.now))
        self.at(HEARTBEAT_S / 2, self._tick)

    # -- the instances ---------------------------------------------------------------------------------------------

    def _is_wanted(self, role: str, name: str) -> bool:
        return int(name.rpartition("-")[2]) < self._wanted[role]

    def _starter(self, role: str, name: str) -> Callable[[], None]:
        def start() -> None:
            if name in self.processes or not self._is_wanted(role, name):
                return
            node = f"node-{int(name.rpartition('-')[2]) % self.size.nodes}"
            process = Process(role, name, node, f"i{next(self._births)}")  # type: ignore[arg-type]
            self.processes[name] = process
            self._registrar(process)()
            self.at(self.random.uniform(0.0, HEARTBEAT_S), lambda: self._beat(process))

        return start

    def _is_alive(self, process: Process) -> bool:
        return self.processes.get(process.name) is process

    def _registrar(self, process: Process) -> Callable[[], None]:
        def register() -> None:
            if not self._is_alive(process) or process.registered or self.membership is None:
                return
            if self.now < process.hangs_until:
                self.at(process.hangs_until - self.now, register)
                return
            expert = process.role == "expert"
            view = process.view
            process.registered = True
            self.feed(
                Registered(
                    identity=Identity(
                        protocol=1,
                        role=process.role,
                        instance=process.name,
                        node=process.node,
                        incarnation=process.incarnation,
                    ),
                    register=Register(
                        host="10.0.0.1",
                        port=1,
                        pid=1,
                        capacity=self.size.capacity if expert else 0,
                        loaded_epoch=max(process.loaded, default=0),
                        loaded_epochs=process.loaded,
                        placement=view.placement if view is not None and process.role == "attention" else None,
                    ),
                    now=self.now,
                )
            )
            self._report(process)  # as ClusterClient does right after it is registered
            if process.draining and process.registered:
                self.feed(
                    LeaveSeen(instance=process.name, reason="drain", incarnation=process.incarnation, now=self.now)
                )

        return register

    def _beat(self, process: Process) -> None:
        if not self._is_alive(process):
            return
        self.at(HEARTBEAT_S, lambda: self._beat(process))
        if self.now >= process.hangs_until and process.registered:
            self._report(process)

    def _report(self, process: Process) -> None:
        if self.membership is None or not process.registered:
            return
        if not process.reported:
            # Dispatches of epochs that were given back meanwhile are refused by the expert instances, and planned anew.
            process.names = {epoch for epoch in process.names if epoch >= self.membership.view.oldest_epoch}
            process.reported = True
        self.feed(
            HeartbeatSeen(
                instance=process.name,
                heartbeat=Heartbeat(
                    state="draining" if process.draining else "ready",
                    loaded_epoch=max(process.loaded, default=0),
                    oldest_epoch=min(process.names, default=0),
                ),
                incarnation=process.incarnation,
                now=self.now,
            )
        )

    def _cut(self, name: str) -> None:
        """The controller has given an instance up; if it lives, it comes back."""
        process = self.processes.get(name)
        if process is not None and process.registered:
            process.registered = process.reported = False
            self.at(self.random.uniform(0.2, 1.0), self._registrar(process))

    def _load(self, name: str, table: PlacementTable) -> None:
        process = self.processes.get(name)
        if process is None:
            return
        begin = max(self.now, process.busy_until, process.hangs_until)
        process.busy_until = begin + self.random.uniform(0.2, 3.0) * process.slowness
        process.slowness = 1.0

        def done() -> None:
            if not self._is_alive(process):
                return
            fails = process.failing_loads > 0
            process.failing_loads -= fails
            if not fails and table.epoch not in process.loaded:
                process.loaded = [*process.loaded, table.epoch][-16:]
            if process.registered:
                message = PlacementLoaded(
                    epoch=table.epoch, replicas=1, bytes_read=1, seconds=1.0, error="out of memory" if fails else ""
                )
                self.feed(
                    PlacementLoadedSeen(instance=name, message=message, incarnation=process.incarnation, now=self.now)
                )

        self.at(process.busy_until - self.now, done)

    def _deliver(self, view: ClusterView) -> None:
        """Views reach attention instances one after the other; each plans with the newest that has reached it."""
        for process in self.processes.values():
            if process.role == "attention" and process.registered:
                newest = process.view
                if newest is None or newest.placement is not view.placement:
                    self.at(self.random.uniform(0.005, 0.2), self._reader(process, view))

    def _reader(self, process: Process, view: ClusterView) -> Callable[[], None]:
        def read() -> None:
            newest = process.view
            if not self._is_alive(process) or (newest is not None and newest.version >= view.version):
                return
            if view.placement is None:
                return  # it takes nothing away
            process.view = view
            epoch = view.placement.epoch
            process.names.add(epoch)
            for older in sorted(process.names - {epoch}):
                # Dispatches that are on their way end within their deadline.
                self.at(self.random.uniform(0.01, 4.0), lambda older=older: process.names.discard(older))  # type: ignore[misc]

        return read

    def _leave_when_free(self, process: Process, deadline: float) -> None:
        if not self._is_alive(process):
            return
        placement = self.membership.view.placement if self.membership is not None else None
        needed = process.role == "expert" and (placement is None or process.name in placement.instances)
        if needed and self.now < deadline:
            self.at(1.0, lambda: self._leave_when_free(process, deadline))
        else:
            self.kill(process.name, back_in_s=1.0)


def skewed_activity(size: Size, *, top_k: int = 8, tokens: int = 1024, seed: int = 0) -> Activity:
    """Activity of a router whose choices follow Zipf's law, other experts being busy in each layer."""
    source = np.random.default_rng(seed)
    layers, experts = size.layers, size.model_experts
    logits = -np.log(np.arange(1, experts + 1))
    trace = np.stack(
        [
            np.argsort(-(source.permutation(logits) + source.gumbel(size=(tokens, experts))), axis=1)[:, :top_k]
            for _ in range(layers)
        ]
    ).astype(np.uint16)
    counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in trace]).astype(np.float64)
    together = np.zeros((layers, experts, experts), dtype=np.float32)
    for layer in range(layers):
        chosen = np.zeros((tokens, experts), dtype=np.float32)
        chosen[np.arange(tokens)[:, None], trace[layer]] = 1
        together[layer] = chosen.T @ chosen
        np.fill_diagonal(together[layer], 0)
    return Activity(counts=counts, coactivation=together, trace=trace)
