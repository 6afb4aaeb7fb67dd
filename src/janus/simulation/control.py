"""The simulated control plane: processes that start, load, report, leave and die around the controller's registry.

``janus.core.membership`` decides, as it does in the placement-controller. One MoE layer stands for all of them in the
placement; what is loaded counts for all.
"""

from __future__ import annotations

import itertools
from functools import partial

from janus.core.membership import Membership, ModelShape, roster
from janus.core.membership_events import (
    Event,
    ExpectedSet,
    HeartbeatSeen,
    LeaveSeen,
    LinkLost,
    PlacementLoadedSeen,
    Registered,
    SendFatal,
    SendLoad,
    SendView,
    Tick,
)
from janus.core.placing import POLICIES
from janus.core.scaling.contract import Counts
from janus.errors import ConfigError
from janus.messages.control import (
    ClusterView,
    PlacementLoaded,
    PlacementTable,
    Register,
    Role,
)
from janus.simulation.agenda import Agenda
from janus.simulation.config import ClusterConfig
from janus.simulation.process import Hooks, Process, Processes

#: How often an expert instance that leaves looks whether anybody needs it still.
_LOOK_EVERY_S = 1.0


class ControlPlane:
    """Registry, processes and placement epochs. ``start`` first; ``scale``, ``kill`` and ``kill_node`` afterwards."""

    def __init__(self, config: ClusterConfig, *, agenda: Agenda, hooks: Hooks) -> None:
        self._config = config
        self._agenda = agenda
        self._hooks = hooks
        self.processes = Processes()
        #: What the cluster is meant to have.
        self.wanted = Counts(attention=config.attention, experts=config.experts)
        #: Before the clock runs, nothing takes time.
        self._starting = True
        self._births = itertools.count()
        self.membership = Membership(
            shape=ModelShape(num_layers=1, num_experts=config.model.experts),
            expected=roster(attention=config.attention, experts=config.experts),
            heartbeat_s=config.heartbeat_s,
            now=0.0,
            policy=POLICIES[config.placement],
            fill=config.slots,
        )

    # -- start -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the cluster up, ready at time 0.

        Raises:
            ConfigError: it cannot hold the model.
        """
        self._launch("gateway", "gateway-0")
        counts: tuple[tuple[Role, int], ...] = (("expert", self.wanted.experts), ("attention", self.wanted.attention))
        for role, count in counts:
            for index in range(count):
                self._launch(role, f"{role}-{index}")
        self._agenda.run(0.0)
        if self.membership.view.placement is None:
            raise ConfigError("experts", "; ".join(self.membership.waiting_for), "change the number of instances")
        self._on_view(self.membership.view)
        self._starting = False
        self._agenda.after(self._config.heartbeat_s, self._pulse)

    # -- what can be done to it ------------------------------------------------------------------------------------

    def scale(self, wanted: Counts) -> None:
        """As ``janus scale``: new instances start, or the last ones leave."""
        before, self.wanted = self.wanted, wanted
        self.feed(ExpectedSet(gateways=1, attention=wanted.attention, experts=wanted.experts, now=self._agenda.now))
        roles: tuple[tuple[Role, int, int], ...] = (
            ("attention", before.attention, wanted.attention),
            ("expert", before.experts, wanted.experts),
        )
        for role, had, want in roles:
            for index in range(min(had, want), max(had, want)):
                name = f"{role}-{index}"
                if index < want:
                    self._launch(role, name)
                else:
                    self._drain(name)

    def kill(self, target: str, *, back_s: float | None) -> tuple[str, ...]:
        """A process dies, or all of a node; after ``back_s`` seconds others take their names, if still wanted.

        Returns the names of those that died.
        """
        struck = [each for each in self.processes if target in (each.name, each.node)]
        for process in struck:
            self._end(process)
            if back_s is not None:
                self._agenda.after(back_s, partial(self._relaunch, process))
        return tuple(process.name for process in struck)

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def present(self) -> Counts:
        """Processes that serve: attention instances that are ready, expert instances in the placement in force."""
        ready = sum(p.role == "attention" and p.state == "ready" for p in self.processes)
        return Counts(attention=ready, experts=self._experts_serving())

    def device_s(self) -> dict[str, float]:
        """Return device-seconds so far, by role, from launch to end; those of whole models as attention's."""
        seconds = self.processes.seconds(self._agenda.now)
        experts = 0.0 if self._config.colocated else seconds["expert"]
        return {"attention": seconds["attention"] * self._config.tensor_parallel, "expert": experts}

    @property
    def starting(self) -> int:
        """Processes that do not serve yet."""
        return len(self.processes.starting)

    @property
    def draining(self) -> int:
        """Processes that leave."""
        return len(self.processes.draining)

    def problems(self) -> tuple[str, ...]:
        """Why the cluster is not whole, as the controller says it."""
        starting = [f"{name} is starting" for name in self.processes.starting]
        leaving = [f"{name} is leaving" for name in self.processes.draining]
        return (*self.membership.waiting_for, *starting, *leaving)

    # -- the controller --------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Let the controller handle an event, and do what it says."""
        for action in self.membership.handle(event):
            match action:
                case SendLoad():
                    self._load(action.instance, action.table)
                case SendView() if not self._starting:
                    self._on_view(action.view)
                case SendFatal() if not self._starting:
                    self.kill(action.instance, back_s=None)
                case _:
                    pass

    def _pulse(self) -> None:
        """Everybody's heartbeats, and the controller's look at the clock."""
        for process in self.processes:
            if process.registered:
                self._report(process)
        self.feed(Tick(now=self._agenda.now))
        self._agenda.after(self._config.heartbeat_s, self._pulse)

    def _report(self, process: Process) -> None:
        now = self._agenda.now
        beat = process.heartbeat(now)
        self.feed(HeartbeatSeen(instance=process.name, heartbeat=beat, incarnation=process.incarnation, now=now))

    def _on_view(self, view: ClusterView) -> None:
        placement, now = view.placement, self._agenda.now
        if placement is not None:
            for process in self.processes:
                if process.role == "attention":
                    process.dispatches_by(placement.epoch, now)
        self._hooks.experts_serving(self._experts_serving())
        self._hooks.on_view(view)
        if placement is not None:
            # Whoever becomes ready says so, which makes a newer view: nothing is done with this one afterwards.
            for process in self.processes:
                self._become_ready(process)

    def _experts_serving(self) -> int:
        placement = self.membership.view.placement
        if placement is None:
            return 0
        return sum(name in self.processes for name in placement.instances)

    # -- processes -------------------------------------------------------------------------------------------------

    def _launch(self, role: Role, name: str) -> None:
        if name in self.processes:
            return
        per_node = self._config.profile.devices_per_node
        process = Process(
            role=role,
            name=name,
            node=f"{role}-node-{int(name.rpartition('-')[2]) // per_node}",
            incarnation=f"i{next(self._births)}",
            launched_s=self._agenda.now,
        )
        self.processes.add(process)
        self._agenda.after(0.0 if self._starting else self._config.start_s, lambda: self._register(process))

    def _relaunch(self, ended: Process) -> None:
        wanted = {"attention": self.wanted.attention, "expert": self.wanted.experts}
        if int(ended.name.rpartition("-")[2]) < wanted.get(ended.role, 1):
            self._launch(ended.role, ended.name)

    def _register(self, process: Process) -> None:
        if not self.processes.is_alive(process):
            return
        process.registered = True
        capacity = self._config.slots if process.role == "expert" else 0
        register = Register(host="", port=0, pid=0, capacity=capacity)
        if process.role != "attention":
            process.state = "ready"
        self.feed(Registered(identity=process.identity, register=register, now=self._agenda.now))
        self._report(process)
        if process.role == "attention":
            config = self._config
            device = config.deployment(1, 1).attention_device
            # Every device of a tensor-parallel instance loads its part.
            seconds = config.model.attention_side_bytes / config.tensor_parallel / device.load_bytes_s
            self._agenda.after(0.0 if self._starting else seconds, lambda: self._weights_loaded(process))

    def _weights_loaded(self, process: Process) -> None:
        process.loaded_weights = True
        self._become_ready(process)

    def _become_ready(self, process: Process) -> None:
        """An attention instance serves once it has its weights and a placement."""
        if process.state != "joining" or not process.loaded_weights or not self.processes.is_alive(process):
            return
        if self.membership.view.placement is not None and not process.draining:
            process.state = "ready"
            self._hooks.attention_up(process.name)
            self._report(process)

    def _load(self, name: str, table: PlacementTable) -> None:
        process = self.processes.get(name)
        if process is None:
            return
        config = self._config
        mine, missing = process.takes(table)
        nbytes = missing * config.model.expert_bytes * config.model.moe_layers
        device = config.deployment(1, 1).expert_device
        begin = max(self._agenda.now, process.busy_until)
        process.busy_until = begin if self._starting else begin + nbytes / device.load_bytes_s

        def done() -> None:
            if not self.processes.is_alive(process):
                return
            process.has_loaded(table.epoch)
            message = PlacementLoaded(epoch=table.epoch, replicas=len(mine), bytes_read=round(nbytes), seconds=0.0)
            self.feed(
                PlacementLoadedSeen(
                    instance=name, message=message, incarnation=process.incarnation, now=self._agenda.now
                )
            )

        self._agenda.at(process.busy_until, done)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _drain(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None or process.draining:
            return
        process.draining = True
        if not process.registered:
            self._end(process)
            return
        if process.role == "attention" and process.state == "ready":
            self._hooks.attention_drains(name)
        leave = LeaveSeen(instance=name, reason="drain", incarnation=process.incarnation, now=self._agenda.now)
        self.feed(leave)
        self._leave_when_free(process)

    def _leave_when_free(self, process: Process) -> None:
        if not self.processes.is_alive(process):
            return
        placement = self.membership.view.placement
        if process.role == "expert":
            needed = placement is None or process.name in placement.instances
        else:
            needed = not self._hooks.is_idle(process.name)
        if needed:
            self._agenda.after(_LOOK_EVERY_S, lambda: self._leave_when_free(process))
        else:
            self._end(process)

    def _end(self, process: Process) -> None:
        """The process is gone, and its links with it."""
        self.processes.remove(process, self._agenda.now)
        placement = self.membership.view.placement
        was_used = placement is not None and process.name in placement.instances
        if process.role == "attention" and process.state == "ready":
            self._hooks.attention_down(process.name)
        if process.registered:
            lost = LinkLost(instance=process.name, incarnation=process.incarnation, now=self._agenda.now)
            self.feed(lost)
        if was_used:
            self._hooks.expert_lost()
