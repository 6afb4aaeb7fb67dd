"""Operations on a running cluster: scale, drain, restart. What is done in which order, and what is waited for.

Nothing here knows how instances are started or how the controller is reached: a fleet over any ``Launcher`` and any
``Controller`` will do. One operation runs at a time (``janus.cluster.jobs``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from janus.cluster.controller_tool import Controller
from janus.cluster.fleet import CONTROLLER, Fleet
from janus.cluster.instances import STOP_ORDER, Started
from janus.cluster.sizes import SCALED, Sizes
from janus.errors import ConfigError, JanusError
from janus.messages.control import Role, StatusReport

#: Seconds between two looks at the controller's state.
_POLL_S = 0.2
#: A rolling restart goes from the experts outwards; requests come in at the gateways.
_RESTART_ORDER: tuple[Role, ...] = ("expert", "attention", "gateway", "controller")


@dataclass(slots=True, kw_only=True)
class Operations:
    """What ``janus scale``, ``janus drain`` and ``janus restart`` do, and an autoscaler would. ``tell`` hears of it."""

    fleet: Fleet
    controller: Controller
    #: The numbers that the controller expects now.
    sizes: Sizes
    tell: Callable[[str], None]
    #: How long instances may take until they serve.
    ready_timeout_s: float
    _told: str = field(default="", init=False)

    async def scale(self, wanted: Sizes) -> None:
        """Bring the cluster to ``wanted``: first what is added, at free indices, then what leaves, the highest first.

        Raises:
            JanusError: an instance did not start or did not become ready, or the controller refuses. What was added is
                stopped again, and the cluster has the numbers that it had.
        """
        if wanted == self.sizes:
            self.tell("nothing to do: the cluster has these numbers of instances")
            return
        self.tell(f"scaling {', '.join(self.sizes.difference(wanted))}")
        added = [name for role in SCALED.values() for name in self._free(role, wanted.of(role) - self.sizes.of(role))]
        if added:
            await self._add(added, self.sizes.at_least(wanted))
        leaving = [name for role in STOP_ORDER for name in self.fleet.names(role)[wanted.of(role) :][::-1]]
        if problem := await self._shortfall(leaving):
            raise ConfigError("--experts", problem, "keep more of them, or start them with more slots")
        # Told before they leave, the controller misses none of them.
        await self._expect(wanted)
        await self._remove(leaving)
        await self._until_ready(self.fleet.names())

    async def drain(self, name: str) -> None:
        """Let one instance finish what it has, hand its experts on, and leave; it is not restarted.

        Raises:
            ConfigError: there is no such instance, or the cluster cannot serve without it.
        """
        self._check_known([name])
        role = self.fleet.role(name)
        if role == "controller":
            remedy = f"replace it with janus restart {name}, or stop the cluster with janus down"
            raise ConfigError("INSTANCE", f"{name} keeps the registry of the cluster", remedy)
        if self.fleet.names(role) == [name]:
            option = {"gateway": "gateways", "attention": "attention", "expert": "experts"}[role]
            remedy = f"add another one first (janus scale --{option} +1)"
            raise ConfigError("INSTANCE", f"{name} is the only {role} instance that runs", remedy)
        if name not in self.fleet.names():
            self.tell(f"{name} was drained before")
            return
        if problem := await self._shortfall([name]):
            raise ConfigError("INSTANCE", problem, "add another one first (janus scale --experts +1)")
        await self._expect(self.sizes.plus(role, -1))
        self.tell(f"{name} drains")
        await self.fleet.stop(name, forget=False)
        self.tell(f"{name} has left; janus restart {name} starts it again")
        await self._until_ready(self.fleet.names())

    async def restart(self, names: Sequence[str], *, in_place: bool) -> None:
        """Replace instances by new processes of the same names, one after the other.

        Each drains, is started again and is waited for, before the next is begun. Where the others of its role could
        not serve without it, one more is added for the time; ``in_place``: not so, requests wait.

        Args:
            names: none for every instance, the controller last.

        Raises:
            ConfigError: there is no instance of that name.
            JanusError: one did not come back; those after it are not touched.
        """
        self._check_known(names)
        chosen = names or self.fleet.names()
        for role in _RESTART_ORDER:
            turn = [name for name in chosen if self.fleet.role(name) == role]
            # Those that do not run come first: then there are more to serve while the others are replaced.
            for name in sorted(turn, key=lambda name: self.fleet.started(name) is not None):
                if not in_place and await self._needed(name, role):
                    await self._restart_with_one_more(name, role)
                else:
                    await self._restart_one(name)

    # -- parts ---------------------------------------------------------------------------------------------------

    async def _needed(self, name: str, role: Role) -> bool:
        """Whether the other instances of its role could not serve without this one."""
        if self.fleet.started(name) is None or role == "controller":
            return False
        return self.fleet.names(role) == [name] or bool(await self._shortfall([name]))

    async def _shortfall(self, leaving: Collection[str]) -> str:
        """Why the experts have no place without the instances ``leaving``; empty when they have."""
        experts = [name for name in self.fleet.names("expert") if name not in leaving]
        if not experts or not any(self.fleet.role(name) == "expert" for name in leaving):
            return ""
        return shortfall(await self.controller.status(), experts)

    async def _restart_with_one_more(self, name: str, role: Role) -> None:
        before = self.sizes
        self.tell(f"the cluster cannot serve without {name}: one more {role} instance is added while it is replaced")
        await self.scale(before.plus(role, 1))
        await self._restart_one(name)  # should it fail, the other one stays: it serves
        await self.scale(before)

    async def _restart_one(self, name: str) -> None:
        if name in self.fleet.drained():
            self.tell(f"{name} is started again")
            await self._add([name], self.sizes.plus(self.fleet.role(name), 1))
            return
        self.tell(f"{name} drains, and is started again")
        await self.fleet.replace(name)
        await self._until_ready(self.fleet.names() if name == CONTROLLER else [name])

    async def _add(self, names: list[str], sizes: Sizes) -> None:
        before = self.sizes
        await self._expect(sizes)
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(self._start(name), name=f"start[{name}]")
            await self._until_ready(names)
        except (JanusError, ExceptionGroup):
            self.tell(f"not done: {', '.join(names)} will leave again")
            try:
                await self._expect(before)
            finally:
                await self._remove([name for name in names if name in self.fleet.names()])
            raise

    def _free(self, role: Role, count: int) -> list[str]:
        """The first ``count`` names of ``role`` that no instance goes by."""
        taken = self.fleet.names(role)
        names = (f"{role}-{index}" for index in range(len(taken) + max(0, count)))
        return [name for name in names if name not in taken][: max(0, count)]

    async def _start(self, name: str) -> None:
        if name in self.fleet.drained():
            await self.fleet.replace(name)
        else:
            await self.fleet.add(name)

    async def _remove(self, names: Collection[str]) -> None:
        for name in names:
            self.tell(f"{name} drains")
            await self.fleet.stop(name, forget=True)
            self.tell(f"{name} has left")

    async def _expect(self, sizes: Sizes) -> None:
        if sizes == self.sizes:
            return
        await self.controller.expect(sizes)
        self.sizes = sizes
        # So that a controller that is restarted waits for those who are there now.
        self.fleet.amend(
            CONTROLLER,
            expect_gateways=sizes.gateways,
            expect_attention=sizes.attention,
            expect_experts=sizes.experts,
        )

    def _check_known(self, names: Sequence[str]) -> None:
        known = [*self.fleet.names(), *self.fleet.drained()]
        for name in names:
            if name not in known:
                raise ConfigError("INSTANCE", f"there is no instance {name!r}", f"there are: {', '.join(known)}")

    async def _until_ready(self, names: Collection[str]) -> None:
        """Wait until the controller says that each of ``names``, as it runs now, serves."""
        deadline = asyncio.get_running_loop().time() + self.ready_timeout_s
        while lacking := await self._lacking(names):
            problem = "; ".join(lacking)
            if problem != self._told:
                self.tell(f"waiting: {problem}")
                self._told = problem
            if asyncio.get_running_loop().time() > deadline:
                raise JanusError(
                    f"not ready after {self.ready_timeout_s:g} s: {problem}; see janus status and the logs"
                )
            await asyncio.sleep(_POLL_S)
        self._told = ""

    async def _lacking(self, names: Collection[str]) -> list[str]:
        try:
            report = await self.controller.status()
        except JanusError as error:
            return [str(error)]
        return [sentence for name in names if (sentence := lacking(report, name, self.fleet.started(name)))]


def shortfall(report: StatusReport, staying: Collection[str]) -> str:
    """Return why the expert instances ``staying`` have no place for every expert; empty when they have."""
    placement = report.view.placement
    if placement is None or not placement.slots or not placement.slots[0]:
        return ""
    width = len(placement.slots[0][0])  # slots are numbered once and for all: more than these no instance can use
    members = [member for member in report.view.members if member.instance in staying and member.state != "failed"]
    room = sum(min(member.slots or width, width) for member in members)
    if room >= placement.num_experts:
        return ""
    return f"{', '.join(staying)} would hold {room} of the {placement.num_experts} experts of a MoE layer"


def lacking(report: StatusReport, name: str, started: Started | None) -> str:
    """Return what keeps instance ``name``, which listens as ``started``, from serving; empty when it serves."""
    if started is None:
        return f"{name} does not run"
    if started.role == "controller":
        return ""
    member = next((each for each in report.view.members if each.instance == name), None)
    # The member of a process before this one listened elsewhere.
    if member is None or (member.port, member.ops_port) != (started.port, started.ops_port):
        return f"{name} has not registered"
    beat = report.heartbeats.get(name)
    if member.state != "ready":
        return f"{name} is {member.state}" + (f": {beat.reason}" if beat is not None and beat.reason else "")
    placement = report.view.placement
    if started.role == "expert" and (placement is None or name not in placement.instances):
        return f"{name} has no part in the placement in force yet"
    if beat is not None and beat.unreachable:
        return f"{name} cannot reach {', '.join(beat.unreachable)}"
    return ""
