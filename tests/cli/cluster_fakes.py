"""A launcher and a placement-controller that only remember, for the logic of operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from janus.cluster.fleet import Fleet
from janus.cluster.instances import Exited, InstanceSpec, Started, plan_instances
from janus.cluster.operations import Operations
from janus.cluster.sizes import Sizes
from janus.config import UpOptions
from janus.errors import LaunchError
from janus.messages.control import ClusterView, InstanceState, Member, PlacementTable, StatusReport


class Calls(list[str]):
    """What was asked for, and a wait for more of it."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def add(self, call: str) -> None:
        self.append(call)
        self._more.set()

    async def wait_for(self, call: str) -> None:
        async with asyncio.timeout(10):
            while call not in self:
                self._more.clear()
                await self._more.wait()


class FakeLauncher:
    """Every start listens elsewhere than the one before, unless it is told where."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.broken: set[str] = set()
        #: These end as soon as they listen, and that is heard of first.
        self.ends: set[str] = set()
        self.specs: dict[str, InstanceSpec] = {}
        self.exits: asyncio.Queue[Exited] = asyncio.Queue(16)
        self._ports = iter(range(10_000, 20_000))

    async def start(self, spec: InstanceSpec, *, timeout_s: float) -> Started:
        self.calls.add(f"start {spec.name}")
        if spec.name in self.broken:
            raise LaunchError(spec.name, "ended with status 1 before it listened", log_tail=("no memory",))
        self.specs[spec.name] = spec
        port = next(self._ports)
        if spec.name in self.ends:
            await self.exits.put(Exited(role=spec.role, name=spec.name, pid=port, status=1))
            await self.exits.join()
        return Started(
            role=spec.role,
            name=spec.name,
            pid=port,
            port=spec.arguments.get("port") or port,
            ops_port=spec.arguments.get("ops_port") or port + 10_000,
            log=Path("/nowhere.log"),
        )

    async def stop(self, name: str, *, timeout_s: float) -> None:
        if self.specs.pop(name, None) is not None:
            self.calls.add(f"stop {name}")

    def kill(self, name: str) -> None:
        self.calls.add(f"kill {name}")

    async def watch(self) -> Exited:
        exited = await self.exits.get()
        self.exits.task_done()
        return exited

    async def close(self) -> None:
        """Nothing runs."""


class FakeController:
    """Knows what the fleet runs; every instance is ready at once, but for those in ``joining``."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.running: Callable[[], Sequence[Started]] = lambda: ()
        self.joining: set[str] = set()
        #: Experts per layer, and slots of every instance.
        self.num_experts = self.slots = 1
        self.refuses: Exception | None = None

    async def expect(self, sizes: Sizes) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.calls.add(f"expect {sizes.gateways}G {sizes.attention}A {sizes.experts}E")

    async def status(self) -> StatusReport:
        return report_of(self.running(), joining=self.joining, num_experts=self.num_experts, slots=self.slots)


def report_of(
    running: Sequence[Started],
    *,
    joining: set[str] | None = None,
    failed: set[str] | None = None,
    num_experts: int = 1,
    slots: int = 1,
) -> StatusReport:
    """What a controller says that knows ``running``; a placement over the ready expert instances is in force."""

    def state(name: str) -> InstanceState:
        return "joining" if name in (joining or ()) else "failed" if name in (failed or ()) else "ready"

    members = [
        Member(
            role=each.role,
            instance=each.name,
            node="n",
            host="h",
            port=each.port,
            ops_port=each.ops_port,
            incarnation="i",
            state=state(each.name),
            slots=slots,
        )
        for each in running
        if each.role != "controller"
    ]
    experts = [m.instance for m in members if m.role == "expert" and m.state == "ready"]
    placement = PlacementTable(
        epoch=1, num_experts=num_experts, instances=experts, slots=[[[0] * slots] * len(experts)]
    )
    view = ClusterView(version=1, members=members, missing=[], placement=placement)
    return StatusReport(view=view, heartbeats={}, heartbeat_age_s={}, started_s=1.0)


class FakeCluster:
    """A fleet and its operations over both; ``calls`` is everything that was asked of them, in order."""

    def __init__(self, *, attention: int = 1, experts: int = 1, gateways: int = 1, monolithic: bool = False) -> None:
        self.calls = Calls()
        self.told: list[str] = []
        self.launcher = FakeLauncher(self.calls)
        self.controller = FakeController(self.calls)
        self.options = UpOptions(
            model=Path("/m"), attention=attention, experts=experts, gateways=gateways, monolithic=monolithic
        )
        self.fleet = Fleet(
            launcher=self.launcher,
            start_timeout_s=1,
            drain_timeout_s=1,
            tell=self.told.append,
            changed=lambda: None,
        )
        self.controller.running = self.fleet.running
        self.operations = Operations(
            fleet=self.fleet,
            controller=self.controller,
            sizes=Sizes(gateways=gateways, attention=attention, experts=0 if monolithic else experts),
            tell=self.told.append,
            ready_timeout_s=0.3,
        )

    def killed(self, name: str) -> Exited:
        """The end of the process that the instance is now."""
        started = self.fleet.started(name)
        assert started is not None
        del self.launcher.specs[name]
        return Exited(role=started.role, name=name, pid=started.pid, status=-9)

    async def started(self) -> FakeCluster:
        """Start everything, and forget that this was asked for."""
        for spec in plan_instances(self.options, cores=2, fixed={}):
            await self.fleet.start(spec)
        self.calls.clear()
        self.told.clear()
        return self
