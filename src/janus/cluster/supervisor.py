"""Starts a whole cluster, keeps it running, and stops it in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from janus.cluster.groups import one_error
from janus.cluster.instances import STOP_ORDER, Exited, InstanceSpec, Started
from janus.cluster.launcher import Launcher
from janus.cluster.local import describe_status, port_arguments, tail
from janus.cluster.state import ClusterState, InstanceState, RunDirectory
from janus.cluster.status import fetch_status, what_is_missing
from janus.config import UpOptions
from janus.errors import LaunchError
from janus.messages.control import Role

#: Seconds between two looks at the gateway's /ready, and how often progress is told.
_POLL_S = 0.1
#: Beyond the drain limit, before an instance is ended by force; longer than the instances' own grace.
_STOP_GRACE_S = 7.0
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
#: An instance that ran this long is healthy: its next restart is immediate again.
_HEALTHY_AFTER_S = 30.0


@dataclass(slots=True)
class _Life:
    """What is known of one instance over its restarts."""

    spec: InstanceSpec
    started: Started
    since: float
    failures: int = 0


@dataclass(slots=True)
class Supervisor:
    """One cluster. ``tell`` takes lines for the user; ``start``, ``keep``, ``stop`` are called in this order.

    ``start`` and ``keep`` may be cancelled at any point; ``stop`` then still stops whatever runs.
    """

    options: UpOptions
    specs: list[InstanceSpec]
    launcher: Launcher
    directory: RunDirectory
    secret_file: Path
    tell: Callable[[str], None]
    _lives: dict[str, _Life] = field(default_factory=dict)
    _names: list[tuple[Role, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base URL of the OpenAI-compatible endpoint, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.options.host, self.options.host)
        return f"http://{host}:{self._lives['gateway-0'].started.http_port}"

    @property
    def controller_ops(self) -> str:
        """Base URL of the controller's operations endpoint."""
        return f"http://127.0.0.1:{self._lives['controller-0'].started.ops_port}"

    async def start(self) -> None:
        """Start every instance and return once requests will be served.

        Raises:
            LaunchError: an instance ended, or the cluster was not ready within ``start_timeout_s``.
        """
        deadline = asyncio.get_running_loop().time() + self.options.start_timeout_s
        controller, *others = self.specs
        await self._start(controller)
        with one_error():
            async with asyncio.TaskGroup() as group:
                for spec in others:
                    group.create_task(self._start(self._joined(spec)), name=f"start[{spec.name}]")
        self._write_state()
        with one_error():
            await self._watch_until_ready(deadline)

    async def keep(self) -> None:
        """Run until cancelled; instances that end are told by name, and restarted when the options say so."""
        async with asyncio.TaskGroup() as group:
            while True:
                exited = await self.launcher.watch()
                if self.options.restart == "never":
                    self.tell(f"{exited.name} ended with {describe_status(exited.status)}; not restarted")
                else:
                    group.create_task(self._restart(exited), name=f"restart[{exited.name}]")

    async def stop(self) -> None:
        """Stop every instance, role by role, so that none loses a peer that it still needs."""
        limit = self.options.drain_timeout_s + _STOP_GRACE_S
        for role in STOP_ORDER:
            names = [name for known, name in self._names if known == role]
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(self.launcher.stop(name, timeout_s=limit), name=f"stop[{name}]")

    async def _start(self, spec: InstanceSpec) -> None:
        if (spec.role, spec.name) not in self._names:
            self._names.append((spec.role, spec.name))
        started = await self.launcher.start(spec, timeout_s=self.options.start_timeout_s)
        now = asyncio.get_running_loop().time()
        failures = self._lives[spec.name].failures if spec.name in self._lives else 0
        self._lives[spec.name] = _Life(spec, started, now, failures)
        self.tell(f"{spec.name} listens on port {started.port} (pid {started.pid})")

    async def _watch_until_ready(self, deadline: float) -> None:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._fail_on_exit(), name="watch-start")
            await self._until_ready(deadline)
            watcher.cancel()

    def _joined(self, spec: InstanceSpec) -> InstanceSpec:
        """``spec`` with the controller's address in its arguments."""
        address = f"127.0.0.1:{self._lives['controller-0'].started.port}"
        return replace(spec, arguments={**spec.arguments, "controller": address})

    async def _until_ready(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        missing = told = "not asked yet"
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while not await _is_ready(client, self.url):
                missing = await self._missing()
                if missing != told:
                    self.tell(f"waiting: {missing}")
                    told = missing
                if loop.time() > deadline:
                    problem = f"not ready after {self.options.start_timeout_s:g} s: {missing}"
                    raise LaunchError(f"cluster {self.options.name}", problem, log=str(self.directory.path))
                await asyncio.sleep(_POLL_S)

    async def _missing(self) -> str:
        try:
            return what_is_missing(await fetch_status(self.controller_ops))
        except (httpx.HTTPError, ValueError) as error:
            return f"the controller does not answer ({type(error).__name__})"

    async def _fail_on_exit(self) -> None:
        exited = await self.launcher.watch()
        log = self._lives[exited.name].started.log
        problem = f"ended with {describe_status(exited.status)} during the start"
        raise LaunchError(exited.name, problem, log=str(log), log_tail=tail(log))

    async def _restart(self, exited: Exited) -> None:
        life = self._lives[exited.name]
        loop = asyncio.get_running_loop()
        if loop.time() - life.since > _HEALTHY_AFTER_S:
            life.failures = 0
        spec = replace(life.spec, arguments={**life.spec.arguments, **port_arguments(exited.role, life.started)})
        reason = f"ended with {describe_status(exited.status)}"
        while True:
            delay = 0.0 if life.failures == 0 else _BACKOFF_S[min(life.failures, len(_BACKOFF_S)) - 1]
            self.tell(f"{exited.name} {reason}; restarted" + (f" in {delay:g} s" if delay else ""))
            await asyncio.sleep(delay)
            life.failures += 1
            try:
                await self._start(spec)
            except LaunchError as error:
                reason = error.problem
                await self.launcher.stop(spec.name, timeout_s=0)
                continue
            self._write_state()
            return

    def _write_state(self) -> None:
        controller = self._lives["controller-0"].started
        self.directory.write(
            ClusterState(
                name=self.options.name,
                pid=os.getpid(),
                url=self.url,
                controller=f"127.0.0.1:{controller.port}",
                controller_ops=self.controller_ops,
                secret_file=str(self.secret_file),
                model=str(self.options.model.resolve()),
                served_model_name=self.options.model.resolve().name,
                instances=[
                    InstanceState(
                        role=life.started.role,
                        name=life.started.name,
                        pid=life.started.pid,
                        port=life.started.port,
                        ops_port=life.started.ops_port,
                        log=str(life.started.log),
                    )
                    for life in self._lives.values()
                ],
            )
        )


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/ready")).status_code == 200
    except httpx.HTTPError:
        return False
