"""The cluster that is broken: found by its state file, looked at by its controller, reached by process id."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil

from janus.chaos.moves import Placed, placed
from janus.chaos.scenario import ROLES, ClusterNeeds
from janus.cluster.state import ClusterState, InstanceState, RunDirectory
from janus.cluster.status import fetch_status, problems
from janus.errors import ConfigError, JanusError
from janus.messages.control import StatusReport

_LOOK_S = 0.1
_STATUS_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The cluster at one moment: seconds of ``time.perf_counter``."""

    at: float
    #: Why it is not as it should be; empty when it is whole.
    problems: tuple[str, ...]
    #: Whether its gateway takes requests.
    serves: bool
    #: None while the controller does not answer.
    placed: Placed | None = None


@dataclass(slots=True)
class Target:
    """A cluster of this machine, by name."""

    directory: RunDirectory
    #: Processes that stand still, so that they go on when the suite is interrupted.
    stopped: set[int] = field(default_factory=set)
    #: Instances that were drained: that they are not there is as it should be.
    away: set[str] = field(default_factory=set)

    def state(self) -> ClusterState:
        """The state file, as it is now. Raises ConfigError when the cluster does not run."""
        return self.directory.read()

    @property
    def url(self) -> str:
        """Base URL of its endpoint, ending in ``/v1``."""
        return f"{self.state().url}/v1"

    def names(self, role: str) -> list[str]:
        """The instances of a role."""
        found = (instance.name for instance in self.state().instances if instance.role == role)
        return sorted(name for name in found if name not in self.away)

    def choose(self, target: str, draw: random.Random) -> str:
        """The instance of that name, or one of that role.

        Raises:
            ConfigError: there is none.
        """
        running = [name for role in ROLES for name in self.names(role)]
        names = self.names(target) if target in ROLES else [name for name in running if name == target]
        if not names:
            raise ConfigError("target", f"{target!r} is no role and no instance", f"running are {', '.join(running)}")
        return draw.choice(names)

    def instance(self, name: str) -> InstanceState:
        """Raises JanusError when there is no such instance (any more)."""
        for instance in self.state().instances:
            if instance.name == name and name not in self.away:
                return instance
        raise JanusError(f"{name} is not running")

    def send(self, name: str, number: signal.Signals) -> int:
        """Send a signal; returns the process id."""
        pid = self.instance(name).pid
        os.kill(pid, number)
        if number is signal.SIGSTOP:
            self.stopped.add(pid)
        return pid

    def resume(self, pid: int) -> None:
        """Let a stopped process go on; one that is gone is left alone."""
        self.stopped.discard(pid)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    def resume_all(self) -> None:
        """Let every process go on that ``send`` stopped."""
        for pid in list(self.stopped):
            self.resume(pid)

    async def status(self) -> StatusReport:
        """What the controller knows. Raises httpx.HTTPError or ValueError when it does not answer."""
        return await fetch_status(self.state().controller_ops, timeout_s=_STATUS_TIMEOUT_S)

    async def look(self) -> Look:
        """See whether it is whole, and whether it serves."""
        state = self.state()
        async with httpx.AsyncClient(timeout=_STATUS_TIMEOUT_S, trust_env=False) as client:
            try:
                serves = (await client.get(f"{state.url}/ready")).status_code == 200
            except httpx.HTTPError:
                serves = False
        known = None
        try:
            report = await fetch_status(state.controller_ops, timeout_s=_STATUS_TIMEOUT_S)
            known = placed(report, time.perf_counter())
            # The controller learns of a loss by the link or by silence; until then the process table knows better.
            found = [*dict.fromkeys([*problems(report), *report.degraded, *_gone(state)])]
        except (httpx.HTTPError, ValueError) as error:
            found = [f"the controller does not answer ({type(error).__name__})"]
        found = [problem for problem in found if not any(name in problem for name in self.away)]
        return Look(at=time.perf_counter(), problems=tuple(found), serves=serves, placed=known)

    async def watch(self, seen: Callable[[Look], None]) -> None:
        """Look again and again until cancelled."""
        while True:
            seen(await self.look())
            await asyncio.sleep(_LOOK_S)

    async def until_whole(self, *, timeout_s: float) -> Look:
        """Wait until nothing is missing and requests are served.

        Raises:
            JanusError: it takes longer than that; says what is missing.
        """
        deadline = time.perf_counter() + timeout_s
        while (look := await self.look()).problems or not look.serves:
            if look.at > deadline:
                why = "; ".join(look.problems) or "the gateway is not ready"
                raise JanusError(f"cluster {self.directory.name} is not whole after {timeout_s:g} s: {why}")
            await asyncio.sleep(_LOOK_S)
        return look

    async def check(self, needs: ClusterNeeds) -> None:
        """Raise ConfigError when the running cluster is smaller than a scenario needs."""
        for role, field_name, flag in (("attention", "attention", "--attention"), ("expert", "experts", "--experts")):
            wanted, found = getattr(needs, field_name), len(self.names(role))
            if found < wanted:
                remedy = f"run janus scale {flag} {wanted}, or pass --up"
                raise ConfigError(f"cluster.{field_name}", f"{found} are running, {wanted} are needed", remedy)
        report = await self.status()
        slots = min((member.slots for member in report.view.members if member.role == "expert"), default=0)
        if needs.slots_per_instance and slots and slots < needs.slots_per_instance:
            remedy = f"start it with --slots-per-instance {needs.slots_per_instance}, or pass --up"
            problem = f"{slots} are there, {needs.slots_per_instance} are needed"
            raise ConfigError("cluster.slots_per_instance", problem, remedy)


def _gone(state: ClusterState) -> list[str]:
    """Instances whose process is no more and has no successor yet."""
    return [f"{instance.name} has ended" for instance in state.instances if has_ended(instance.pid)]


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or only waits for whoever started it to take note."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
