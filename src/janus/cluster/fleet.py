"""The instances that one ``janus up`` runs: started, watched, restarted and stopped, one at a time by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus.cluster.instances import STOP_ORDER, Exited, InstanceSpec, Started
from janus.cluster.launcher import Launcher
from janus.cluster.local import describe_status, port_arguments
from janus.cluster.output import tail
from janus.core.roster import natural_order
from janus.errors import LaunchError
from janus.messages.control import Role

#: Beyond the drain limit, before an instance is ended by force; longer than the instances' own grace.
_STOP_GRACE_S = 7.0
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
#: An instance that listened this long is healthy: its next restart is immediate again. Even one that always ends then
#: is started no more often than this, which is what the backoff is for.
_HEALTHY_AFTER_S = 2.0

CONTROLLER = "controller-0"


@dataclass(slots=True)
class _Life:
    """What is known of one instance over its restarts."""

    spec: InstanceSpec
    #: ``None`` while there is no process that listens.
    started: Started | None = None
    #: Where it listened last; a restarted controller listens there again.
    last: Started | None = None
    since: float = 0.0
    failures: int = 0
    #: The last process of it that is known to have ended by itself.
    ended_pid: int = 0
    #: Set for good by a drain, until the instance is started again by name.
    drained: bool = False
    #: Brings it back after its process ended; taken away by whoever stops or starts it on purpose.
    revival: asyncio.Task[None] | None = None


class Fleet:
    """Every call about one instance supersedes what was under way about it. ``changed`` is called after each change."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        start_timeout_s: float,
        drain_timeout_s: float,
        tell: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._launcher = launcher
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = drain_timeout_s + _STOP_GRACE_S
        self._tell = tell
        self._changed = changed
        self._lives: dict[str, _Life] = {}

    # -- what is known -------------------------------------------------------------------------------------------

    def names(self, *roles: Role) -> list[str]:
        """Instances of ``roles`` (all, if none is given) that should run, in order; drained ones are left out."""
        return self._select(roles, drained=False)

    def drained(self, *roles: Role) -> list[str]:
        """Instances that were drained and may be started again."""
        return self._select(roles, drained=True)

    def _select(self, roles: Sequence[Role], *, drained: bool) -> list[str]:
        found = [
            n for n, life in self._lives.items() if life.drained == drained and (not roles or life.spec.role in roles)
        ]
        return sorted(found, key=natural_order)

    def role(self, name: str) -> Role:
        """The role of a known instance."""
        return self._lives[name].spec.role

    def started(self, name: str) -> Started | None:
        """Where the instance listens; ``None`` while it is down, starting or restarting."""
        life = self._lives.get(name)
        return None if life is None else life.started

    def running(self) -> list[Started]:
        """Every instance that listens, in the order in which they were added."""
        return [life.started for life in self._lives.values() if life.started is not None]

    @property
    def http_port(self) -> int:
        """Where the gateways listen for clients, or did last; 0 before the first one did."""
        known = [life.started or life.last for life in self._lives.values() if life.spec.role == "gateway"]
        return next((each.http_port for each in known if each is not None), 0)

    def failures(self, name: str) -> int:
        """How often it had to be restarted lately."""
        return self._lives[name].failures

    @property
    def controller(self) -> Started:
        """The controller, as it listened last."""
        life = self._lives[CONTROLLER]
        found = life.started or life.last
        assert found is not None, "asked for before the controller was started"
        return found

    # -- what is done --------------------------------------------------------------------------------------------

    async def start(self, spec: InstanceSpec) -> Started:
        """Start an instance, stopping the process that goes by its name, if any; returns when it listens.

        Raises:
            LaunchError: it did not start; a process of it that is left has been ended.
        """
        if spec.role != "controller":
            spec = spec.having(controller=f"127.0.0.1:{self.controller.port}")
        life = self._lives.setdefault(spec.name, _Life(spec))
        await self._supersede(life)
        life.started = None
        await self._launcher.stop(spec.name, timeout_s=self._stop_timeout_s)
        life.spec, life.failures, life.drained = spec, 0, False
        return await self._start(life)

    async def add(self, name: str) -> Started:
        """Start an instance that the cluster has not had, just like its siblings; raises as ``start``."""
        role = name.rpartition("-")[0]
        sibling = next(life.spec for life in self._lives.values() if life.spec.role == role)
        return await self.start(sibling.sibling(name))

    async def stop(self, name: str, *, forget: bool) -> None:
        """Let an instance drain and leave, by force after the drain limit; returns when it is gone.

        ``forget``: it is no part of the cluster any more. Else it counts as drained.
        """
        life = self._lives[name]
        await self._supersede(life)
        life.drained = True
        life.started = None
        await self._launcher.stop(name, timeout_s=self._stop_timeout_s)
        if forget:
            del self._lives[name]
        self._changed()

    async def replace(self, name: str) -> Started:
        """Stop an instance and start it again under the same name, where its peers look for it; raises as ``start``."""
        return await self.start(self._where_it_was(self._lives[name]))

    async def stop_all(self) -> None:
        """Stop every instance, role by role, so that none loses a peer that it still needs."""
        for role in STOP_ORDER:
            names = [name for name, life in self._lives.items() if life.spec.role == role]
            async with asyncio.TaskGroup() as group:
                for name in names:
                    stopping = self._launcher.stop(name, timeout_s=self._stop_timeout_s)
                    group.create_task(stopping, name=f"stop[{name}]")

    def amend(self, name: str, **arguments: object) -> None:
        """Give an instance other arguments from its next start on."""
        life = self._lives[name]
        life.spec = life.spec.having(**arguments)

    def revive(self, exited: Exited, group: asyncio.TaskGroup) -> None:
        """Bring an instance back that ended by itself, at once and then ever later. ``group`` owns the task."""
        life = self._ended(exited)
        if life is not None:
            life.revival = group.create_task(self._revive(life, exited), name=f"restart[{exited.name}]")

    def lost(self, exited: Exited) -> None:
        """Note that an instance ended, and is not brought back."""
        self._ended(exited)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _ended(self, exited: Exited) -> _Life | None:
        """Note the end of a process; ``None`` if it is no longer, or not yet, the one that its instance runs as."""
        life = self._lives.get(exited.name)
        if life is None:
            return None
        life.ended_pid = exited.pid
        if life.started is None or life.started.pid != exited.pid:
            return None
        life.started = None
        return life

    async def _start(self, life: _Life) -> Started:
        name = life.spec.name
        life.ended_pid = 0
        try:
            started = await self._launcher.start(life.spec, timeout_s=self._start_timeout_s)
            if life.ended_pid == started.pid:  # its end was heard of before its start
                raise LaunchError(
                    name, "ended as soon as it listened", log=str(started.log), log_tail=tail(started.log)
                )
        except LaunchError:
            await self._launcher.stop(name, timeout_s=0)
            raise
        life.started = life.last = started
        life.since = asyncio.get_running_loop().time()
        self._tell(f"{name} listens on port {started.port} (pid {started.pid})")
        self._changed()
        return started

    async def _revive(self, life: _Life, exited: Exited) -> None:
        if asyncio.get_running_loop().time() - life.since > _HEALTHY_AFTER_S:
            life.failures = 0
        reason = f"ended with {describe_status(exited.status)}"
        while True:
            delay = 0.0 if life.failures == 0 else _BACKOFF_S[min(life.failures, len(_BACKOFF_S)) - 1]
            self._tell(f"{exited.name} {reason}; restarted" + (f" in {delay:g} s" if delay else ""))
            await asyncio.sleep(delay)
            life.failures += 1
            life.spec = self._where_it_was(life)
            try:
                await self._start(life)
            except LaunchError as error:
                reason = error.problem
                continue
            return

    @staticmethod
    def _where_it_was(life: _Life) -> InstanceSpec:
        return life.spec if life.last is None else life.spec.having(**port_arguments(life.spec.role, life.last))

    @staticmethod
    async def _supersede(life: _Life) -> None:
        revival, life.revival = life.revival, None
        if revival is not None:
            revival.cancel()
            await asyncio.wait({revival})  # what it raises is its group's
